"""Which tokenizer fills which stretch of the text keys, and where the words of a prompt stand in it.

The text keys of a model may have several stretches: in Stable Diffusion 3, 77 positions of CLIP and then 256
of T5. A pipeline may also put a template around the prompt, of which only a part becomes text keys, or change
the prompt before a tokenizer reads it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

# What a pipeline makes of a text before the given tokenizer reads it.
Rewrite = Callable[[str, PreTrainedTokenizerBase], str]
CharSpan = tuple[int, int]


@dataclass(frozen=True)
class Stretch:
    """A stretch of the text keys, and how a prompt comes into it.

    Attributes:
        name: the text encoder, such as "clip" or "t5".
        tokenizers: the tokenizers that fill it. There are several if their text encoders stand side by side
            in the channels; a word must then have the same positions in all of them.
        length: the number of its positions.
        first: its first position among the text keys.
        before, after: the text that the pipeline puts around the prompt.
        skipped: the number of tokens at the start of the whole text that do not become text keys.
        padded: whether the position of a token depends on the padding, because it stands before the text.
        rewrite: what the pipeline makes of a prompt before a tokenizer reads it, or None.
    """

    name: str
    tokenizers: tuple[PreTrainedTokenizerBase, ...]
    length: int
    first: int = 0
    before: str = ""
    after: str = ""
    skipped: int = 0
    padded: bool = False
    rewrite: Rewrite | None = None

    def spans(self, text: str, char_spans: Sequence[CharSpan]) -> list[list[tuple[int, ...] | None]]:
        """For each tokenizer, the positions of each span of characters of a prompt among the text keys.

        A span that is cut off, even in part, gets (); one that cannot be found gets None.
        """
        shift = self.first - self.skipped
        return [
            [
                None if span is None else tuple(position + shift for position in span)
                for span in token_spans(
                    tokenizer,
                    text,
                    char_spans,
                    self.rewrite,
                    limit=self.skipped + self.length,
                    before=self.before,
                    after=self.after,
                    padded=self.padded,
                )
            ]
            for tokenizer in self.tokenizers
        ]

    def tokens(self, text: str) -> list[tuple[int, str]]:
        """The tokens of a prompt, and of what the pipeline puts around it, with their positions among the
        text keys.
        """
        tokenizer = self.tokenizers[0]
        text = self.rewrite(text, tokenizer) if self.rewrite else text
        limit, padding = self.skipped + self.length, "max_length" if self.padded else False
        ids = tokenizer(
            self.before + text + self.after, truncation=True, max_length=limit, padding=padding
        ).input_ids
        named = list(enumerate(tokenizer.convert_ids_to_tokens(ids)))[self.skipped :]
        padded = {place for place, token in named if self.padded and token == tokenizer.pad_token}
        return [(place - self.skipped + self.first, token) for place, token in named if place not in padded]

    def own(self, positions: Sequence[int]) -> tuple[int, ...]:
        """Those of the positions among the text keys that lie in this stretch."""
        return tuple(p for p in positions if self.first <= p < self.first + self.length)


def stretches_of(
    tokenizers: Sequence[Stretch | PreTrainedTokenizerBase], rewrite: Rewrite | None = None
) -> list[Stretch]:
    """The stretches of a painter. Plain tokenizers, with their `rewrite`, fill one stretch together."""
    own = [stretch for stretch in tokenizers if isinstance(stretch, Stretch)]
    plain = tuple(tokenizer for tokenizer in tokenizers if not isinstance(tokenizer, Stretch))
    return [*own, *([Stretch("text", plain, plain[0].model_max_length, rewrite=rewrite)] if plain else [])]


def positions_of(
    text: str, char_spans: Sequence[CharSpan], stretches: Sequence[Stretch]
) -> list[tuple[int, ...] | str]:
    """The positions of each span of characters of a prompt among the text keys, in all stretches that have
    it; () if it is cut off in all of them, and the reason if it cannot be located.
    """
    placed = [stretch.spans(text, char_spans) for stretch in stretches]
    found: list[tuple[int, ...] | str] = []
    for number in range(len(char_spans)):
        alike = [{spans[number] for spans in tokenizers} for tokenizers in placed]
        if any(None in positions for positions in alike):
            found.append("the painter rewrites the prompt, and its word is not found in the new text")
        elif any(len(positions) > 1 for positions in alike):
            found.append("its word has other token positions in the second text encoder")
        else:
            found.append(tuple(position for (positions,) in alike for position in positions))
    return found


def fits(text: str, stretches: Sequence[Stretch]) -> bool:
    """Whether every tokenizer reads a prompt to its end."""
    return all(span for stretch in stretches for (span,) in stretch.spans(text, [(0, len(text))]))


def token_spans(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    char_spans: Sequence[CharSpan],
    rewrite: Rewrite | None = None,
    *,
    limit: int | None = None,
    before: str = "",
    after: str = "",
    padded: bool = False,
) -> list[tuple[int, ...] | None]:
    """The token positions of each span of characters, in a text that is cut at the token limit.

    Positions count the special tokens (CLIP's start-of-text is 0). A span that is cut off, even in part, gets
    (). The painter applies `rewrite` to the text first; a span that cannot be found afterwards gets None. The
    other options are those of `Stretch`; `limit` is by default the tokenizer's own.
    """
    found: Sequence[CharSpan | None] = char_spans
    if rewrite is not None:
        text, found = _rewritten(tokenizer, text, char_spans, rewrite)
    found = [span and (span[0] + len(before), span[1] + len(before)) for span in found]
    limit = tokenizer.model_max_length if limit is None else limit
    locate = _by_offsets if tokenizer.is_fast else _by_prefixes
    return locate(tokenizer, before + text + after, found, limit, padded)


def _by_offsets(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    char_spans: Sequence[CharSpan | None],
    limit: int,
    padded: bool,
) -> list[tuple[int, ...] | None]:
    encoding = tokenizer(
        text,
        truncation=True,
        max_length=limit,
        padding="max_length" if padded else False,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_overflowing_tokens=True,  # the tokens beyond the limit follow as further sequences
    )
    parts = zip(encoding["offset_mapping"], encoding["special_tokens_mask"], strict=True)
    pieces = [
        (part, position, start, end)
        for part, (offsets, special) in enumerate(parts)
        for position, (start, end) in enumerate(offsets)
        if not special[position]
    ]
    spans: list[tuple[int, ...] | None] = []
    for span in char_spans:
        if span is None:
            spans.append(None)
            continue
        first, stop = span
        inside = [(part, position) for part, position, start, end in pieces if start < stop and end > first]
        cut = any(part for part, _ in inside)
        spans.append(() if cut else tuple(position for _, position in inside))
    return spans


def _by_prefixes(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    char_spans: Sequence[CharSpan | None],
    limit: int,
    padded: bool,
) -> list[tuple[int, ...] | None]:
    """For tokenizers without offsets: a word's tokens are those by which the text before it grows."""
    tokens, ids = tokenizer.tokenize(text), tokenizer(text)["input_ids"]
    own = tokenizer.convert_tokens_to_ids(tokens)
    starts = (k for k in range(len(ids) + 1) if ids[k : k + len(own)] == own)  # special tokens come first
    if (start := next(starts, None)) is None:
        return [None] * len(char_spans)
    left = padded and tokenizer.padding_side == "left"
    shift = start + (max(limit - len(ids), 0) if left else 0)
    spans: list[tuple[int, ...] | None] = []
    for span in char_spans:
        parts = [tokenizer.tokenize(text[:end].rstrip()) for end in span or ()]
        known = parts and all(tokens[: len(part)] == part for part in parts)
        positions = tuple(range(shift + len(parts[0]), shift + len(parts[1]))) if known else ()
        if not positions:
            spans.append(None)
        else:
            spans.append(positions if positions[-1] < limit else ())
    return spans


def _rewritten(
    tokenizer: PreTrainedTokenizerBase, text: str, char_spans: Sequence[CharSpan], rewrite: Rewrite
) -> tuple[str, list[CharSpan | None]]:
    """The rewritten text, and where its spans of characters are then; None where that is not known.

    A word begins where the rewritten text before it ends.
    """
    new = rewrite(text, tokenizer)
    if new == text:
        return text, list(char_spans)

    def moved(start: int, stop: int) -> CharSpan | None:
        before, inclusive = (rewrite(text[:end], tokenizer) for end in (start, stop))
        known = new.startswith(inclusive) and inclusive.startswith(before)
        first = len(inclusive) - len(inclusive[len(before) :].lstrip())  # a space before it may be gone
        return (first, len(inclusive)) if known else None

    return new, [moved(*span) for span in char_spans]

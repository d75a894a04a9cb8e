"""From captions to prompts: find the class words, replace some by aliases, tell at which tokens they stand.

A prompt is a pure function of (table, captions, options, seed, index, attempt), so that no number of
processes, shards or restarts changes a dataset. Words are followed by their characters from the caption to
the tokenizer's own offsets, never found again in the result: an alias may hold another class's name, and a
tokenizer may split any word.

    source = PromptSource(load_table("voc"), read_captions("captions.jsonl")[0], [pipe.tokenizer], seed=0)
    source.prompt(index=0, attempt=0)
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from attn2mask.builders.classes import ClassTable, gap, spelling, tokens
from attn2mask.builders.errors import UserError
from attn2mask.builders.words.captions import Caption
from attn2mask.builders.words.english import UNCOUNTABLE, article, means_many, plural

# Streams of random numbers that must not meet: the captions' order, a prompt's draws, an image's noise.
_ORDER, _PROMPT, _IMAGE = range(3)
# Captions of the grammar tried for one prompt, when all class words of each lie beyond the token limit.
_GRAMMAR_TRIES = 100

_ARTICLE_BEFORE = re.compile(r"\b(an?)\s+\Z", re.IGNORECASE)
_WORD_BEFORE = re.compile(r"([^\W_]+)\s+\Z")
_SENTENCE_START = re.compile(r"(?:\A|[.!?]\s)[\s\"'\u201c\u2018(]*\Z")
# Words straight before a noun after which an uncountable one fits too: "with plants" -> "with greenery", but
# not "two plants".
# fmt: off
_UNCOUNTABLE_AFTER = {
    "a", "an", "the", "some", "his", "her", "its", "their", "our", "my", "your", "no", "any", "with", "of",
    "and", "or", "in", "on", "by", "to", "near", "behind", "beside", "between", "among", "under", "over",
    "through", "at", "from", "for", "against", "around",
}
# fmt: on


@dataclass(frozen=True)
class Occurrence:
    """A class word in a text: text[start:end] == `text`. `is_base`: it is or holds a base name."""

    start: int
    end: int
    class_index: int
    text: str
    is_base: bool


@dataclass(frozen=True)
class Prompt:
    """What the painter is told, and where its class words stand.

    `classes` are mask ids in the order of first appearance, each once. Parallel to it: `words`, the form at
    the first occurrence that the painter reads, and `spans`, the token positions (the tokenizer's own; CLIP's
    start-of-text is 0) of all its occurrences. `dropped` gives a reason for every class of the caption that
    is not in the prompt's classes.
    """

    text: str
    caption: str
    source: str
    classes: tuple[int, ...]
    words: tuple[str, ...]
    spans: tuple[tuple[int, ...], ...]
    dropped: tuple[str, ...] = ()


def find_occurrences(table: ClassTable, text: str) -> list[Occurrence]:
    """All class words of a text, in order: whole words in any case, longest first, none inside a compound.

    A compound takes its words wherever it begins: "school bus stop" holds no bus. A hyphen binds: "cat-like"
    is no cat.
    """
    lexicon, longest = table.lexicon, table.longest_form
    words = list(tokens(text))
    forms: list[tuple[int, int, str]] = []  # first word, word after the last, spelling
    for first, (start, _, _) in enumerate(words):
        if _hyphen_at(text, start - 1):
            continue
        key = ""
        for last in range(first, min(first + longest, len(words))):
            between = gap(text[words[last - 1][1] : words[last][0]]) if last > first else ""
            key += between + words[last][2]
            if key in lexicon and not _hyphen_at(text, words[last][1]):
                forms.append((first, last + 1, key))
    # Compounds before all else; then from the left, the longest at each place.
    forms.sort(key=lambda form: (lexicon[form[2]].class_index is not None, form[0], -form[1]))
    taken: set[int] = set()
    found = []
    for first, stop, key in forms:
        if taken.isdisjoint(range(first, stop)):
            taken.update(range(first, stop))
            form = lexicon[key]
            if form.class_index is not None:
                start, end = words[first][0], words[stop - 1][1]
                found.append(Occurrence(start, end, form.class_index, text[start:end], form.is_base))
    return sorted(found, key=lambda occurrence: occurrence.start)


def augment(
    table: ClassTable, text: str, rng: np.random.Generator, probability: float
) -> tuple[str, list[Occurrence]]:
    """Replaces each occurrence of a base name, with `probability`, by a random alias of its class.

    Number, article and capitals are mended. Returns the new text and its occurrences: the aliases put in and
    the base names left, not the aliases that stood there before.
    """
    out, cursor, occurrences = "", 0, []
    for old in find_occurrences(table, text):
        if not old.is_base:
            continue
        out += text[cursor : old.start]
        cursor = old.end
        word = old.text
        aliases = table.classes[old.class_index].aliases
        if rng.random() < probability:
            before = _WORD_BEFORE.search(out)
            if before and before.group(1).lower() not in _UNCOUNTABLE_AFTER:
                aliases = [alias for alias in aliases if alias.lower() not in UNCOUNTABLE]
            if aliases:
                alias = aliases[rng.integers(len(aliases))]
                number = table.lexicon[spelling(word)].number
                if _ARTICLE_BEFORE.search(out):
                    number = "one"  # also for "a women", a frequent slip
                elif number == "either":
                    number = "many" if means_many(text[: old.start], text[old.end :]) else "one"
                out, word = _put(out, plural(alias) if number == "many" else alias, old, text)
        occurrences.append(
            replace(old, start=len(out), end=len(out) + len(word), text=word, is_base=word == old.text)
        )
        out += word
    return out + text[cursor:], occurrences


def token_spans(
    tokenizer: PreTrainedTokenizerBase, text: str, char_spans: Sequence[tuple[int, int]]
) -> list[tuple[int, ...]]:
    """The token positions of each stretch of characters, cut at the tokenizer's limit as the pipeline does.

    Positions count the special tokens (CLIP's start-of-text is 0). A stretch that is cut off, even in part,
    gets (). Needs a fast tokenizer, which keeps offsets.
    """
    encoding = tokenizer(
        text,
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_overflowing_tokens=True,  # what was cut off follows as further sequences
    )
    pieces = [
        (part, position, start, end)
        for part, (offsets, special) in enumerate(
            zip(encoding["offset_mapping"], encoding["special_tokens_mask"], strict=True)
        )
        for position, (start, end) in enumerate(offsets)
        if not special[position]
    ]
    spans = []
    for first, stop in char_spans:
        inside = [(part, position) for part, position, start, end in pieces if start < stop and end > first]
        cut = any(part for part, _ in inside)
        spans.append(() if cut else tuple(position for _, position in inside))
    return spans


def image_seed(seed: int, index: int, attempt: int) -> int:
    """The seed of a sample's noise, from 0 to 2**63 - 1."""
    return int(_sequence(seed, _IMAGE, index, attempt).generate_state(1, np.uint64)[0] >> np.uint64(1))


class PromptSource:
    """Prompts of one build, from captions or (captions=None) from the built-in grammar.

    Attempt 0 of the indices walks through the captions that name a class, in an order shuffled anew for each
    round; later attempts draw others. With `balance` the classes take turns in the same way, and each walks
    through its own captions. `selected` is the number of captions that name a class, and `counts` how many
    name each (0 throughout for the grammar). `alias_probability` is from 0 to 1. Raises UserError when no
    caption names a class, and for the grammar when the model can't read the name of one.
    """

    def __init__(
        self,
        table: ClassTable,
        captions: Sequence[Caption] | None,
        tokenizers: Sequence[PreTrainedTokenizerBase],
        *,
        seed: int,
        alias_probability: float = 0.5,
        balance: bool = False,
    ):
        if not 0 <= alias_probability <= 1:
            raise UserError(f"the alias probability is {alias_probability}, but must lie between 0 and 1")
        self.table, self.captions, self.tokenizers = table, captions, tokenizers
        self.seed, self.alias_probability, self.balance = seed, alias_probability, balance
        naming: list[int] = []
        by_class: list[list[int]] = [[] for _ in table.classes]
        for number, caption in enumerate(captions or ()):
            named = {found.class_index for found in find_occurrences(table, caption.text) if found.is_base}
            for class_index in named:
                by_class[class_index].append(number)
            if named:
                naming.append(number)
        if captions is not None and not naming:
            words = ", ".join(label.base[0] for label in table.classes[:5])
            raise UserError(
                f"none of {len(captions)} captions names a class of table {table.name!r}: no {words} ..."
            )
        if captions is None:
            self._check_readable()
        self.selected = len(naming)
        self.counts = {
            label.name: len(numbers) for label, numbers in zip(table.classes, by_class, strict=True)
        }
        self._naming, self._by_class = naming, by_class
        # Classes that can take a turn: those with a caption, or all of them for the grammar.
        self._turns = [k for k, numbers in enumerate(by_class) if numbers or captions is None]

    def prompt(self, index: int, attempt: int) -> Prompt:
        """The prompt of sample `index` (from 0) at its `attempt` (from 0), with at least one class.

        Where all class words of a caption are cut off, the next caption takes its place, and `dropped` says
        so. Raises UserError when that holds for every caption.
        """
        dropped: list[str] = []
        for caption, rng in self._candidates(index, attempt):
            prompt = self._compose(caption, rng)
            if prompt.classes:
                return replace(prompt, dropped=(*dropped, *prompt.dropped))
            dropped += [f"caption {caption.source}: {reason}" for reason in prompt.dropped]
        raise UserError(f"no caption makes a prompt for this model, the last tried: {dropped[-1]}")

    def _check_readable(self) -> None:
        """Raises UserError for a class all of whose names alone are longer than the model's prompt."""
        for label in self.table.classes:
            for tokenizer in self.tokenizers:
                if not any(token_spans(tokenizer, word, [(0, len(word))])[0] for word in label.base):
                    raise UserError(
                        f"class {label.name[:60]!r} of table {self.table.name!r} has no name that fits the "
                        f"model's {tokenizer.model_max_length} tokens: give it a shorter base name"
                    )

    def _candidates(self, index: int, attempt: int) -> Iterator[tuple[Caption, np.random.Generator]]:
        """Captions for a sample, best first, each with the random numbers of its augmentation."""
        turn, round_ = None, index
        if self.balance:
            round_, place = divmod(index, len(self._turns))
            turn = self._turns[_order(self.seed, 0, round_, len(self._turns))[place]]
        if self.captions is None:
            from attn2mask.builders.words import grammar

            for tried in range(_GRAMMAR_TRIES):
                rng = np.random.default_rng(_sequence(self.seed, _PROMPT, index, attempt, tried))
                yield Caption(grammar.caption(self.table, rng, turn), "grammar"), rng
            return
        pool = self._naming if turn is None else self._by_class[turn]
        epoch, start = divmod(round_, len(pool))
        order = _order(self.seed, 1 if turn is None else 2 + turn, epoch, len(pool))
        if attempt:
            draw = np.random.default_rng(_sequence(self.seed, _PROMPT, index, attempt))
            start = int(draw.integers(len(pool)))
        for tried in range(len(pool)):
            rng = np.random.default_rng(_sequence(self.seed, _PROMPT, index, attempt, tried))
            yield self.captions[pool[order[(start + tried) % len(pool)]]], rng

    def _compose(self, caption: Caption, rng: np.random.Generator) -> Prompt:
        text, occurrences = augment(self.table, " ".join(caption.text.split()), rng, self.alias_probability)
        stretches = [(occurrence.start, occurrence.end) for occurrence in occurrences]
        placed = [token_spans(tokenizer, text, stretches) for tokenizer in self.tokenizers]
        words: dict[int, str] = {}
        spans: dict[int, tuple[int, ...]] = {}
        lost: dict[int, str] = {}
        for occurrence, (span, *others) in zip(occurrences, zip(*placed, strict=True), strict=True):
            k = occurrence.class_index
            if any(other != span for other in others):
                lost[k] = "its word has different places for the model's text encoders"
            elif not span:
                lost[k] = f"its word lies beyond the model's {self.tokenizers[0].model_max_length} tokens"
            else:
                words.setdefault(k, occurrence.text)
                spans[k] = spans.get(k, ()) + span
        return Prompt(
            text=text,
            caption=caption.text,
            source=caption.source,
            classes=tuple(self.table.first_id + k for k in words),
            words=tuple(words.values()),
            spans=tuple(spans.values()),
            dropped=tuple(
                f"{self.table.classes[k].name}: {reason}" for k, reason in lost.items() if k not in words
            ),
        )


def _put(out: str, word: str, old: Occurrence, text: str) -> tuple[str, str]:
    """The text before a replaced word and the new word, with article and capitals mended."""
    shouted = old.text.isupper() and (len(old.text) > 2 or text.isupper())  # "DOG", but not "TV"
    begins = _SENTENCE_START.search(out) is not None
    if shouted:
        word = word.upper()
    elif old.text[0].isupper() and (begins or not old.text.isupper()):
        word = word[0].upper() + word[1:]
    before = _ARTICLE_BEFORE.search(out)
    if before is None:
        return out, word
    capital = before.group(1)[0].isupper()
    if word.lower() in UNCOUNTABLE:
        return out[: before.start(1)], word[0].upper() + word[1:] if capital else word
    mended = article(word)
    if capital:
        mended = mended.upper() if shouted else mended.capitalize()
    return out[: before.start(1)] + mended + out[before.end(1) :], word


def _hyphen_at(text: str, position: int) -> bool:
    """Whether the character at `position` is a hyphen between two words."""
    return (
        text[position : position + 1] == "-"
        and text[position + 1 : position + 2].isalnum()
        and position > 0
        and text[position - 1].isalnum()
    )


def _sequence(seed: int, *key: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=key)


@lru_cache(maxsize=1024)
def _order(seed: int, stream: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng(_sequence(seed, _ORDER, stream, epoch)).permutation(size)

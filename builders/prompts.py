"""From captions to prompts: find the class words, replace some by aliases, and locate their tokens.

A prompt is a pure function of (table, captions, options, seed, index, attempt), for any number of processes.
The position of a word is tracked by its characters, from the caption to the tokenizer's offsets. Words are
never searched for in the finished prompt: an alias may contain the name of another class, and a tokenizer may
split any word.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
from transformers import PreTrainedTokenizerBase

from attn2mask.builders.classes import ClassTable, Kind, gap, is_unspaced, spelling, tokens
from attn2mask.builders.errors import UserError
from attn2mask.builders.stretches import Rewrite, Stretch, fits, positions_of, stretches_of
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words.captions import Caption
from attn2mask.builders.words.context import Context, Noun, is_part, is_place, is_thing, replacements
from attn2mask.builders.words.english import UNCOUNTABLE, article, means_many, plural

BACKGROUND_WORDS = Path(__file__).parent / "words" / "background.yaml"

# Streams of random numbers: the order of the captions, the choices of a prompt, the noise of an image.
_ORDER, _PROMPT, _IMAGE = range(3)
# The version of the rules that lead from captions to prompts. A dataset never mixes two of them.
PROMPT_RULES = 2
# With balance, the most rows of a class for each row of the rarest one.
MOST_TIMES = 4
# The most captions of the grammar that are tried for one prompt if class words lie beyond the token limit.
_GRAMMAR_TRIES = 100
_WORDS_AFTER = 20  # that tell what a class word means, at most

_ARTICLE_BEFORE = re.compile(r"\b(an?)\s+\Z", re.IGNORECASE)
_HYPHEN = re.compile(r"[^\W_]-[^\W_]")
_WORD_BEFORE = re.compile(r"([^\W_]+)\s+\Z")
_SENTENCE_START = re.compile(r"(?:\A|[.!?]\s)[\s\"'\u201c\u2018(]*\Z")
# Words after which an uncountable noun fits, too: "with plants" -> "with greenery", but not "two plants".
_UNCOUNTABLE_AFTER = set(
    "a an the some his her its their our my your no any with of and or in on by to near behind beside between"
    " among under over through at from for against around".split()
)


@dataclass(frozen=True)
class Occurrence:
    """A class word in a text, at text[start:end]: a name of the class, or an ambiguous word."""

    start: int
    end: int
    class_index: int
    text: str
    kind: Kind = "name"


@dataclass(frozen=True)
class Prompt:
    """The text that the painter gets, and the positions of its class words.

    `classes` are mask ids in the order of first appearance. Parallel to them are `words`, the class word at
    its first occurrence within the token limit, and `spans`, the positions of all its occurrences among the
    text keys of the painter (CLIP's start-of-text is 0). `dropped` has a reason for every other class of the
    caption. `background` are the background words within the token limit, in lower case, and parallel to them
    `background_spans` are the positions of all their occurrences.
    """

    text: str
    caption: str
    source: str
    classes: tuple[int, ...]
    words: tuple[str, ...]
    spans: tuple[tuple[int, ...], ...]
    dropped: tuple[str, ...] = ()
    background: tuple[str, ...] = ()
    background_spans: tuple[tuple[int, ...], ...] = ()


@cache
def background_table() -> ClassTable:
    """The background words, which are all of one class."""
    return load_table(str(BACKGROUND_WORDS))


def find_occurrences(table: ClassTable, text: str) -> list[Occurrence]:
    """All class words of a text, in order: whole words in any case, of which the longest form wins.

    A compound holds none ("school bus stop"), nor does a part of a word with a hyphen ("cat-like").
    """
    context, found = Context.of(text), []
    for first, stop, key in _forms(table, context):
        form, start, end = table.lexicon[key], context.words[first][0], context.words[stop - 1][1]
        if form.class_index is not None:
            found.append(Occurrence(start, end, form.class_index, text[start:end], form.kind))
    return things(table, text, found)


def find_background(table: ClassTable, text: str) -> list[Occurrence]:
    """The background words of a text, in order, as occurrences of the class of `background_table`.

    A word of a class of `table` is none ("road" with Cityscapes), nor is a part of such a word or of a
    compound of the table ("water bottle"), nor a word that does not mean the surroundings (`is_place`).
    """
    context, background = Context.of(text), background_table()
    known = [(first, stop, table.lexicon[key].class_index) for first, stop, key in _forms(table, context)]
    named = [Noun(context, first, stop, table, k) for first, stop, k in known if k is not None]
    taken = {word for first, stop, _ in known for word in range(first, stop)}
    found = []
    for first, stop, _ in _forms(background, context):
        is_free = taken.isdisjoint(range(first, stop))
        if is_free and is_place(Noun(context, first, stop, background, 0), named):
            start, end = context.words[first][0], context.words[stop - 1][1]
            found.append(Occurrence(start, end, 0, text[start:end]))
    return found


def _forms(table: ClassTable, context: Context) -> list[tuple[int, int, str]]:
    """The class words and the compounds of a text, in order: first word, word after the last, spelling."""
    lexicon, longest, text, words = table.lexicon, table.longest_form, context.text, context.words
    forms: list[tuple[int, int, str]] = []
    for first, (start, _, _) in enumerate(words):
        if _hyphen_at(text, start - 1):
            continue
        key = ""
        for last in range(first, min(first + longest, len(words))):
            between = gap(text[words[last - 1][1] : words[last][0]]) if last > first else ""
            key += between + words[last][2]
            if key in lexicon and not _hyphen_at(text, words[last][1]):
                forms.append((first, last + 1, key))
    # Compounds come first, then forms from left to right, the longest at each position first.
    forms.sort(key=lambda form: (lexicon[form[2]].class_index is not None, form[0], -form[1]))
    taken: set[int] = set()
    kept = []
    for first, stop, key in forms:
        if taken.isdisjoint(range(first, stop)):
            taken.update(range(first, stop))
            kept.append((first, stop, key))
    return sorted(kept)


def things(table: ClassTable, text: str, found: list[Occurrence]) -> list[Occurrence]:
    """The occurrences that mean things of their classes: no statues, no parts of other things."""
    if not found:
        return found
    context, parts = Context.of(text), dict(table.parts)
    nouns = [_noun(table, context, occurrence) for occurrence in found]
    kept = []
    for occurrence, noun in zip(found, nouns, strict=True):
        whole = parts.get(occurrence.class_index)
        wholes = [other for other, o in zip(nouns, found, strict=True) if o.class_index == whole]
        if is_thing(noun) and not is_part(noun, wholes):
            kept.append(occurrence)
    return kept


def _noun(table: ClassTable, context: Context, occurrence: Occurrence) -> Noun:
    return Noun.at(context, occurrence.start, occurrence.end, table, occurrence.class_index)


def augment(
    table: ClassTable, text: str, rng: np.random.Generator, probability: float
) -> tuple[str, list[Occurrence]]:
    """Replace each name of a class, with `probability`, by a random alias of the class.

    The number of the new word, its article and its capitals are corrected. Returns the new text and the names
    of classes in it, replaced or not. Ambiguous words are kept, and are not among them.
    """
    out, cursor, occurrences = "", 0, []
    context = Context.of(text)
    found = [old for old in find_occurrences(table, text) if old.kind != "ambiguous"]
    named = Counter(old.class_index for old in found)
    for old in found:
        out += text[cursor : old.start]
        cursor = old.end
        word = old.text
        if rng.random() < probability:
            noun = _noun(table, context, old)
            number = table.lexicon[spelling(word)].number
            if _ARTICLE_BEFORE.search(out):
                number = "one"  # also for "a women", a frequent mistake
            elif number == "either":
                number = "many" if means_many(text[: old.start], text[old.end :]) else "one"
            aliases = replacements(noun, is_repeated=named[old.class_index] > 1)
            before = _WORD_BEFORE.search(out)
            if before and before.group(1).lower() not in _UNCOUNTABLE_AFTER:
                aliases = tuple(alias for alias in aliases if alias.lower() not in UNCOUNTABLE)
            if aliases:
                alias = aliases[rng.integers(len(aliases))]
                out, word = _put(out, plural(alias) if number == "many" else alias, old, text)
        occurrences.append(replace(old, start=len(out), end=len(out) + len(word), text=word))
        out += word
    return out + text[cursor:], occurrences


def with_instance_prompt(text: str, instance_prompt: str) -> str:
    """`text` followed by the instance prompt of a LoRA, in the form in which `attn2mask adapt` trains it."""
    return f"{text.rstrip(' .')}, {instance_prompt}"


def image_seed(seed: int, index: int, attempt: int) -> int:
    """The seed of a sample's noise, from 0 to 2**53 - 1: JavaScript, and so the viewer of the Hub, rounds
    larger numbers.
    """
    return int(_sequence(seed, _IMAGE, index, attempt).generate_state(1, np.uint64)[0] >> np.uint64(11))


class PromptSource:
    """The prompts of one build, from captions or, if `captions` is None, from the built-in grammar.

    A caption is selected if it names a class, and also each class that an ambiguous word of it may mean.
    Attempt 0 goes through the selected captions, in a new random order in each round; later attempts draw
    other captions. With `balance`, the classes take turns, as `_Turns` says. `alias_probability` is from 0
    to 1. `instance_prompt` is added to every prompt that has room for it. `tokenizers` are the stretches of
    a painter (`Painter.stretches`), or the tokenizers of a painter whose text has one stretch, with what the
    painter makes of a text before they read it, if it does so (`rewrite`). `background` says whether prompts
    also have their background words.

    Raises UserError if no caption is selected, if `balance` is on and fewer than two classes have captions,
    for captions, if a word of the table is in a script without blanks between words, and, for the grammar, if
    no name of a class fits the model's token limit.
    """

    def __init__(
        self,
        table: ClassTable,
        captions: Sequence[Caption] | None,
        tokenizers: Sequence[Stretch | PreTrainedTokenizerBase],
        *,
        seed: int,
        alias_probability: float = 0.5,
        balance: bool = False,
        instance_prompt: str | None = None,
        rewrite: Rewrite | None = None,
        background: bool = False,
    ):
        if not 0 <= alias_probability <= 1:
            raise UserError(f"the alias probability is {alias_probability}, but must lie between 0 and 1")
        self.table, self.captions, self.stretches = table, captions, stretches_of(tokenizers, rewrite)
        self.seed, self.alias_probability, self.balance = seed, alias_probability, balance
        self.instance_prompt, self.background = instance_prompt, background
        self.limit = max(stretch.length for stretch in self.stretches)  # of the tokens that are read
        named = (_named(table, self._readable(caption.text)) for caption in captions or ())
        self._classes_of = {number: classes for number, classes in enumerate(named) if classes}
        self._selected = list(self._classes_of)
        if captions is None:
            self._check_readable()
            self._turns = _Turns(seed, dict.fromkeys(range(len(table.classes)), ()), {})
            return
        if unspaced := next(filter(is_unspaced, table.lexicon), None):
            raise UserError(
                f"the word {unspaced!r} of table {table.name!r} is in a script without blanks between words"
                " (Chinese, Japanese, Thai), and such words are not found in captions: give base names in"
                " another script, or build without --captions"
            )
        by_class: dict[int, list[int]] = {k: [] for k in range(len(table.classes))}
        for number, classes in self._classes_of.items():
            for k in classes:
                by_class[k].append(number)
        served = {k: numbers for k, numbers in by_class.items() if numbers}
        if not served:
            words = ", ".join(label.base[0] for label in table.classes[:5])
            raise UserError(
                f"none of {len(captions)} captions names a class of table {table.name!r}: no {words} ..."
            )
        if balance and len(served) < 2:
            (only,) = (table.classes[k].name for k in served)
            raise UserError(
                f"the captions name only one class of table {table.name!r} ({only}), so that classes cannot "
                "be balanced: give captions that name two or more, or add --no-balance"
            )
        self._turns = _Turns(seed, served, self._classes_of)

    @property
    def selected(self) -> int:
        """The number of captions that are used; 0 for the grammar."""
        return len(self._selected)

    @property
    def unserved(self) -> list[str]:
        """The names of the classes that no selected caption names; empty for the grammar."""
        return [label.name for k, label in enumerate(self.table.classes) if k not in self._turns.pools]

    def prompt(self, index: int, attempt: int) -> Prompt:
        """The prompt of sample `index` (from 0) in its `attempt` (from 0), with at least one class.

        If all class words of a caption are cut off, or that of the class whose turn it is, the next caption
        is used, and `dropped` says so. Raises UserError if this is so for every caption.
        """
        dropped: list[str] = []
        turn = self._turns.turn(index) if self.balance else None
        for caption, rng in self._candidates(index, attempt, turn):
            prompt = self.compose(caption, rng, self.alias_probability)
            if prompt.classes and (turn is None or self.table.first_id + turn in prompt.classes):
                return replace(prompt, dropped=(*dropped, *prompt.dropped))
            dropped += [f"caption {caption.source}: {reason}" for reason in prompt.dropped]
        why = f": {dropped[-1]}" if dropped else ""
        raise UserError(f"no caption gives a prompt for this model; the last one failed{why}")

    def rows(self, num_images: int) -> dict[str, int]:
        """The number of rows of each class, by its name, as the first attempts at a build have them."""
        prompts = (self.prompt(index, 0) for index in range(num_images))
        counts = Counter(k for prompt in prompts for k in prompt.classes)
        return {label.name: counts[self.table.first_id + k] for k, label in enumerate(self.table.classes)}

    def unlabeled(self) -> dict[str, int]:
        """The class words that get no label in the prompts of selected captions, the most frequent first,
        each with the number of these captions.
        """
        counts: Counter[str] = Counter()
        for number in self._selected:
            caption = self.captions[number]
            prompt = self.compose(caption)
            labeled = {k - self.table.first_id for k in prompt.classes}
            found = find_occurrences(self.table, self._readable(caption.text))
            counts.update({spelling(o.text) for o in found if o.class_index not in labeled})
        return dict(counts.most_common())

    def _check_readable(self) -> None:
        for label in self.table.classes:
            if not any(positions_of(word, [(0, len(word))], self.stretches)[0] for word in label.base):
                raise UserError(
                    f"class {label.name[:60]!r} of table {self.table.name!r} has no name that fits the "
                    f"model's {self.limit} tokens: give it a shorter base name"
                )

    def _candidates(
        self, index: int, attempt: int, turn: int | None
    ) -> Iterator[tuple[Caption, np.random.Generator]]:
        """Captions for a sample, the preferred one first, each with a generator for its augmentation."""
        numbers = self._numbers(index, attempt, turn) if self.captions is not None else range(_GRAMMAR_TRIES)
        for tried, number in enumerate(numbers):
            rng = np.random.default_rng(_sequence(self.seed, _PROMPT, index, attempt, tried))
            if self.captions is not None:
                yield self.captions[number], rng
            else:
                from attn2mask.builders.words import grammar

                yield Caption(grammar.caption(self.table, rng, turn), "grammar"), rng

    def _numbers(self, index: int, attempt: int, turn: int | None) -> Iterator[int]:
        """The selected captions for a sample by their numbers, the preferred one first."""
        draw = np.random.default_rng(_sequence(self.seed, _PROMPT, index, attempt))
        if turn is None:
            size = len(self._selected)
            epoch, start = divmod(index, size)
            start = int(draw.integers(size)) if attempt else start
            order = _order(self.seed, 1, epoch, size)
            for tried in range(size):
                yield self._selected[order[(start + tried) % size]]
            return
        planned, pool = self._turns.caption(index), self._turns.pools[turn]
        if attempt == 0:
            yield planned
        # Captions that name no class beside those of the planned one come first, so that the balance stays.
        allowed = self._classes_of[planned]
        yield from draw.permutation([n for n in pool if self._classes_of[n] <= allowed]).tolist()
        yield from (n for n in pool if not self._classes_of[n] <= allowed)

    def _readable(self, text: str) -> str:
        """The beginning of a caption: more words than the painter can read. A token may be two words with a
        hyphen ("e-mail"), and the words after a noun tell what it means. Further words have no effect.
        """
        later = next(islice(tokens(text), 2 * self.limit + _WORDS_AFTER, None), None)
        return text if later is None else text[: later[0]]

    def compose(
        self, caption: Caption, rng: np.random.Generator | None = None, alias_probability: float = 0.0
    ) -> Prompt:
        """The prompt of a caption, which may have no class. `rng` chooses the class words that are replaced,
        each with `alias_probability`.
        """
        rng = rng or np.random.default_rng(0)
        read = " ".join(self._readable(caption.text).split())
        text, occurrences = augment(self.table, read, rng, alias_probability)
        text, occurrences, left_out = self._with_instance_prompt(text, occurrences)
        background = find_background(self.table, text) if self.background else []
        char_spans = [(word.start, word.end) for word in (*occurrences, *background)]
        places = positions_of(text, char_spans, self.stretches)
        words: dict[int, str] = {}
        spans: dict[int, tuple[int, ...]] = {}
        lost: dict[int, str] = {}
        painted: set[int] = set()  # the lost classes whose word the painter reads, at least in part
        beginnings: Sequence[tuple[int, ...] | str] = places
        if not all(places):
            beginnings = positions_of(text, [(o.start, o.start + 1) for o in occurrences], self.stretches)
        for occurrence, place, beginning in zip(
            occurrences, places[: len(occurrences)], beginnings[: len(occurrences)], strict=True
        ):
            k = occurrence.class_index
            if isinstance(place, str):
                lost[k] = place
                painted.add(k)
            elif not place:
                lost[k] = f"its word lies beyond the model's {self.limit} tokens"
                if beginning:
                    painted.add(k)
            else:
                words.setdefault(k, occurrence.text)
                spans[k] = spans.get(k, ()) + place
        dropped = tuple(f"{self.table.classes[k].name}: {why}" for k, why in lost.items() if k not in words)
        if painted - set(words):  # a class may be in the image, but cannot be located
            words, spans = {}, {}
        behind: dict[str, tuple[int, ...]] = {}
        for word, place in zip(background, places[len(occurrences) :], strict=True):
            if place and not isinstance(place, str):
                behind[word.text.lower()] = behind.get(word.text.lower(), ()) + place
        return Prompt(
            text,
            caption.text,
            caption.source,
            classes=tuple(self.table.first_id + k for k in words),
            words=tuple(words.values()),
            spans=tuple(spans.values()),
            dropped=(*dropped, *left_out),
            background=tuple(behind),
            background_spans=tuple(behind.values()),
        )

    def _with_instance_prompt(
        self, text: str, occurrences: list[Occurrence]
    ) -> tuple[str, list[Occurrence], tuple[str, ...]]:
        """The text and its class words with the instance prompt, if there is one, and why it is left out.

        If both exceed the token limit, the words after the last class word are left out. If this is not
        enough, the instance prompt is left out, so that it costs no class.
        """
        if self.instance_prompt is None:
            return text, occurrences, ()
        last = max((occurrence.end for occurrence in occurrences), default=0)
        for kept in (text, text[:last]):
            longer = with_instance_prompt(kept, self.instance_prompt)
            if fits(longer, self.stretches):
                start = len(longer) - len(self.instance_prompt)
                found = (o for o in find_occurrences(self.table, self.instance_prompt) if o.kind == "name")
                moved = (replace(o, start=start + o.start, end=start + o.end) for o in found)
                return longer, [*occurrences, *moved], ()
        return text, occurrences, (f"instance prompt: it lies beyond the model's {self.limit} tokens",)


class _Turns:
    """Which class, and which caption of it, each row of a balanced build gets.

    The classes of `pools` take turns, in a new random order in each round. Each goes through its captions,
    the numbers in its pool, also in random order. It passes over captions that name a class which has its
    share already, so that no class gets more than `MOST_TIMES` the rows of another, where the captions
    suffice. A row depends only on the rows before it. `classes_of` gives the classes that a caption names.
    """

    def __init__(
        self, seed: int, pools: Mapping[int, Sequence[int]], classes_of: Mapping[int, frozenset[int]]
    ):
        self.seed, self.pools, self.classes_of = seed, pools, classes_of
        self._plan: list[int] = []
        self._rows = Counter[int]()  # of each class
        self._passed = Counter[int]()  # captions of each class that were used or passed over

    def turn(self, index: int) -> int:
        """The class whose turn it is at row `index`."""
        round_, place = divmod(index, len(self.pools))
        return list(self.pools)[_order(self.seed, 0, round_, len(self.pools))[place]]

    def caption(self, index: int) -> int:
        """The number of the caption of row `index`."""
        while len(self._plan) <= index:
            self._plan.append(self._next(len(self._plan)))
        return self._plan[index]

    def _next(self, index: int) -> int:
        turn, rounds = self.turn(index), index // len(self.pools)
        # Every class has one row of each full round, or more. Its own turn adds one to this number of rows.
        most = max(1, (MOST_TIMES - 1) * rounds)
        pool = self.pools[turn]
        for passed in range(self._passed[turn], self._passed[turn] + len(pool)):
            epoch, place = divmod(passed, len(pool))
            number = pool[_order(self.seed, 2 + turn, epoch, len(pool))[place]]
            if all(self._rows[k] < most for k in self.classes_of[number] if k != turn):
                break
        else:  # all captions of the class name another one that has its share
            epoch, place = divmod(passed := self._passed[turn], len(pool))
            number = pool[_order(self.seed, 2 + turn, epoch, len(pool))[place]]
        self._passed[turn] = passed + 1
        self._rows.update(self.classes_of[number])
        return number


def _named(table: ClassTable, text: str) -> frozenset[int]:
    """The classes that a caption names; empty if it cannot be used, because an ambiguous word may mean a
    class that the caption does not name.
    """
    found = find_occurrences(table, text)
    named, possible = (frozenset(o.class_index for o in found if o.kind == kind) for kind in get_args(Kind))
    return named if possible <= named else frozenset()


def _put(out: str, word: str, old: Occurrence, text: str) -> tuple[str, str]:
    """The text before a replaced word, and the new word, with corrected article and capitals."""
    shouted = old.text.isupper() and (len(old.text) > 3 or text.isupper())  # "HORSE", but not "TV" or "SUV"
    begins = _SENTENCE_START.search(out) is not None
    if shouted:
        word = word.upper()
    elif old.text[0].isupper() and (begins or (len(old.text) > 2 and not old.text.isupper())):  # not "Tv"
        word = word[0].upper() + word[1:]
    before = _ARTICLE_BEFORE.search(out)
    if before is None:
        return out, word
    capital = before.group(1)[0].isupper()
    if word.lower() in UNCOUNTABLE:
        return out[: before.start(1)], word[0].upper() + word[1:] if capital else word
    new = article(word)
    if capital:
        new = new.upper() if shouted else new.capitalize()
    return out[: before.start(1)] + new + out[before.end(1) :], word


def _hyphen_at(text: str, position: int) -> bool:
    """Whether the character at `position` is a hyphen between two words."""
    return position > 0 and _HYPHEN.match(text, position - 1) is not None


def _sequence(seed: int, *key: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=key)


@lru_cache(maxsize=1024)
def _order(seed: int, stream: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng(_sequence(seed, _ORDER, stream, epoch)).permutation(size)

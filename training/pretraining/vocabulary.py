"""The words that the embedded painter learns: its tokenizer, and captions of drawn scenes.

A caption names only what the scene shows. The tokenizer knows whole words, so that a class word is one token
for each of its parts.
"""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from attn2mask.builders.drawn.canvas import PALETTE
from attn2mask.builders.drawn.kinds import KINDS, Kind, kinds_of
from attn2mask.builders.drawn.scenes import STUDY_THINGS
from attn2mask.builders.drawn.street import BACKDROPS
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words import grammar
from attn2mask.builders.words.english import plural
from attn2mask.builders.words.grammar import nouns, phrase, pick, sentence

MAX_TOKENS = 32  # of a prompt
BOS, EOS, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"

WORDS: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("vocabulary.yaml").read_text("utf-8"))


def vocabulary() -> list[str]:
    """Every word of the class tables, the kinds, the backdrops and the grammar, in alphabetical order."""
    texts = [*WORDS["scene_words"], *PALETTE, *STUDY_THINGS, ", . - ' ! ? 's"]
    for part in grammar.WORDS.values():  # lists, and mappings of lists
        texts += [text for texts in part.values() for text in texts] if isinstance(part, dict) else part
    texts += [phrase for phrases in BACKDROPS.values() for phrase in phrases]
    for table in ("voc", "cityscapes"):
        for label in load_table(table).classes:
            texts += [form for word in (*label.base, *label.aliases) for form in (word, plural(word))]
    texts += [form for kind in KINDS for name in (kind.thing, *kind.names) for form in (name, plural(name))]
    split = _pre_tokenizer()
    return sorted({word for text in texts for word, _ in split.pre_tokenize_str(text.lower())})


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]+|[^\s\p{L}\p{N}]"
    return pre_tokenizers.Split(Regex(words), behavior="removed", invert=True)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer with CLIP's conventions. An unknown word costs one token."""
    vocab = {word: i for i, word in enumerate([*vocabulary(), UNKNOWN, BOS, EOS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.post_processor = processors.RobertaProcessing(
        (EOS, vocab[EOS]), (BOS, vocab[BOS]), False, False
    )
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "unk_token": UNKNOWN}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_TOKENS, **special)


class Captions:
    """Writes captions of a drawn scene, a new one at each call, which name only what the scene shows."""

    def __init__(self) -> None:
        self.base = {label.name: nouns(label) for label in load_table("voc").classes}
        self.loose: dict[str, list[str]] = {}  # aliases that belong to no kind: any kind may bear them
        for label in load_table("voc").classes:
            claimed = {name.lower() for kind in kinds_of(label.name) for name in kind.names}
            self.loose[label.name] = [alias for alias in label.aliases if alias.lower() not in claimed]

    def noun(self, kind: Kind, rng: np.random.Generator) -> str:
        """A word for a thing: of its class, of its kind, or an alias of its class."""
        base = self.base.get(kind.thing, [kind.thing])
        loose = self.loose.get(kind.thing, [])
        draw = rng.random()
        if draw < 0.25 and kind.names:
            return pick(kind.names, rng)
        if draw < 0.45 and loose:
            return pick(loose, rng)
        return base[rng.integers(len(base)) if rng.random() < 0.5 else 0]

    def __call__(self, scene: dict[str, Any], rng: np.random.Generator) -> str:
        """A caption of `scene`: {"things": [[index in KINDS, color], ...], "place": phrase}."""
        things = [(KINDS[k], color) for k, color in scene["things"]]
        if not things:
            return self._ground(scene["place"], rng)
        noise = rng.random() < 0.35  # with unknown words, which real captions hold
        by_class: dict[str, list[tuple[Kind, str]]] = {}
        for kind, color in things:
            by_class.setdefault(kind.thing, []).append((kind, color))
        phrases = [self._phrase(group, noise, rng) for group in by_class.values()]
        order = rng.permutation(len(phrases))
        place = scene["place"] if rng.random() < 0.9 else ""
        if noise:
            joined = [place, pick(WORDS["unknown"], rng)]
            place = " ".join(joined if rng.random() < 0.7 else joined[::-1])
        return sentence([phrases[i] for i in order], place, rng)

    def _ground(self, name: str, rng: np.random.Generator) -> str:
        noun = f"a {name}" if name in ("road", "sidewalk", "wall", "building") else name
        return sentence([noun if rng.random() < 0.5 else f"the {name}"], "", rng)

    def _phrase(self, group: list[tuple[Kind, str]], noise: bool, rng: np.random.Generator) -> str:
        """A noun phrase for all things of one class."""
        kind, color = group[rng.integers(len(group))]
        same = all(k is kind for k, _ in group)
        noun = self.noun(kind, rng) if same else self.base.get(kind.thing, [kind.thing])[0]
        adjective = ""
        if len(group) == 1 and rng.random() < 0.35:
            adjective = color
        elif rng.random() < 0.15:
            adjective = pick(grammar.WORDS["adjectives"], rng)
        elif noise and rng.random() < 0.3:
            adjective = "zz"
        return phrase(noun, len(group), rng, adjective)

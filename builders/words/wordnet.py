"""Reads WordNet's nouns from its own files, which Debian's wordnet-base and nltk's corpus both contain.

No library is needed. A sense (a "synset") is identified by its offset in data.noun. The formats are those of
wndb(5WN) and lexnames(5WN) of WordNet 3.0.
"""

import os
import re
import sys
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from attn2mask.builders.errors import UserError

FILES = ("index.noun", "data.noun")
# Kinds of nouns that can be seen in an image, by the number of their lexicographer's file: THINGS are
# animals, artifacts, food, objects and plants. SEEN are these, and bodies, persons and substances.
THINGS = frozenset((5, 6, 13, 17, 20))
SEEN = THINGS | {8, 18, 27}
ALL = frozenset(range(100))


@dataclass(frozen=True)
class Sense:
    """A meaning: its words, the offsets of its direct hyponyms, its definition, the number `kind` of its
    lexicographer's file, and whether it is an instance with a name, such as the writer Crane.
    """

    words: tuple[str, ...]
    hyponyms: tuple[int, ...]
    definition: str
    kind: int
    is_name: bool


class WordNet:
    """The nouns in a folder with index.noun and data.noun, or in nltk's zip file of such a folder.

    Raises UserError if they cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            folder = zipfile.Path(path) / "wordnet" if path.suffix == ".zip" else path
            index, data = ((folder / name).read_bytes() for name in FILES)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"WordNet's {' and '.join(FILES)} in {path} cannot be read: {reason}") from error
        self._index, self._data = b"\n" + index, data

    def senses(self, word: str) -> tuple[int, ...]:
        """The offsets of a noun's senses, the most frequent first; empty for a word that WordNet lacks."""
        return self._entry(word)[0]

    def main_sense(self, word: str) -> int | None:
        """The most likely sense of a noun in a caption; None if WordNet has only names for it. It is the most
        frequent of the counted senses that can be seen, or else a thing, or else a person.
        """
        offsets, counted = self._entry(word)
        senses = {offset: sense for offset in offsets if not (sense := self.sense(offset)).is_name}
        for kinds, among in ((SEEN, offsets[:counted]), (THINGS, offsets), (SEEN, offsets), (ALL, offsets)):
            for offset in among:
                if offset in senses and senses[offset].kind in kinds:
                    return offset
        return None

    def sense(self, offset: int) -> Sense:
        """The sense at an offset; raises UserError if there is none."""
        # offset, kind, "n", number of words (hexadecimal), (word, id) of each, number of pointers, (symbol,
        # offset, part of speech, "0000") of each, | definition
        try:
            line = self._data[offset : self._data.index(b"\n", offset)].decode()
            head, definition = line.split("|", 1)
            start, kind, _, count, *parts = head.split()
            if int(start) != offset:
                raise ValueError(start)
            end = 2 * int(count, 16)
            pointers = parts[end + 1 :]
            signs, targets = pointers[::4], pointers[1::4]
            hyponyms = tuple(int(to) for sign, to in zip(signs, targets, strict=True) if sign == "~")
            words = tuple(word.replace("_", " ") for word in parts[:end:2])
            return Sense(words, hyponyms, definition.split(";")[0].strip(), int(kind), "@i" in signs)
        except ValueError as error:
            raise UserError(f"WordNet in {self.path} is broken: it has no sense at {offset}") from error

    def is_scientific(self, word: str) -> bool:
        """Whether a word is a scientific name, such as "Canis familiaris": WordNet has "genus Canis"."""
        return word[:1].isupper() and bool(self.senses(f"genus {word.split()[0]}"))

    @cached_property
    def version(self) -> str:
        """Its name and version, from its license: "WordNet 3.0"."""
        named = re.search(rb"WordNet (?:Release )?(\d[\d.]*)", self._data[:4000])
        return f"WordNet {named[1].decode()}" if named else "WordNet"

    def _entry(self, word: str) -> tuple[tuple[int, ...], int]:
        """The offsets of a noun's senses, and how many of the first of them WordNet has counted in texts."""
        spelt = word.lower().replace(" ", "_")
        for key in dict.fromkeys((spelt, spelt.replace("-", "_"), spelt.replace("_", "-"))):
            start = self._index.find(f"\n{key} n ".encode())
            if start >= 0:
                # word, "n", number of senses, ..., number of those counted, offsets
                parts = self._index[start + 1 : self._index.index(b"\n", start + 1)].split()
                senses = int(parts[2])
                return tuple(map(int, parts[-senses:])), int(parts[-senses - 1])
        return (), 0


def find_wordnet(path: str | None = None) -> WordNet:
    """WordNet in `path`, or else the copy of Debian or nltk; raises UserError if there is none."""
    if path is not None:
        return WordNet(Path(path))
    for place in places():
        if place.is_file() if place.suffix == ".zip" else all((place / name).is_file() for name in FILES):
            return WordNet(place)
    raise UserError(
        "WordNet is not installed: `apt install wordnet-base`, or `pip install nltk` and "
        "`python -m nltk.downloader wordnet`, or give its folder with --wordnet"
    )


def places() -> list[Path]:
    """Where WordNet may be: $WNSEARCHDIR, Debian's folder, then nltk's folders and its zip file."""
    own, nltk = (os.environ.get(name, "").split(os.pathsep) for name in ("WNSEARCHDIR", "NLTK_DATA"))
    shared = ("/usr/share", "/usr/local/share", "/usr/lib", "/usr/local/lib")
    prefixes = (Path.home(), *(Path(sys.prefix, inner) for inner in ("", "share", "lib")), *map(Path, shared))
    roots = [*map(Path, filter(None, nltk)), *(prefix / "nltk_data" for prefix in prefixes)]
    corpora = [root / "corpora" / name for root in roots for name in ("wordnet", "wordnet.zip")]
    return [*map(Path, filter(None, own)), Path("/usr/share/wordnet"), *corpora]

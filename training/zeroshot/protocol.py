"""Protocols of zero-shot evaluation: everything that a score depends on beside the weights and the images.

    protocol = original("maskclip", load_table("voc"))    # what the publication did; protocols.yaml
    protocol = common(load_table("cityscapes"), background="words")    # the same for all methods

`common` is one size, no crop, one template, the names of the class table, and one rule for the background.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from attn2mask.builders.classes import ClassTable, spelling
from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words.english import article
from attn2mask.builders.words.grammar import nouns

Method = Literal[
    "maskclip", "align", "groupvit", "ovsegmentor", "clippy", "sclip", "naclip", "clipseg", "attention"
]
Background = Literal["none", "threshold", "words"]
ProtocolName = Literal["original", "common"]

_FOLDER = Path(__file__).parent


def _data(name: str) -> dict[str, Any]:
    return yaml.safe_load((_FOLDER / name).read_text("utf-8"))


PROTOCOLS, TEMPLATES, WORDS = (_data(name) for name in ("protocols.yaml", "templates.yaml", "words.yaml"))
# Mean and standard deviation of RGB, 0 to 1, of the data that models were trained on.
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # from -1 to 1
}
COMMON_SIZE = 448
COMMON_TEMPLATES = ("photo",)
COMMON_THRESHOLD = 0.5
BACKGROUND_TABLE = _FOLDER.parents[1] / "builders" / "words" / "background.yaml"


@dataclass(frozen=True)
class Protocol:
    """How a method segments an image.

    Attributes:
        name: "original" or "common".
        names: the names of each class of the table, in the order of its classes.
        words: the words that compete as background. They are there only if they are part of the rule.
        background: what makes a pixel background: nothing, so that the pixels of the background are not
            scored; a probability below `threshold`; or a word of `words` that is more probable than every
            class (and a probability below `threshold`, if there is one).
        threshold: 0 to 1, for probabilities at the size of the image; None if there is none.
        size: the shorter side in pixels that the image is resized to; None for the size that the model was
            trained with.
        longest: what the longer side has at most, in pixels; None if it may have any length.
        crop: the side in pixels of the square that is cut out of the middle; None if nothing is cut.
        window: the side in pixels of the sliding window; None for the whole image.
        overlap: the least overlap of two neighboring windows, as a fraction of the window, 0 to 1.
        normalization: a key of `NORMALIZATIONS`; None for the one that the model was trained with.
        templates: keys of `TEMPLATES`.
        scale: the factor before the softmax; None for the model's own.
        area: the share of the foreground, 0 to 1, that a class needs. Smaller classes are left out.
        refinement: "pamr" (see `pamr.py`), or None.
    """

    name: ProtocolName
    names: tuple[tuple[str, ...], ...]
    background: Background
    size: int | None
    words: tuple[str, ...] = ()
    threshold: float | None = None
    longest: int | None = None
    crop: int | None = None
    window: int | None = None
    overlap: float = 0.5
    normalization: str | None = None
    templates: tuple[str, ...] = COMMON_TEMPLATES
    scale: float | None = None
    area: float = 0.0
    refinement: str | None = None

    @property
    def queries(self) -> tuple[str, ...]:
        """All names and then the words of the background: what an image is asked for."""
        return (*(name for names in self.names for name in names), *self.words)

    def prompts(self, query: str) -> list[str]:
        """The texts of a query: it stands in every template."""
        templates = [template for key in self.templates for template in TEMPLATES[key]]
        return [template.format(query, article=article(query)) for template in templates]

    def facts(self) -> dict[str, Any]:
        """The protocol as plain values, for metrics.json."""
        return asdict(self)


def original(method: str, table: ClassTable) -> Protocol:
    """The protocol of the publication of `method`.

    Raises UserError if no publication defines one, and for another table than VOC's.
    """
    if method not in PROTOCOLS:
        raise UserError(
            f"--protocol original: no publication defines how {method} is evaluated on such datasets; take"
            " --protocol common"
        )
    if table.names != load_table("voc").names:
        raise UserError(
            f"--protocol original: the protocol of {method} is for VOC's classes, not for {table.name}; take"
            " --protocol common"
        )
    values = {key: value for key, value in PROTOCOLS[method].items() if key != "checkpoint"}
    if "stride" in values:
        values["overlap"] = 1 - values.pop("stride") / values["window"]
    values["names"] = tuple((name,) if isinstance(name, str) else tuple(name) for name in values["names"])
    values["templates"] = tuple(values["templates"])
    values["words"] = tuple(WORDS[values["words"]]) if "words" in values else ()
    return Protocol("original", **values)


def common(
    table: ClassTable,
    background: Background | None = None,
    size: int | None = None,
    threshold: float | None = None,
    words: Sequence[str] | None = None,
    window: int | None = None,
    overlap: float | None = None,
) -> Protocol:
    """The protocol that is the same for all methods.

    Args:
        background: by default "words" for a table with a background, and "none" for one without it.
        size: the shorter side in pixels; by default 448.
        threshold: by default 0.5. Only for the rule "threshold".
        words: the words of the background; by default those of the package. Words that name a class of the
            table are left out.
        window: the side of the windows in pixels; by default `size`.
        overlap: of two neighboring windows, as a fraction; by default a half.

    Raises UserError for a rule that the table cannot have.
    """
    if background is None:
        background = "none" if table.background is None else "words"
    if background != "none" and table.background is None:
        raise UserError(
            f"--background {background}: the class table {table.name} has no background; take --background"
            " none"
        )
    size = size or COMMON_SIZE
    protocol = Protocol(
        "common",
        tuple(tuple(nouns(label)) for label in table.classes),
        background,
        size,
        window=window or size,
        overlap=0.5 if overlap is None else overlap,
    )
    if background == "threshold":
        return replace(protocol, threshold=COMMON_THRESHOLD if threshold is None else threshold)
    if background == "words":
        given = background_words() if words is None else words
        kept = tuple(word for word in given if spelling(word) not in table.lexicon)
        if not kept:
            raise UserError("--background words: no word is left that does not name a class")
        return replace(protocol, words=kept)
    return protocol


def background_words() -> tuple[str, ...]:
    """The words of the background that the package has."""
    return load_table(str(BACKGROUND_TABLE)).classes[0].aliases


def read_words(file: str) -> tuple[str, ...]:
    """The words of a file, one in each line. Raises UserError if it cannot be read or holds none."""
    try:
        lines = Path(file).read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"--words {file} cannot be read: {first_line(error)}") from error
    words = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not words:
        raise UserError(f"--words {file} holds no word: write one in each line")
    return words

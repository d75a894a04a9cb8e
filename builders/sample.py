"""The record of one sample: a row of the dataset, and the facts about it that go into the report of the
build.

Images are kept as PNG files, as the row stores them, so that each is encoded only once, in the process that
labels it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import datasets

    from attn2mask.builders.classes import ClassTable


@dataclass(frozen=True)
class Sample:
    """A row, and facts about it. `classes`, `words`, `peaks` and the first axis of `scores` are parallel.

    `image` is an RGB PNG file; `mask` is a PNG file of mask ids with 8 bits, or with 16 bits if the table has
    over 254 names; `reliability` is a PNG file with 8 bits, 0 to 255. `scores` is (K, h, w) uint8. The fields
    after `scores` are not in the row, but in the report of the build.
    """

    sample_id: str
    image: bytes
    mask: bytes
    reliability: bytes
    prompt: str
    caption: str
    classes: tuple[int, ...]
    words: tuple[str, ...]
    seed: int
    peaks: tuple[float, ...]
    scores: np.ndarray
    dropped: tuple[str, ...]  # the reasons why classes of the prompt are not in the row
    rejected: tuple[str, ...]  # the reasons why earlier attempts were rejected
    foreground: float  # the share of pixels that are one of the classes, 0 to 1
    reliable: float  # the mean reliability, 0 to 1

    def to_row(self, store_scores: bool) -> dict[str, Any]:
        """The row, with the columns of `features`."""
        row = {
            "image": {"bytes": self.image, "path": None},
            "mask": {"bytes": self.mask, "path": None},
            "reliability": {"bytes": self.reliability, "path": None},
            "prompt": self.prompt,
            "caption": self.caption,
            "classes": list(self.classes),
            "words": list(self.words),
            "seed": self.seed,
            "sample_id": self.sample_id,
            "peaks": list(self.peaks),
        }
        return {**row, "scores": self.scores.tolist()} if store_scores else row


def features(table: "ClassTable", store_scores: bool) -> "datasets.Features":
    """The columns of a dataset. The ids of `classes` are mask ids. `scores` is there only if it is stored."""
    from datasets import ClassLabel, Features, Image, List, Value

    columns = {
        "image": Image(mode="RGB"),
        "mask": Image(mode="I;16" if table.ignore_index > 255 else "L"),
        "reliability": Image(mode="L"),
        "prompt": Value("string"),
        "caption": Value("string"),
        "classes": List(ClassLabel(names=list(table.names))),
        "words": List(Value("string")),
        "seed": Value("int64"),
        "sample_id": Value("string"),
        "peaks": List(Value("float32")),
    }
    if store_scores:
        columns["scores"] = List(List(List(Value("uint8"))))
    return Features(columns)

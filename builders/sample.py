"""One sample: a row of the dataset, and the facts about it that go into the report of the build.

Images are kept as PNG files, as the row stores them, so that each is encoded only once, in the process that
labels it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

    from attn2mask.builders.classes import ClassTable


@dataclass(frozen=True)
class Sample:
    """A row, and the facts about it that are only in the report of the build.

    Attributes:
        row: the columns of `features`, with scores. `classes`, `words`, `peaks` and `scores` are parallel.
        dropped: the reasons why classes of the prompt are not in the row.
        rejected: the reasons why earlier attempts were rejected.
        foreground: the share of pixels that are one of the classes, 0 to 1.
        reliable: the mean reliability, 0 to 1.
    """

    row: dict[str, Any]
    dropped: Sequence[str]
    rejected: Sequence[str]
    foreground: float
    reliable: float

    def to_row(self, store_scores: bool) -> dict[str, Any]:
        """The row as it is stored, with or without its scores."""
        return {name: value for name, value in self.row.items() if store_scores or name != "scores"}


def png_columns(image: bytes, mask: bytes, reliability: bytes) -> dict[str, Any]:
    """The columns of a row that hold images. `image` is an RGB PNG file; `mask` is a PNG file of mask ids
    with 8 bits, or 16 if the table has over 254 names; `reliability` is a PNG file with 8 bits, 0 to 255.
    """
    files = {"image": image, "mask": mask, "reliability": reliability}
    return {name: {"bytes": file, "path": None} for name, file in files.items()}


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

"""One sample: a row of the dataset, and the facts about it that go into the report of the build.

Images are kept as PNG files, as the row stores them, so that each is encoded only once, in the process that
labels it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

    from attn2mask.builders.classes import ClassTable


# The columns that are stored only on request, with the option that asks for each; and the columns with one
# entry for each class.
OPTIONAL = {
    "scores": "store_scores",
    "maps": "store_maps",
    "self_attention": "store_self_attention",
    "overlay": "overlay",
    "reliable": "store_quality",
    "image_hash": "store_quality",
    "clip_score": "score_model",
    "presence": "score_model",
}
PARALLEL = ("classes", "words", "peaks", "scores", "maps", "presence")


@dataclass(frozen=True)
class Sample:
    """A row, and the facts about it that are only in the report of the build.

    Attributes:
        row: the columns of `features`, also those in `OPTIONAL` that were made. Those in `PARALLEL` are
            parallel.
        dropped: the reasons why classes of the prompt are not in the row.
        rejected: the reasons why earlier attempts were rejected.
        untrusted: the reasons why no pixel of classes of the row is reliable.
        foreground: the share of pixels that are one of the classes, 0 to 1.
        reliable: the mean reliability, 0 to 1.
    """

    row: dict[str, Any]
    dropped: Sequence[str]
    rejected: Sequence[str]
    foreground: float
    reliable: float
    untrusted: Sequence[str] = ()

    def to_row(self, stored: Collection[str] = ()) -> dict[str, Any]:
        """The row as it is stored; of the columns in `OPTIONAL` only with those in `stored`."""
        return {name: value for name, value in self.row.items() if name not in OPTIONAL or name in stored}


def image_columns(
    image: bytes, mask: bytes, label: bytes, reliability: bytes, overlay: bytes | None = None
) -> dict[str, Any]:
    """The columns of a row that hold images.

    Args:
        image: an RGB PNG file.
        mask, label: PNG files of mask ids, as `encode_mask` makes them.
        reliability: a PNG file with 8 bits, 0 to 255.
        overlay: an RGB JPEG file; None if the row does not store it.
    """
    files = {"image": image, "mask": mask, "label": label, "reliability": reliability, "overlay": overlay}
    return {name: {"bytes": file, "path": None} for name, file in files.items() if file is not None}


def optional_columns(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns in `OPTIONAL` that are stored, by the options of a build or the identity in its record."""
    return tuple(name for name, option in OPTIONAL.items() if options.get(option))


def features(table: "ClassTable", stored: Collection[str] = ()) -> "datasets.Features":
    """The columns of a dataset, with those of `OPTIONAL` that are in `stored`.

    `label` is the mask with the ignore value at unreliable pixels. The masks of tables with up to 254 names
    have a palette (mode P), whose indices are the ids. The ids of `classes` are mask ids. `overlay` is the
    mask drawn over the image. `scores` are (h, w) uint8 for each class. `maps` are the attention maps of each
    class, from the largest size to the smallest, and `self_attention` is (h * w, h * w) for a size (h, w);
    their values are divided by `peak`, as `scores.pack` does. `reliable` is the share of reliable pixels.
    `image_hash` is that of `image_hash.py`, and `clip_score` and `presence` are those of `score_model.py`.
    """
    from datasets import ClassLabel, Features, Image, List, Value

    packed = {"peak": Value("float32"), "values": List(List(Value("float16")))}
    optional = {
        "scores": List(List(List(Value("uint8")))),
        "maps": List(List(packed)),
        "self_attention": {"height": Value("int32"), "width": Value("int32"), **packed},
        "overlay": Image(mode="RGB"),
        "reliable": Value("float32"),
        "image_hash": Value("string"),
        "clip_score": Value("float32"),
        "presence": List(Value("float32")),
    }
    ids = Image(mode="P" if len(table.names) <= 254 else "I;16")
    columns = {
        "image": Image(mode="RGB"),
        "mask": ids,
        "label": ids,
        "reliability": Image(mode="L"),
        "prompt": Value("string"),
        "caption": Value("string"),
        "classes": List(ClassLabel(names=list(table.names))),
        "words": List(Value("string")),
        "seed": Value("int64"),
        "sample_id": Value("string"),
        "peaks": List(Value("float32")),
    }
    return Features(columns | {name: optional[name] for name in OPTIONAL if name in stored})

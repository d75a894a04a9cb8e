"""The columns of rows by the names that datasets give them, and the names of their classes.

| column | its names | example |
|---|---|---|
| image | image, pixel_values | sidewalk-semantic has pixel_values |
| mask | mask, annotation, label | scene_parse_150 has annotation, sidewalk-semantic has label |
| reliability | reliability | rows of `attn2mask build` |

Of several names, the first whose column may hold images counts. So `mask` wins over `label`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attn2mask.builders.errors import UserError
from attn2mask.builders.provenance import file_beside
from attn2mask.builders.records import read_record
from attn2mask.builders.row_images import encoded_columns, may_hold_images

NAMES = {
    "image": ("image", "pixel_values"),
    "mask": ("mask", "annotation", "label"),
    "reliability": ("reliability",),
}
LABELS = "id2label.json"  # beside rows: the names of their classes by mask id
MOST_CLASSES = 65_535  # ids of a 16-bit mask, without the ignore value


def usual_columns(rows: Any, dataset: str, reliability: bool = False) -> Any:
    """`rows` of `datasets` with the columns `image` and `mask`, with `reliability` also this one if there is
    one, and `sample_id` if there is one. Images stay encoded. `dataset` is what messages call the dataset.

    Raises UserError for rows without images or without masks.
    """
    features = rows.features or {}
    found: dict[str, str] = {}  # the name here, by the name in the dataset
    missing = []
    for column, names in NAMES.items():
        there = [name for name in names if name in features]
        images = [name for name in there if may_hold_images(features[name])]
        if column == "reliability" and not (there and reliability):
            continue
        if not there:
            missing.append(" or ".join(names))
        elif column == "mask" and not images:
            raise UserError(
                f"{dataset}: the column {there[0]} of its rows holds no masks: masks are images of class ids"
                f" in a column {' or '.join(names)}"
            )
        else:
            found[(images or there)[0]] = column
    if missing:
        raise UserError(
            f"{dataset}: its rows have no {' and no '.join(missing)} (only {', '.join(features)})"
        )
    rows = rows.select_columns([*found, *(name for name in ("sample_id",) if name in features)])
    rows = encoded_columns(rows, found, dataset)
    return rows.rename_columns({old: new for old, new in found.items() if old != new})


def names_in(features: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The class names in the column `classes` of rows with these features; None if it has none."""
    import datasets

    labels = getattr(features.get("classes"), "feature", None)
    return tuple(labels.names) if isinstance(labels, datasets.ClassLabel) and labels.names else None


def labels_beside(dataset: str) -> tuple[tuple[str, ...], int] | None:
    """The class names in `id2label.json` of a folder or of a dataset of the Hub, and the mask id of the
    first: 0, or 1 where masks count classes from 1 and the id 0 is ignored. None without this file.

    Raises UserError for a file that is not such a record.
    """
    file = file_beside(dataset, LABELS, kind="dataset")
    return None if file is None else _read_labels(file)


def _read_labels(file: Path) -> tuple[tuple[str, ...], int]:
    labels = read_record(file, dict[str, str])
    if wrong := [key for key in labels if not re.fullmatch("[0-9]{1,5}", key)]:
        raise UserError(f"{file}: its keys must be mask ids, but one is {wrong[0][:60]!r}")
    ids = sorted(map(int, labels))
    if not 0 < len(ids) <= MOST_CLASSES:
        raise UserError(f"{file} names {len(ids)} classes: it must name 1 to {MOST_CLASSES:,}")
    first = min(ids[0], 1)
    if ids != (wanted := [*range(first, first + len(ids))]):
        raise UserError(
            f"{file}: its keys must count from 0, or from 1 if masks do so and the id 0 is ignored, but"
            f" {min({*wanted} - {*ids}, default=ids[-1])} is missing or there twice"
        )
    names = tuple(name for _, name in sorted(labels.items(), key=lambda item: int(item[0])))
    if not all(map(str.strip, names)) or len({*names}) < len(names):
        raise UserError(f"{file}: a class has no name, or the name of another class: give each its own")
    return names, first

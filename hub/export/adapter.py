"""Hands rows to the library Datumaro, which writes most formats (`pip install "attn2mask[export]"`)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from attn2mask.builders.classes import ClassTable, Color
from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.mask_ids import VOID
from attn2mask.hub.export.formats import IGNORED, Format
from attn2mask.hub.export.rows import LabeledImage, parts_of


@dataclass(frozen=True)
class Labels:
    """The labels that a format gets, by their numbers.

    Attributes:
        names, colors: of each label.
        first: the label of mask id 0; -1 if the background has no label.
        least: the least label that is written. Readers of ids take label 0 for pixels without a label.
        ignored: the label of ignored pixels; None if they have none.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    first: int = 0
    least: int = 0
    ignored: int | None = None


def labels_of(table: ClassTable, form: Format) -> Labels:
    """The labels of a table in a format.

    Where a format holds ids, label 0 is the background, or, in a table without one, the ignored pixels.
    Blanks in names are underscores there, because blanks separate the columns of its list of labels.
    """
    names, colors = table.names, tuple(map(tuple, table.palette.tolist()))
    if form.holds == "masks":
        return Labels(names, colors)
    if form.holds in ("things", "boxes"):
        return Labels(names[table.first_id :], colors[table.first_id :], first=-table.first_id)
    names = tuple(name.replace(" ", "_") for name in names)
    if table.background:
        return Labels((*names, IGNORED), (*colors, VOID), least=1, ignored=len(names))
    return Labels((IGNORED, *names), ((0, 0, 0), *colors), first=1, least=1)


def write_with_datumaro(
    rows: Sequence[LabeledImage], table: ClassTable, folder: Path, form: Format, instances: bool = False
) -> None:
    """Write rows in one of Datumaro's formats, their images as PNG files.

    Raises UserError if Datumaro is not installed, and if it cannot write these rows.
    """
    try:
        import datumaro
        from datumaro.components.annotation import AnnotationType, MaskCategories
        from datumaro.components.errors import DatumaroError
        from datumaro.components.progress_reporting import TQDMProgressReporter
    except ImportError as error:
        raise UserError(
            f'--format {form.name} needs the library Datumaro: pip install "attn2mask[export]"'
        ) from error
    labels = labels_of(table, form)
    items = [
        datumaro.DatasetItem(
            row.name,
            subset=row.split,
            # Read again when Datumaro writes the image: the images of a dataset need not fit in memory.
            media=datumaro.Image.from_bytes(partial(getattr, row, "png")),
            annotations=_annotations(row, labels, form, instances),
        )
        for row in tqdm(rows, "reading the masks", unit="row")
    ]
    categories = {
        AnnotationType.label: datumaro.LabelCategories.from_iterable(labels.names),
        AnnotationType.mask: MaskCategories(dict(enumerate(labels.colors))),
    }
    dataset = datumaro.Dataset.from_iterable(items, categories=categories, media_type=datumaro.Image)
    options = {"save_media": True, "image_ext": ".png", "progress_reporter": TQDMProgressReporter()}
    silent = (
        logging.NullHandler()
    )  # otherwise Datumaro's first message adds a handler, which doubles all others
    logging.getLogger().addHandler(silent)
    try:
        dataset.export(str(folder), form.exporter, **options, **form.options)
    except DatumaroError as error:
        raise UserError(
            f"--format {form.name}: Datumaro cannot write the rows: {first_line(error)}"
        ) from error
    finally:
        logging.getLogger().removeHandler(silent)


def _annotations(row: LabeledImage, labels: Labels, form: Format, instances: bool) -> list[Any]:
    """The masks or boxes of a row. Masks are run-length encoded, which takes little memory."""
    import datumaro
    from pycocotools.mask import encode

    ids = row.ids
    parts = [(label + labels.first, mask) for label, mask in parts_of(ids, row.table, instances)]
    parts = [(label, mask) for label, mask in parts if label >= labels.least]
    if labels.ignored is not None and (ignored := ids == row.table.ignore_index).any():
        parts.append((labels.ignored, ignored))
    annotations = []
    for number, (label, mask) in enumerate(parts, 1):
        facts = {"label": label, "id": number, "group": number}
        if form.holds == "boxes":
            annotations.append(datumaro.Bbox(*_box(mask), **facts))
        else:
            annotations.append(datumaro.RleMask(encode(np.asfortranarray(mask, np.uint8)), **facts))
    return annotations


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The left edge, the top edge, the width and the height of the box around a mask, in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]

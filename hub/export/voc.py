"""Writes the layout of PASCAL VOC, which `attn2mask evaluate` and many other tools read.

    JPEGImages/NAME.jpg, SegmentationClass/NAME.png, ImageSets/Segmentation/SPLIT.txt, labelmap.txt

Masks are palette PNG files of ids, with the table's colors; 255 is ignored and has VOC's color of borders.
`labelmap.txt` has the colors of the classes and of ignored pixels, in the form that CVAT has for them.
"""

import io
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from attn2mask.builders.classes import ClassTable, default_color
from attn2mask.builders.files import write_file
from attn2mask.builders.images import encode_indices
from attn2mask.builders.mask_ids import VOID
from attn2mask.hub.export.formats import IGNORED
from attn2mask.hub.export.rows import LabeledImage, parts_of

_IGNORE = 255
_QUALITY = 95  # of JPEG files; their colors keep their resolution


def write_voc(rows: Iterable[LabeledImage], table: ClassTable, folder: Path, instances: bool = False) -> None:
    """Write rows of a table with at most 254 names. With `instances`, SegmentationObject has a number for
    each connected part of a class of things. It ignores the parts of an image after the first 254.
    """
    names: dict[str, list[str]] = defaultdict(list)
    for part in ("JPEGImages", "SegmentationClass", *(["SegmentationObject"] if instances else [])):
        (folder / part).mkdir(parents=True)
    number_colors = np.array([default_color(number) for number in range(256)], np.uint8)
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(table.names)], colors[_IGNORE] = table.palette, VOID
    for row in rows:
        ids = row.ids
        write_file(folder / "JPEGImages" / f"{row.name}.jpg", _jpeg(row.image))
        labels = np.where(ids == table.ignore_index, _IGNORE, ids)
        write_file(folder / "SegmentationClass" / f"{row.name}.png", encode_indices(labels, colors))
        if instances:
            numbers = np.where(ids == table.ignore_index, _IGNORE, 0)
            things = [mask for label, mask in parts_of(ids, table, True) if label >= table.first_id]
            for number, mask in enumerate(things, 1):
                numbers[mask] = min(number, _IGNORE)
            content = encode_indices(numbers, number_colors)
            write_file(folder / "SegmentationObject" / f"{row.name}.png", content)
        names[row.split].append(row.name)
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, of_split in names.items():
        write_file(lists / f"{split}.txt", "".join(f"{name}\n" for name in of_split).encode())
    entries = zip((*table.names, IGNORED), (*table.palette.tolist(), VOID), strict=True)
    lines = [f"{name}:{','.join(map(str, color))}::\n" for name, color in entries]
    write_file(folder / "labelmap.txt", "".join(["# label:color_rgb:parts:actions\n", *lines]).encode())


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()

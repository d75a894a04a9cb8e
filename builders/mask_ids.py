"""Class ids of masks in the encodings that occur: ids as gray levels or palette indices, colors, the label
ids of Cityscapes, and ImageNet-S's RGB.

Nothing is guessed: the ids are the table's, or the colors are, or ValueError is raised.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from PIL import Image

from attn2mask.builders.classes import ClassTable, default_color
from attn2mask.builders.table_reader import IMAGENET_S_IGNORE

# A mask's decoder: ids (H, W) int32 of an opened mask.
Decoder = Callable[[Image.Image, ClassTable], np.ndarray]
_AT_ONCE = 1 << 26  # numbers of a mask in colors that are looked up at once, which takes memory
VOID = default_color(255)  # the color of VOC's ignored borders, in its palette
# Cityscapes' label ids in the order of its train ids; all others up to 33, and 255, are ignored (labels.py of
# cityscapesScripts).
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def binary_warning(ids: Collection[int], table: ClassTable) -> str | None:
    """A warning if masks hold only the `ids` 0 and the ignore value, which often stands for a class."""
    ignore = table.ignore_index
    if set(ids) != {0, ignore}:
        return None
    return (
        f"the masks hold only the ids 0 ({table.names[0]}) and {ignore}, which is ignored, and no other id:"
        f" if {ignore} stands for a class, save the masks with the id of the class"
    )


def ids_of(mask: Image.Image, table: ClassTable) -> np.ndarray:
    """Ids (H, W) int32 of a mask: its gray levels are ids; its colors are the table's; the indices of a
    palette PNG are ids unless its palette holds the table's colors in another order.
    Transparency does not count.

    Raises ValueError for other colors, and if indices and colors name different classes. Gray levels are not
    checked against the table.
    """
    if mask.mode == "P":
        return _palette_ids(mask, table)
    if mask.mode in ("RGB", "RGBA"):
        return color_ids(mask, _colors_of(table))
    if mask.mode == "LA":
        mask = mask.convert("L")
    if mask.mode in ("1", "L", "I") or mask.mode.startswith("I;16"):
        return np.asarray(mask).astype(np.int32)
    raise ValueError(f"Pillow's mode {mask.mode} is not a mask's mode")


def index_ids(mask: Image.Image, table: ClassTable) -> np.ndarray:
    """Ids (H, W) int32 of a mask. The indices of its palette are the ids, and its colors have no effect. A
    mask without a palette is read as by `ids_of`.
    """
    return np.asarray(mask).astype(np.int32) if mask.mode == "P" else ids_of(mask, table)


def decoder_of(column: Any) -> Decoder:
    """The decoder of the masks in a column of rows, by its feature: `Image(mode="P")`, which builds write,
    says that palette indices are ids. So the colors of a class table need not be known.
    """
    return index_ids if getattr(column, "mode", None) == "P" else ids_of


def color_ids(mask: Image.Image, ids: Mapping[tuple[int, ...], int]) -> np.ndarray:
    """Ids (H, W) int32 of a mask by its colors. Raises ValueError for a color without an id."""
    return _look_up(np.asarray(mask.convert("RGB")), ids)


def _colors_of(table: ClassTable) -> dict[tuple[int, ...], int]:
    """The ids of the table by its palette; `VOID` has the ignore value."""
    palette = [tuple(color) for color in table.palette.tolist()]
    if len(set(palette)) < len(palette):
        raise ValueError("it has colors, but two classes of the table have the same color")
    return {VOID: table.ignore_index} | {color: i for i, color in enumerate(palette)}


def _look_up(colors: np.ndarray, ids: Mapping[tuple[int, ...], int]) -> np.ndarray:
    """RGB (..., 3) uint8 -> ids (...) int32."""
    if colors.size > _AT_ONCE and len(colors) > 1:
        half = len(colors) // 2
        return np.concatenate([_look_up(part, ids) for part in (colors[:half], colors[half:])])
    codes, places = np.unique(colors.astype(np.int64) @ (1 << 16, 1 << 8, 1), return_inverse=True)
    found = [(int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in codes]
    for color in found:
        if color not in ids:
            raise ValueError(f"the color {color} is not in the table")
    return np.array([ids[color] for color in found], np.int32)[places].reshape(colors.shape[:-1])


def _palette_ids(mask: Image.Image, table: ClassTable) -> np.ndarray:
    """The ids of a palette PNG.

    VOC's own masks and many tools store ids as indices, with VOC's colors or the table's. Image editors keep
    the colors but sort the indices in any order.
    """
    indices = np.asarray(mask)
    used = np.flatnonzero(mask.histogram())
    palette = np.zeros((256, 3), np.uint8)
    listed = np.array(mask.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette[: len(listed)] = listed
    of_classes = used[used != table.ignore_index]
    colors = palette[of_classes]
    conventions = [np.array([default_color(i) for i in range(256)]), np.arange(256)[:, None].repeat(3, 1)]
    if of_classes.size == 0 or (
        of_classes.max() < len(table.names) and (colors == table.palette[of_classes]).all()
    ):
        return indices.astype(np.int32)
    by_index = any((colors == convention[of_classes]).all() for convention in conventions)
    try:
        by_color = _look_up(palette[used], _colors_of(table))
    except ValueError:
        if not by_index:
            raise
        return indices.astype(np.int32)
    if by_index and (by_color != used).any():
        raise ValueError("its palette's indices and its colors name different classes of the table")
    lookup = np.zeros(256, np.int32)
    lookup[used] = by_color
    return lookup[indices]


def reduced_ids(mask: Image.Image, table: ClassTable) -> np.ndarray:
    """Ids (H, W) int32 of a mask that counts classes from 1, as those of ADE20K: id k is class k - 1, and 0
    is ignored. Raises ValueError for a mask without gray levels.
    """
    if mask.mode not in ("1", "L", "I") and not mask.mode.startswith("I;16"):
        raise ValueError(f"its ids should be gray levels that count from 1, but it is of mode {mask.mode}")
    ids = np.asarray(mask).astype(np.int32)
    return np.where((ids == 0) | (ids == table.ignore_index), table.ignore_index, ids - 1).astype(np.int32)


def cityscapes_ids(mask: Image.Image, table: ClassTable) -> np.ndarray:
    """Ids (H, W) int32 of a mask with Cityscapes' label ids. Raises ValueError for anything else."""
    lookup = np.full(256, -1, np.int32)
    lookup[[*range(34), 255]] = table.ignore_index
    lookup[list(CITYSCAPES_IDS)] = range(len(CITYSCAPES_IDS))
    labels = np.asarray(mask)
    if mask.mode != "L" or (lookup[labels] < 0).any():
        raise ValueError("it is not a gray image of Cityscapes' label ids, 0 to 33")
    return lookup[labels]


def imagenet_s_ids(mask: Image.Image, table: ClassTable) -> np.ndarray:
    """Ids (H, W) int32 of a mask of ImageNet-S. Raises ValueError for anything else."""
    if mask.mode != "RGB":
        raise ValueError(
            f"ImageNet-S stores an id as R + 256 * G of an RGB image, but this is of mode {mask.mode}"
        )
    red, green, blue = np.moveaxis(np.asarray(mask).astype(np.int32), -1, 0)
    if blue.any():
        raise ValueError("ImageNet-S stores an id as R + 256 * G, but this mask has blue")
    ids = red + 256 * green
    return np.where(ids == IMAGENET_S_IGNORE, table.ignore_index, ids)

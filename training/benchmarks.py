"""Pictures with masks to evaluate on, in the layouts that they come in, behind one interface.

    pictures = open_pictures("VOCdevkit/VOC2012", "val", load_table("voc"))
    pictures[0].image, pictures[0].target  # (H, W, 3) uint8; (H, W) int32, ids of the table

| layout | recognized by | splits |
|---|---|---|
| VOCdevkit | JPEGImages, SegmentationClass | ImageSets/Segmentation/SPLIT.txt; val |
| Cityscapes | leftImg8bit, gtFine | leftImg8bit/SPLIT; val |
| ImageNet-S | SPLIT-segmentation beside SPLIT | validation |
| folder | images beside masks or labels, equal stems | SPLIT/images or images/SPLIT, or none |
| rows | Parquet files with image and mask, local or on the Hub | as `load_dataset` finds them; train |

Nothing is guessed about a mask: its ids are the table's, or its colors are, or it is refused by name.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from attn2mask.builders.classes import ClassTable, default_color
from attn2mask.builders.errors import UserError
from attn2mask.builders.shards import BuildDirectory
from attn2mask.builders.table_reader import IMAGENET_S_IGNORE, TABLES, load_table

if TYPE_CHECKING:
    import datasets

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
VOID = default_color(255)  # the color of VOC's ignored borders, in its palette
# Cityscapes' label ids in the order of its train ids; all others up to 33, and 255, are ignored (labels.py of
# cityscapesScripts).
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
IMAGENET_S = [name for name in TABLES if name.startswith("imagenet_s_")]


@dataclass(frozen=True)
class Example:
    """A picture (H, W, 3) uint8 RGB and its mask (H, W) int32 of ids of the table, its `ignore_index` where
    nothing is measured.
    """

    name: str
    image: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class Files(Sequence[Example]):
    """Examples in files: (name, picture, mask), which are read when they are asked for. `decode` makes ids of
    an opened mask.
    """

    entries: tuple[tuple[str, Path, Path], ...]
    table: ClassTable
    decode: Callable[[Image.Image, ClassTable], np.ndarray]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Example:
        """Raises UserError naming the file whose content can't be read or does not fit."""
        name, picture, mask = self.entries[index]
        return _example(name, (picture, str(picture)), (mask, str(mask)), self.table, self.decode)


@dataclass(frozen=True)
class Rows(Sequence[Example]):
    """Examples in rows with an `image` and a `mask`, as `attn2mask build` makes them."""

    rows: datasets.Dataset
    table: ClassTable
    source: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        """Raises UserError naming the row whose content can't be read or does not fit."""
        row = self.rows[index]
        name = row.get("sample_id") or f"row {index}"
        picture, mask = (
            (stored_file(row[column]), f"{self.source}, {name}: {column}") for column in ("image", "mask")
        )
        return _example(name, picture, mask, self.table, ids_of)


def open_pictures(path: str, split: str | None, table: ClassTable) -> Sequence[Example]:
    """The pictures of a split, by a path or a name on the Hub; without a split, the one that the layout is
    measured on.

    Raises UserError where there is no such thing, no such split, a picture without its mask, or the layout's
    classes are not the table's. What is in a mask is checked when it is read.
    """
    root = Path(path)
    for layout in (_voc, _cityscapes, _imagenet_s, _folder, _rows):
        if (found := layout(root, split, table)) is not None:
            if not len(found):
                raise UserError(f"{path} holds no picture" + (f" of split {split!r}" if split else ""))
            return found
    if not root.exists():
        raise UserError(f"no dataset {path}: there is no such folder")
    raise UserError(
        f"{path} is in no layout that can be read: VOCdevkit, Cityscapes, ImageNet-S, images/ beside masks/, "
        "or Parquet rows"
    )


def recorded_table(path: str) -> ClassTable | None:
    """The class table that a directory of `attn2mask build` was made with; None for anything else."""
    return BuildDirectory(Path(path)).table if (Path(path) / "build.json").is_file() else None


def hub_name(given: str | None) -> str | None:
    """`given` where it names a repository of the Hub (owner/name); None for a path here."""
    return given if given and not Path(given).exists() and _may_be_on_hub(Path(given)) else None


def ids_of(mask: Image.Image, table: ClassTable) -> np.ndarray:
    """Ids (H, W) int32 of a mask: grey levels are ids; colors are the table's; the indices of a palette PNG
    are ids where its palette says nothing else.

    Raises ValueError for other colors, and where indices and colors name different classes. Grey levels
    are not held against the table.
    """
    if mask.mode == "P":
        return _palette_ids(mask, table)
    if mask.mode in ("RGB", "RGBA"):
        return _color_ids(np.asarray(mask.convert("RGB")), table)
    if mask.mode in ("1", "L", "I", "I;16"):
        return np.asarray(mask).astype(np.int32)
    raise ValueError(f"a mask can't be of Pillow's mode {mask.mode}")


def _color_ids(colors: np.ndarray, table: ClassTable) -> np.ndarray:
    """RGB (..., 3) uint8 -> ids (...) int32 by the table's palette; VOC's color of borders is ignored."""
    palette = [tuple(color) for color in table.palette.tolist()]
    if len(set(palette)) < len(palette):
        raise ValueError("it has colors, but two classes of the table share one")
    ids = {VOID: table.ignore_index} | {color: i for i, color in enumerate(palette)}
    codes, places = np.unique(colors.astype(np.int64) @ (1 << 16, 1 << 8, 1), return_inverse=True)
    found = [(int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in codes]
    for color in found:
        if color not in ids:
            raise ValueError(f"the color {color} is none of the table's")
    return np.array([ids[color] for color in found], np.int32)[places].reshape(colors.shape[:-1])


def _palette_ids(mask: Image.Image, table: ClassTable) -> np.ndarray:
    """The ids of a palette PNG.

    VOC's own masks, and tools after it, keep ids as indices and give them VOC's colors or the table's; a
    painting program keeps the colors, and sorts the indices as it likes.
    """
    indices = np.asarray(mask)
    used = np.unique(indices)
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
        by_color = _color_ids(palette[used], table)
    except ValueError:
        if not by_index:
            raise
        return indices.astype(np.int32)
    if by_index and (by_color != used).any():
        raise ValueError("its palette's indices and its colors name different classes of the table")
    lookup = np.zeros(256, np.int32)
    lookup[used] = by_color
    return lookup[indices]


def _cityscapes_ids(mask: Image.Image, table: ClassTable) -> np.ndarray:
    lookup = np.full(256, -1, np.int32)
    lookup[[*range(34), 255]] = table.ignore_index
    lookup[list(CITYSCAPES_IDS)] = range(len(CITYSCAPES_IDS))
    labels = np.asarray(mask)
    if mask.mode != "L" or (lookup[labels] < 0).any():
        raise ValueError("it is no grey picture of Cityscapes' label ids, 0 to 33")
    return lookup[labels]


def _imagenet_s_ids(mask: Image.Image, table: ClassTable) -> np.ndarray:
    if mask.mode != "RGB":
        raise ValueError(f"ImageNet-S keeps an id as R + 256 * G of an RGB picture, not in mode {mask.mode}")
    red, green, blue = np.moveaxis(np.asarray(mask).astype(np.int32), -1, 0)
    if blue.any():
        raise ValueError("ImageNet-S keeps an id as R + 256 * G, but there is blue in it")
    ids = red + 256 * green
    return np.where(ids == IMAGENET_S_IGNORE, table.ignore_index, ids)


def _voc(root: Path, split: str | None, table: ClassTable) -> Files | None:
    folders = [root, root / "VOC2012", *sorted(root.glob("VOC*"))]
    root = next((folder for folder in folders if (folder / "JPEGImages").is_dir()), None)
    if root is None:
        return None
    _check_names(table, load_table("voc").names, f"{root} is in VOC's layout, whose classes are VOC's")
    lists = root / "ImageSets" / "Segmentation"
    file = lists / f"{split or 'val'}.txt"
    if not file.is_file():
        raise _no_split(root, split or "val", (path.stem for path in lists.glob("*.txt")))
    names = file.read_text(errors="replace").split()
    pictures, masks = root / "JPEGImages", root / "SegmentationClass"
    return _files([(name, pictures / f"{name}.jpg", masks / f"{name}.png") for name in names], table)


def _cityscapes(root: Path, split: str | None, table: ClassTable) -> Files | None:
    pictures = root / "leftImg8bit"
    if not pictures.is_dir():
        return None
    _check_names(table, load_table("cityscapes").names, f"{root} is in Cityscapes' layout")
    split = split or "val"
    if not (pictures / split).is_dir():
        raise _no_split(root, split, _folders(pictures))
    decode, ending = _cityscapes_ids, "_gtFine_labelIds.png"
    if not any((root / "gtFine" / split).glob(f"*/*{ending}")):
        decode, ending = ids_of, "_gtFine_labelTrainIds.png"
    entries = []
    for picture in sorted((pictures / split).glob("*/*_leftImg8bit.png")):
        name = picture.stem.removesuffix("_leftImg8bit")
        entries.append((name, picture, root / "gtFine" / split / picture.parent.name / f"{name}{ending}"))
    return _files(entries, table, decode)


def _imagenet_s(root: Path, split: str | None, table: ClassTable) -> Files | None:
    splits = [path.name.removesuffix("-segmentation") for path in root.glob("*-segmentation")]
    if not splits:
        return None
    split = "validation" if split in (None, "val") else split
    if split not in splits:
        raise _no_split(root, split, splits)
    # One folder a class: their number tells the sets apart, whose ids differ.
    by_folders = f"imagenet_s_{len(_folders(root / split))}"
    own = next((name for name in (by_folders, table.name) if name in IMAGENET_S), IMAGENET_S[-1])
    _check_names(table, load_table(own).names, f"{root} holds the classes of {own}")
    pictures = sorted(path for path in (root / split).rglob("*") if path.suffix.lower() in PICTURES)
    entries = []
    for picture in pictures:
        inner = picture.relative_to(root / split)
        mask = root / f"{split}-segmentation" / inner.with_suffix(".png")
        entries.append((inner.with_suffix("").as_posix(), picture, mask))
    return _files(entries, table, _imagenet_s_ids)


def _folder(root: Path, split: str | None, table: ClassTable) -> Files | None:
    for part, kind in itertools.product((split,) if split else ("", "val"), ("masks", "labels")):
        inner = ((root / part / "images", root / part / kind), (root / "images" / part, root / kind / part))
        for pictures, masks in inner:
            if pictures.is_dir() and masks.is_dir():
                found = sorted(path for path in pictures.iterdir() if path.suffix.lower() in PICTURES)
                if found or split:
                    return _files([(path.stem, path, masks / f"{path.stem}.png") for path in found], table)
    splits = {path.parent.name for path in root.glob("*/images")} | set(_folders(root / "images"))
    if splits or (root / "images").is_dir():
        raise _no_split(root, split or "val", splits)
    return None


def _rows(root: Path, split: str | None, table: ClassTable) -> Rows | None:
    local = next(root.rglob("*.parquet"), None) is not None
    if not local and (root.exists() or not _may_be_on_hub(root)):
        return None
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    split = split or "train"
    try:
        if not (local or datasets.config.HF_HUB_OFFLINE):
            HfApi().dataset_info(str(root))  # load_dataset would ask for half a minute where there is no Hub
        rows = datasets.load_dataset(str(root), split=split)
    except (OSError, ValueError, HTTPError, datasets.exceptions.DatasetsError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        where = "" if local else "; there is no such folder, nor does the Hub give it"
        raise UserError(f"dataset {root}, split {split!r}, can't be loaded: {lines[0]}{where}") from error
    if missing := {"image", "mask"} - set(rows.column_names):
        raise UserError(
            f"dataset {root} has no column {' and '.join(sorted(missing))}: evaluation needs both"
        )
    recorded = recorded_table(str(root))
    if recorded is not None:
        _check_names(table, recorded.names, f"{root} was built for {recorded.name}")
    elif isinstance(getattr(rows.features.get("classes"), "feature", None), datasets.ClassLabel):
        _check_names(table, tuple(rows.features["classes"].feature.names), f"{root} names its classes")
    for column in ("image", "mask"):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return Rows(rows, table, str(root))


def _files(
    entries: Iterable[tuple[str, Path, Path]],
    table: ClassTable,
    decode: Callable[[Image.Image, ClassTable], np.ndarray] = ids_of,
) -> Files:
    """Raises UserError where a file of the entries is not there."""
    entries = tuple(entries)
    missing = [path for _, *paths in entries for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is missing, one of {len(missing)} files that belong to the split")
    return Files(entries, table, decode)


def _example(
    name: str,
    picture: tuple[Path | str | io.BytesIO, str],
    mask: tuple[Path | str | io.BytesIO, str],
    table: ClassTable,
    decode: Callable[[Image.Image, ClassTable], np.ndarray],
) -> Example:
    """Read a (file, how to call it) of a picture and of a mask, and check one against the other and the
    table.
    """
    image, labels = read_picture(*picture), read_picture(*mask)
    if image.size != labels.size:
        sizes = ["{} x {}".format(*found.size) for found in (image, labels)]
        raise UserError(f"{picture[1]} has {sizes[0]} pixels, but its mask {mask[1]} has {sizes[1]}")
    try:
        target = decode(labels, table)
    except ValueError as error:
        raise UserError(f"mask {mask[1]}: {error}") from error
    outside = (target < 0) | ((target >= len(table.names)) & (target != table.ignore_index))
    if outside.any():
        raise UserError(
            f"mask {mask[1]}: id {target[outside][0]} is neither one of the {len(table.names)} ids of "
            f"{table.name} nor {table.ignore_index}, to be ignored"
        )
    return Example(name, np.array(image.convert("RGB")), target)


def stored_file(cell: dict[str, Any] | None) -> io.BytesIO | str:
    """What holds a row's picture, as Hugging Face keeps it: {"bytes", "path"}. Without either it is empty."""
    cell = cell or {}
    content = cell.get("bytes") or b""
    return cell["path"] if cell.get("path") and not content else io.BytesIO(content)


def read_picture(file: Path | str | io.BytesIO, called: str) -> Image.Image:
    """A picture, read to its end. Raises UserError, which tells how it is `called`, where that can't be."""
    try:
        picture = Image.open(file)
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is no picture, or a broken one"
        raise UserError(f"{called} can't be read: {reason}") from error
    return picture


def _check_names(table: ClassTable, names: tuple[str, ...], why: str) -> None:
    if table.names != names:
        raise UserError(f"{why}, but the table is {table.name}: {difference(table.names, names)}")


def difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Where two lists of class names, which are not equal, part; for one line of an error."""
    if len(ours) != len(theirs):
        return f"{len(ours)} names against {len(theirs)}"
    first = next(i for i, (own, other) in enumerate(zip(ours, theirs, strict=True)) if own != other)
    return f"id {first} is {ours[first]!r} against {theirs[first]!r}"


def _may_be_on_hub(root: Path) -> bool:
    """Whether a path that does not exist looks like org/name, and not like a mistyped one."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", root.as_posix()) is not None and not root.parent.is_dir()


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []


def _no_split(root: Path, split: str, known: Iterable[str]) -> UserError:
    names = ", ".join(sorted(known))
    return UserError(f"{root} has no split {split!r}: " + (f"it has {names}" if names else "it has none"))

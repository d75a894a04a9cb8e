"""Images with masks to evaluate on: VOC, Cityscapes, ImageNet-S, folders and rows, behind one interface.

    images = open_images("VOCdevkit/VOC2012", "val", load_table("voc"))
    images[0].image, images[0].target  # (H, W, 3) uint8; (H, W) int32, ids of the table

| layout | recognized by | splits |
|---|---|---|
| VOCdevkit | JPEGImages, SegmentationClass (see `voc_layout.py`) | ImageSets/Segmentation/SPLIT.txt; val |
| Cityscapes | leftImg8bit, gtFine | leftImg8bit/SPLIT; val |
| ImageNet-S | SPLIT-segmentation beside SPLIT | validation |
| folder | images beside masks or labels, equal stems | SPLIT/images or images/SPLIT, or none |
| rows | Parquet or metadata.jsonl or .csv, local or Hub | as `load_dataset` finds them; train |

Nothing is guessed about a mask (see `mask_ids.py`): a mask that does not fit the table is refused by name.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.files import refuse_pattern
from attn2mask.builders.images import image_files, read_image, read_mask, warn_left_out
from attn2mask.builders.mask_ids import (
    Decoder,
    cityscapes_ids,
    color_ids,
    decoder_of,
    ids_of,
    imagenet_s_ids,
    reduced_ids,
)
from attn2mask.builders.row_images import image_content
from attn2mask.builders.row_reader import directory_of, load_rows, whole_shards
from attn2mask.builders.shards import BuildDirectory, origin_of
from attn2mask.builders.table_reader import TABLES, bare_table, load_table
from attn2mask.training.row_columns import LABELS, labels_beside, names_in, usual_columns
from attn2mask.training.voc_layout import (
    composed,
    files_by_name,
    find_root,
    names_classes,
    own_colors,
    voc_entries,
)

ROW_FILES = ("*.parquet", "metadata.jsonl", "metadata.csv")  # of folders that `load_dataset` reads
IMAGENET_S = [name for name in TABLES if name.startswith("imagenet_s_")]
# An image or a mask as `read_image` takes it, and its name in messages.
Source = tuple[Path | bytes, str]


@dataclass(frozen=True)
class Example:
    """An image (H, W, 3) uint8 RGB and its mask (H, W) int32, in ids of the table or its ignore value."""

    name: str
    image: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class Examples(Sequence[Example]):
    """Examples that are read on access, as many as `size`. `find` gives the name of one, and its image and
    mask.
    """

    size: int
    find: Callable[[int], tuple[str, Source, Source]]
    table: ClassTable
    decode: Decoder = ids_of

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        """Raises UserError that names the file or the row if it cannot be read or does not fit."""
        name, (image_source, image_name), (mask_source, mask_name) = self.find(index)
        image = read_image(image_source, image_name)
        target = read_mask(mask_source, f"mask {mask_name}", self.table, self.decode)
        if image.shape[:2] != target.shape:
            sizes = [f"{array.shape[1]} x {array.shape[0]}" for array in (image, target)]
            raise UserError(f"{image_name} has {sizes[0]} pixels, but its mask {mask_name} has {sizes[1]}")
        return Example(name, image, target)


# Finds the examples of a split in a folder; None if it has another layout.
Layout = Callable[[Path, str | None, ClassTable], Examples | None]


def open_images(
    path: str,
    split: str | None,
    table: ClassTable,
    reduce_labels: bool = False,
    allow_incomplete: bool = False,
    verify: bool = True,
) -> Sequence[Example]:
    """The examples of a split, by a path or a name on the Hub. The default split is the layout's usual one
    for evaluation. With `reduce_labels`, masks whose layout does not say what their ids are count classes
    from 1 (see `reduced_ids`). `allow_incomplete` and `verify` are for builds (see `row_reader`).

    Raises UserError for a path without a known layout, a split that does not exist, an image without its
    mask, and a layout with other classes than the table's. The content of a mask is checked when it is read.
    """
    root = Path(path)
    decode = reduced_ids if reduce_labels else ids_of
    rows = partial(_row_examples, decode=decode, allow_incomplete=allow_incomplete, verify=verify)
    layouts: list[Layout] = [_voc, _cityscapes, _imagenet_s]
    layouts += [partial(_folder, decode=decode), rows]
    for layout in layouts:
        if (found := layout(root, split, table)) is not None:
            if not len(found):
                raise UserError(f"{path} holds no image" + (f" of split {split!r}" if split else ""))
            return found
    if not root.exists():
        raise UserError(f"no dataset {path}: there is no such folder")
    raise UserError(
        f"{path} has no known layout: VOCdevkit, Cityscapes, ImageNet-S, images/ beside masks/, "
        "or Parquet rows"
    )


def recorded_table(path: str) -> ClassTable | None:
    """The class table of a directory that `attn2mask build` made; None for anything else."""
    return BuildDirectory(Path(path)).table if (Path(path) / "build.json").is_file() else None


def named_classes(path: str, split: str | None, allow_incomplete: bool = False) -> ClassTable | None:
    """The class table of images whose layout or rows name their classes; None for others. Raises UserError
    for rows that cannot be loaded. `allow_incomplete` is that of `row_reader`.
    """
    root = Path(path)
    if (voc := find_root(root)) is not None:
        return None if names_classes(voc) else load_table("voc")
    if (root / "leftImg8bit").is_dir():
        return load_table("cityscapes")
    if splits := sorted(root.glob("*-segmentation")):
        name = f"imagenet_s_{len(_folders(root / splits[0].name.removesuffix('-segmentation')))}"
        return load_table(name) if name in IMAGENET_S else None
    if (directory := directory_of(root)) is not None:  # the hashes are compared when it is opened
        first, *_ = whole_shards(directory, allow_incomplete, verify=False)
        names = origin_of(directory.shard_file(first)).names
        return bare_table(root.name, names) if names else None
    rows = _rows(root, split, allow_incomplete)
    if rows is None:
        return None
    names = names_in(rows.features)
    if names is None:
        names, _ = labels_beside(path) or (None, 0)
    return bare_table(root.name, names) if names else None


def hub_name(name: str | None) -> str | None:
    """`name` if it names a repository of the Hub (owner/name); None for a path on this machine."""
    return name if name and not Path(name).exists() and _may_be_on_hub(Path(name)) else None


def _voc(root: Path, split: str | None, table: ClassTable) -> Examples | None:
    root = find_root(root)
    if root is None:
        return None
    colors = own_colors(root, table)
    if colors is None:
        why = f"{root} is in VOC's layout without labelmap.txt or class_names.txt, whose classes are VOC's"
        _check_names(table, load_table("voc").names, why)
    entries = voc_entries(root, split)
    if entries is None:
        lists = (root / "ImageSets" / "Segmentation").glob("*.txt")
        raise _no_split(root, split or "val", (path.stem for path in lists))
    decode = ids_of if colors is None else partial(_export_ids, colors)
    return _file_examples(entries, table, decode)


def _export_ids(colors: dict[tuple[int, ...], int], mask: Image.Image, table: ClassTable) -> np.ndarray:
    """The ids of a mask of an export by its colors. A gray mask has ids, which are those of the table."""
    return color_ids(mask, colors) if mask.mode in ("P", "RGB", "RGBA") else ids_of(mask, table)


def _cityscapes(root: Path, split: str | None, table: ClassTable) -> Examples | None:
    images = root / "leftImg8bit"
    if not images.is_dir():
        return None
    _check_names(table, load_table("cityscapes").names, f"{root} is in Cityscapes' layout")
    split = split or "val"
    if not (images / split).is_dir():
        raise _no_split(root, split, _folders(images))
    decode, ending = cityscapes_ids, "_gtFine_labelIds.png"
    if not any((root / "gtFine" / split).glob(f"*/*{ending}")):
        decode, ending = ids_of, "_gtFine_labelTrainIds.png"
    entries = []
    for image in sorted((images / split).glob("*/*_leftImg8bit.png")):
        name = image.stem.removesuffix("_leftImg8bit")
        entries.append((name, image, root / "gtFine" / split / image.parent.name / f"{name}{ending}"))
    used = {image for _, image, _ in entries}
    others = [file for file in image_files(images / split) if file not in used]
    warn_left_out(images / split, others, "images that are not named CITY/NAME_leftImg8bit.png")
    return _file_examples(entries, table, decode)


def _imagenet_s(root: Path, split: str | None, table: ClassTable) -> Examples | None:
    splits = [path.name.removesuffix("-segmentation") for path in root.glob("*-segmentation")]
    if not splits:
        return None
    split = "validation" if split in (None, "val") else split
    if split not in splits:
        raise _no_split(root, split, splits)
    # There is one folder for each class. Their number tells the sets apart, which have other ids.
    by_folders = f"imagenet_s_{len(_folders(root / split))}"
    own = next((name for name in (by_folders, table.name) if name in IMAGENET_S), IMAGENET_S[-1])
    _check_names(table, load_table(own).names, f"{root} holds the classes of {own}")
    images = image_files(root / split)
    entries = []
    for image in images:
        inner = image.relative_to(root / split)
        mask = root / f"{split}-segmentation" / inner.with_suffix(".png")
        entries.append((inner.with_suffix("").as_posix(), image, mask))
    return _file_examples(entries, table, imagenet_s_ids)


def _folder(root: Path, split: str | None, table: ClassTable, decode: Decoder = ids_of) -> Examples | None:
    for part, kind in itertools.product((split,) if split else ("", "val"), ("masks", "labels")):
        inner = ((root / part / "images", root / part / kind), (root / "images" / part, root / kind / part))
        for images, masks in inner:
            if images.is_dir() and masks.is_dir():
                found, of_images = image_files(images, "*"), files_by_name(masks)
                if found or split:
                    inner_files = image_files(images, "*/**/*")
                    warn_left_out(images, inner_files, "images in inner folders")
                    names = {composed(path.stem) for path in found}
                    without = [path for name, path in of_images.items() if name not in names]
                    warn_left_out(masks, without, "masks without an image")
                    entries = [
                        (path.stem, path, of_images.get(composed(path.stem), masks / f"{path.stem}.png"))
                        for path in found
                    ]
                    return _file_examples(entries, table, decode)
    if any((root / name).is_file() for name in ROW_FILES[1:]):
        return None  # images/ may be the images of rows
    splits = {path.parent.name for path in root.glob("*/images")} | set(_folders(root / "images"))
    if splits or (root / "images").is_dir():
        raise _no_split(root, split or "val", splits)
    return None


def _rows(root: Path, split: str | None, allow_incomplete: bool = False, verify: bool = True) -> Any:
    """The rows of a directory with `ROW_FILES` or of a dataset of the Hub; None for anything else."""
    local = directory_of(root) is not None or any(next(root.rglob(name), None) for name in ROW_FILES)
    if not local and (root.exists() or not _may_be_on_hub(root)):
        return None
    if local:
        refuse_pattern(root, f"dataset {root}")
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    split = split or "train"
    try:
        if not (local or datasets.config.HF_HUB_OFFLINE):
            HfApi().dataset_info(str(root))  # without a Hub, load_dataset would retry for half a minute
        return load_rows(str(root), split, False, allow_incomplete, verify)
    except (OSError, ValueError, HTTPError, datasets.exceptions.DatasetsError) as error:
        where = "" if local else "; there is no such folder, and it cannot be loaded from the Hub"
        reason = f"{first_line(error)}{where}"
        raise UserError(f"dataset {root}, split {split!r}, cannot be loaded: {reason}") from error


def _row_examples(
    root: Path,
    split: str | None,
    table: ClassTable,
    decode: Decoder = ids_of,
    allow_incomplete: bool = False,
    verify: bool = True,
) -> Examples | None:
    rows = _rows(root, split, allow_incomplete, verify)
    if rows is None:
        return None
    names = names_in(rows.features)
    # Without stored attention, which would take longer to read than the images.
    rows = usual_columns(rows, f"dataset {root}")
    recorded = recorded_table(str(root))
    if recorded is not None:
        decode = decoder_of(rows.features["mask"])
        _check_names(table, recorded.names, f"{root} was built for {recorded.name}")
    elif names:
        decode = decoder_of(rows.features["mask"])
        _check_names(table, names, f"{root} names its classes")
    elif labels := labels_beside(str(root)):
        names, first = labels
        decode = reduced_ids if first else decode
        _check_names(table, names, f"{root} names its classes in {LABELS}")

    def find(index: int) -> tuple[str, Source, Source]:
        row = rows[index]
        name = str(row.get("sample_id") or f"row {index}")
        image, mask = (
            (image_content(row[column], where, root), where)
            for column in ("image", "mask")
            for where in [f"{root}, {name}: {column}"]
        )
        return name, image, mask

    return Examples(len(rows), find, table, decode)


def _file_examples(
    entries: Sequence[tuple[str, Path, Path]], table: ClassTable, decode: Decoder = ids_of
) -> Examples:
    """Examples of (name, image file, mask file). Raises UserError if a file does not exist."""
    missing = [path for _, *paths in entries for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is missing; the split lacks {len(missing)} files")

    def find(index: int) -> tuple[str, Source, Source]:
        name, image, mask = entries[index]
        return name, (image, str(image)), (mask, str(mask))

    return Examples(len(entries), find, table, decode)


def _check_names(table: ClassTable, names: tuple[str, ...], why: str) -> None:
    if table.names != names:
        raise UserError(f"{why}, but the table is {table.name}: {difference(table.names, names)}")


def difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """The first difference of two lists of class names, which are not equal, for a message."""
    pairs = enumerate(itertools.zip_longest(ours, theirs))
    first, pair = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
    own, other = ("no class" if name is None else repr(name) for name in pair)
    counts = f"{len(ours)} names against {len(theirs)}, " if len(ours) != len(theirs) else ""
    return f"{counts}id {first} is {own} against {other}"


def _may_be_on_hub(root: Path) -> bool:
    """Whether a path that does not exist looks like owner/name, and not like a mistyped path."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", root.as_posix()) is not None and not root.parent.is_dir()


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []


def _no_split(root: Path, split: str, known: Iterable[str]) -> UserError:
    names = ", ".join(sorted(known))
    return UserError(f"{root} has no split {split!r}: " + (f"it has {names}" if names else "it has none"))

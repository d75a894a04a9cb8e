"""The layout of VOC, as the challenge has it and as CVAT and labelme export it.

| part | VOC | CVAT | labelme |
|---|---|---|---|
| classes | VOC's | labelmap.txt | class_names.txt |
| lists in ImageSets/Segmentation | names | names | none |
| masks | SegmentationClass | SegmentationClass | SegmentationClass or SegmentationClassPNG |

Lists are read line by line: a line is the name of an image, with or without its ending, or the paths of an
image and of its mask. Names may hold blanks.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from unicodedata import normalize

from attn2mask.builders.classes import ClassTable, default_color
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import is_hidden
from attn2mask.builders.images import SUFFIXES, image_files
from attn2mask.builders.mask_ids import VOID

MASK_FOLDERS = ("SegmentationClass", "SegmentationClassPNG")
_BACKGROUND = ("background", "_background_")
_IGNORED = "__ignore__"


def find_root(folder: Path) -> Path | None:
    """The folder in VOC's layout: `folder` itself or one inside it; None if there is none."""
    folders = [folder, folder / "VOC2012", *sorted(folder.glob("VOC*"))]
    return next((place for place in folders if (place / "JPEGImages").is_dir()), None)


def own_colors(root: Path, table: ClassTable) -> dict[tuple[int, ...], int] | None:
    """The mask ids of `table` by the colors of an export, whose classes the export names. None if it names
    none: then they are VOC's.

    Raises UserError if the classes are not those of the table, and for a file that cannot be read.
    """
    colors = _exported_classes(root)
    if colors is None:
        return None
    ids: dict[tuple[int, ...], int] = {VOID: table.ignore_index}
    named = {name: k for k, name in enumerate(table.names)}
    for name, color in colors.items():
        if name in _BACKGROUND and table.background:
            ids[color] = 0
        elif name in named:
            ids[color] = named[name]
        elif name in _BACKGROUND or name == _IGNORED:
            ids[color] = table.ignore_index
        else:
            raise UserError(f"{root} has the class {name!r}, which is not in the table {table.name}")
    if lacking := set(range(len(table.names))) - set(ids.values()):
        raise UserError(
            f"{root} has no class {table.names[min(lacking)]!r}, which is in the table {table.name}: it has"
            f" {', '.join(colors)}"
        )
    return ids


def names_classes(root: Path) -> bool:
    """Whether an export says which classes it has. If it does not, they are VOC's."""
    return _exported_classes(root) is not None


def _exported_classes(root: Path) -> dict[str, tuple[int, ...]] | None:
    """The colors of an export by its class names."""
    if (file := root / "labelmap.txt").is_file():  # CVAT: NAME:R,G,B:PARTS:ACTIONS
        colors = {}
        for number, line in _lines(file):
            if line.startswith("#"):
                continue
            found = re.fullmatch(r"(.+?):\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(:[^:]*){0,2}", line)
            if found is None:
                raise UserError(f"{file}, line {number}: it must be NAME:R,G,B, such as cat:128,0,0::")
            colors[found[1]] = tuple(map(int, found.groups()[1:4]))
        return colors
    if (file := root / "class_names.txt").is_file():  # labelme: ids in the order of the lines, VOC's colors
        names = [line for _, line in _lines(file) if line != _IGNORED]
        return {name: default_color(k) for k, name in enumerate(names)}
    return None


def voc_entries(root: Path, split: str | None) -> list[tuple[str, Path, Path]] | None:
    """The name, image file and mask file of each image of a split; None if there is no such split."""
    images = files_by_name(root / "JPEGImages")
    kind = next((name for name in MASK_FOLDERS if (root / name).is_dir()), MASK_FOLDERS[0])
    masks = files_by_name(root / kind)
    lists = root / "ImageSets" / "Segmentation"
    file = lists / f"{split or 'val'}.txt"

    def entry(line: str) -> tuple[str, Path, Path]:
        name = line if composed(line) in images else _without_ending(line)
        if composed(name) not in images and (pair := _two_paths(root, line)):
            return pair[0].stem, *pair
        image = images.get(composed(name), root / "JPEGImages" / f"{name}.jpg")
        return name, image, masks.get(composed(name), root / kind / f"{name}.png")

    if file.is_file():
        return [entry(line) for _, line in _lines(file)]
    if split is None and not lists.is_dir():  # labelme
        return [entry(name) for name in sorted(masks)]
    return None


def files_by_name(folder: Path) -> dict[str, Path]:
    """The image files of a folder by their paths in it without their endings, in composed Unicode. Of files
    whose names differ in their endings, it is the PNG.
    """
    files = sorted(image_files(folder), key=lambda path: path.suffix.lower() == ".png")
    return {composed(path.relative_to(folder).with_suffix("").as_posix()): path for path in files}


def composed(name: str) -> str:
    """A name in composed Unicode. macOS decomposes accents in file names."""
    return normalize("NFC", name)


def _without_ending(name: str) -> str:
    ending = Path(name).suffix
    return name.removesuffix(ending) if ending.lower() in SUFFIXES else name


def _two_paths(root: Path, line: str) -> tuple[Path, Path] | None:
    """The image and the mask of a line with two paths, which begin at `root`."""
    for blank in re.finditer(r"\s+", line):
        paths = [root / part.lstrip("/") for part in (line[: blank.start()], line[blank.end() :])]
        if all(path.is_file() and not is_hidden(path.relative_to(root)) for path in paths):
            return paths[0], paths[1]
    return None


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text that are not blank, with their numbers from 1."""
    text = file.read_bytes().decode("utf-8-sig", "replace")
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        if line.strip():
            yield number, line.strip()

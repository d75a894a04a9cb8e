"""The images that a painter is adapted to: found, and encoded to latents once.

`--data` is a folder of images at any depth, with captions from `metadata.jsonl` or `metadata.csv` in any of
its folders (`file_name` and `text`, as `datasets` reads them) or from `NAME.txt` or `NAME.caption` beside
NAME.png; or rows of a dataset, whose prompt or caption it is.

Each image is reduced to the smallest size that holds a crop, without changing its shape, and encoded whole.
Every step cuts its crops from these latents (`batches.py`), so a wide image gives many crops for one
encoding.
"""

import csv
import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import torch
from tqdm import tqdm

from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.files import is_hidden, refuse_pattern, write_file
from attn2mask.builders.images import (
    SUFFIXES,
    UnreadableError,
    encode_png,
    image_files,
    read_image,
    shortened,
    warn_left_out,
)
from attn2mask.builders.painter import Painter
from attn2mask.builders.prompts import image_seed
from attn2mask.builders.row_images import encoded_columns, image_content
from attn2mask.builders.row_reader import directory_of, load_rows
from attn2mask.training.adaptation.config import AdaptConfig
from attn2mask.training.tensor_file import open_tensors, write_tensors

logger = logging.getLogger(__name__)

METADATA = ("metadata.jsonl", "metadata.csv")
MOST_CROPS = 8  # side by side in an image; of a longer one, the middle part is used
FEWEST = 4  # readable images; a painter would only memorize fewer
CAPTIONS = ("text", "prompt", "caption")  # keys of a caption; the first that is not blank counts


@dataclass(frozen=True)
class TrainingImage:
    """An image to learn from: its name, its caption or None, and a function that reads its bytes."""

    name: str
    caption: str | None
    read: Callable[[], bytes]


def find_images(data: str, allow_incomplete: bool = False, verify: bool = True) -> list[TrainingImage]:
    """The images of a folder or of a dataset's rows, in the order of their names or rows.

    `allow_incomplete` and `verify` are for builds (see `row_reader.whole_shards`). Raises UserError if there
    are too few, and for captions and builds that cannot be read.
    """
    folder = Path(data)
    if not data or not folder.is_dir():
        raise UserError(f"--data {data or 'is missing'}: give a folder of images, or of rows")
    rows = directory_of(folder) is not None or any(folder.rglob("*.parquet"))
    if rows:
        found = _images_of_rows(data, allow_incomplete, verify)
        warn_left_out(folder, image_files(folder), "image files beside the rows")
    else:
        found = _images_in_files(folder)
    if len(found) < FEWEST:
        kinds = ", ".join(suffix.removeprefix(".") for suffix in SUFFIXES)
        raise UserError(
            f"--data {data} holds {len(found)} images, but at least {FEWEST} are needed"
            + ("" if rows else f" ({kinds})")
        )
    captioned = sum(image.caption is not None for image in found)
    logger.info("%d of %d images have a caption", captioned, len(found))
    return found


def images_digest(images: Sequence[TrainingImage]) -> str:
    """SHA-256 over names, contents and captions."""
    total = hashlib.sha256()
    for image in images:
        try:
            content = hashlib.sha256(image.read()).hexdigest()
        except UnreadableError:
            content = ""  # it will be left out
        total.update(json.dumps([image.name, content, image.caption]).encode())
    return f"sha256:{total.hexdigest()}"


def _images_in_files(folder: Path) -> list[TrainingImage]:
    files = {path.relative_to(folder).as_posix(): path for path in image_files(folder)}
    captions: dict[str, str] = {}
    for path in sorted(file for name in METADATA for file in folder.rglob(name)):
        if not is_hidden(path.relative_to(folder)):
            captions |= _captions_in(path, folder, files)
    for name, path in files.items():
        for beside in (path.with_suffix(".txt"), path.with_suffix(".caption")):
            if beside.is_file():
                captions.setdefault(name, " ".join(_text(beside).split()))
    return [TrainingImage(name, captions.get(name) or None, path.read_bytes) for name, path in files.items()]


def _captions_in(metadata: Path, folder: Path, names: Collection[str]) -> dict[str, str]:
    """The captions of a metadata file by the names of the images in `folder`. Its own names are relative to
    the folder that it is in.
    """
    captions = {}
    inner = metadata.parent.relative_to(folder)
    composed = {normalize("NFC", name): name for name in names}  # macOS decomposes accents in file names
    for number, row in _records(metadata):
        try:
            name = composed.get(normalize("NFC", (inner / row["file_name"]).as_posix()))
        except (LookupError, TypeError) as error:
            raise UserError(f"{metadata}, line {number}: it must have a file_name") from error
        if name is None:
            raise UserError(f"{metadata}, line {number}: there is no image {row['file_name']!r}")
        captions[name] = _caption(row)
    return captions


def _records(metadata: Path) -> Iterator[tuple[int, Any]]:
    """The records of a metadata file with the numbers of their lines, from 1."""
    text = _text(metadata)
    if metadata.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        yield from ((reader.line_num, row) for row in reader)
        return
    # Not splitlines(), which would also split at separators that stand inside a caption.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{metadata}, line {number}: it must be JSON with a file_name") from error


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text") from error


def _caption(row: Mapping[str, Any]) -> str:
    texts = (row.get(key) for key in CAPTIONS)
    return next((" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip()), "")


def _images_of_rows(data: str, allow_incomplete: bool, verify: bool) -> list[TrainingImage]:
    refuse_pattern(Path(data), f"--data {data}")
    try:
        rows = load_rows(data, "train", False, allow_incomplete, verify)
    except UserError as error:
        raise UserError(f"--data {error}") from error
    except Exception as error:  # the libraries raise errors of many kinds
        raise UserError(
            f"--data {data}: there are no rows with images that can be read ({first_line(error)})"
        ) from error

    if "image" not in rows.column_names:
        raise UserError(f"--data {data}: its rows have no image (only {', '.join(rows.column_names)})")
    images = rows.select_columns("image")  # stored attention would take longer to read
    images = encoded_columns(images, ("image",), f"--data {data}")
    columns = {name: rows[name][:] for name in (*CAPTIONS, "sample_id") if name in rows.column_names}
    names = [str(name or f"row {k}") for k, name in enumerate(columns.get("sample_id", [None] * len(rows)))]

    def content(index: int) -> bytes:
        return image_content(images[index]["image"], f"--data {data}, {names[index]}: its image", data)

    return [
        TrainingImage(
            name,
            _caption({column: values[k] for column, values in columns.items()}) or None,
            partial(content, k),
        )
        for k, name in enumerate(names)
    ]


@dataclass(frozen=True)
class Crop:
    """The size of a crop in pixels, and the autoencoder's factor, which divides both sides."""

    height: int
    width: int
    factor: int

    def fit(self, content: bytes, name: str) -> np.ndarray:
        """The image of a file (H, W, 3) uint8, reduced to the smallest size that holds the crop, its sides
        cut to multiples of the factor.

        Raises UnreadableError as `read_image`, and UserError if it is smaller than the crop.
        """
        image = read_image(content, name, partial(self._size, name))
        bottom, right = (side // self.factor * self.factor for side in image.shape[:2])
        return image[:bottom, :right]

    def middle(self, image: np.ndarray) -> np.ndarray:
        """The middle part (h, w, 3) of an image (H, W, 3) that is longer than `MOST_CROPS` crops."""
        sides = (MOST_CROPS * self.height, MOST_CROPS * self.width)
        rows, columns = (
            slice(max(0, given - most) // 2, max(0, given - most) // 2 + min(given, most))
            for given, most in zip(image.shape[:2], sides, strict=True)
        )
        return image[rows, columns]

    def _size(self, name: str, width: int, height: int) -> tuple[int, int]:
        scale = max(self.height / height, self.width / width)
        if scale > 1:
            raise UserError(
                f"image {name} has {width} x {height} pixels and is smaller than the crops of {self.width} x"
                f" {self.height}: lower --crop-size, change --aspect, or remove the image"
            )
        return max(round(width * scale), self.width), max(round(height * scale), self.height)


def make_crop(config: AdaptConfig, factor: int) -> Crop:
    """The crops of `config`. Raises UserError for a height that the autoencoder cannot make."""
    if config.crop_size % factor:
        raise UserError(f"--crop-size {config.crop_size}: the model makes multiples of {factor} pixels")
    width = max(round(config.crop_size * config.aspect / factor), 1) * factor
    return Crop(config.crop_size, width, factor)


@torch.no_grad()
def encode_images(
    vae: Any, images: Sequence[TrainingImage], crop: Crop, progress: bool = False
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The latents of the images that can be read, by their place in `images`, and the names of the others.
    Latents are the means (C, h, w) float16 of the autoencoder's distribution, scaled as the UNet takes them.

    Raises UserError if too few images can be read, and for one that is smaller than the crop.
    """
    latents, skipped, reasons, cut = {}, [], [], []
    for place, training_image in enumerate(tqdm(images, "encoding", unit="image", disable=not progress)):
        try:
            whole = crop.fit(training_image.read(), training_image.name)
        except UnreadableError as error:
            skipped.append(training_image.name)
            reasons.append(error.reason)
            continue
        image = crop.middle(whole)
        if image.shape != whole.shape:
            cut.append(training_image.name)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        mean = vae.encode(pixels.to(vae.device).float() / 127.5 - 1).latent_dist.mean[0]
        latents[str(place)] = (mean * vae.config.scaling_factor).half().cpu()
    names = shortened(skipped) + (f" (the first: {reasons[0]})" if reasons else "")
    if len(latents) < FEWEST:
        raise UserError(
            f"{len(latents)} of {len(images)} images can be read, but at least {FEWEST} are needed;"
            f" these cannot: {names}"
        )
    if skipped:
        logger.warning("skipped %d images that cannot be read: %s", len(skipped), names)
    if cut:
        logger.warning(
            "of %d images that are longer than %d crops, only the middle is used: %s",
            len(cut),
            MOST_CROPS,
            shortened(cut),
        )
    return latents, skipped


class Latents:
    """Encoded images in a file, each of which is read when it is needed: their `places` in the list that was
    encoded, and the names of those that were `skipped` because they could not be read.
    """

    def __init__(self, file: Path, verify: bool = True) -> None:
        """Raises UserError if the file is damaged. Without `verify`, its checksum is not compared."""
        advice = "delete it, and the same command encodes the images again"
        self._file, note = open_tensors(file, advice, verify)
        try:
            self.places = sorted(map(int, self._file.keys()))
            self.skipped: list[str] = note["skipped"]
        except (LookupError, ValueError) as error:
            raise UserError(f"{file} holds no encoded images: {advice}") from error

    @staticmethod
    def write(file: Path, latents: Mapping[str, torch.Tensor], skipped: Sequence[str]) -> None:
        """Write what `encode_images` returns."""
        write_tensors(file, latents, {"skipped": list(skipped)})

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> torch.Tensor:
        """(C, h, w) float32."""
        return self._file.get_tensor(str(self.places[index])).float()


def paint_class_images(
    painter: Painter, folder: Path, config: AdaptConfig, crop: Crop, rank: int, processes: int
) -> list[TrainingImage]:
    """The class images, which the unadapted painter paints for prior preservation: PNG files, each a function
    of its number and the seed. This process paints every `processes`-th; existing files are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:05d}.png" for number in range(config.prior_images)]
    missing = [number for number in range(rank, len(files), processes) if not files[number].exists()]
    for number in tqdm(missing, "class images", unit="image", disable=rank > 0):
        image = painter.pipe(
            config.class_prompt,
            height=crop.height,
            width=crop.width,
            num_inference_steps=painter.defaults.steps,
            guidance_scale=painter.defaults.guidance_scale,
            generator=torch.Generator().manual_seed(image_seed(config.seed, number, 0)),
        ).images[0]
        write_file(files[number], encode_png(np.asarray(image)))
    return [TrainingImage(file.name, config.class_prompt, file.read_bytes) for file in files]

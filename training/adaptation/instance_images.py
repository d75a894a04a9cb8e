"""The pictures that a painter is adapted to: found, encoded once, served as crops with captions and noise.

A folder of pictures, at any depth, with captions from `metadata.jsonl` (`{"file_name": ..., "text": ...}`, as
`datasets` reads them) or `NAME.txt` beside NAME.png; or rows of a dataset, whose prompt or caption it is.

Each picture is made as small as the crop allows, keeping its shape, and encoded whole; every step cuts its
crops out of these latents, at a place that is a multiple of the autoencoder's factor. So a wide frame gives
many crops for one encoding. What position p of the run sees (picture, crop, words, noise, time) is a function
of (seed, p) alone: neither a kill nor the number of processes changes it.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save
from tqdm import tqdm

from attn2mask.builders.errors import UserError
from attn2mask.builders.files import write_file
from attn2mask.builders.images import encode_png
from attn2mask.builders.painter import Painter
from attn2mask.builders.prompts import image_seed
from attn2mask.training.adaptation.lora import Batch, Settings, training_prompt

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FEWEST = 4  # readable pictures; of fewer a painter learns them by heart
CAPTIONS = ("text", "prompt", "caption")  # keys of a caption, the first that is not blank
_SHOWN = 10  # names that a message lists


@dataclass(frozen=True)
class Instance:
    """A picture to learn from: its name, its caption where it has one, and how its bytes are read."""

    name: str
    caption: str | None
    read: Callable[[], bytes]


def find_instances(data: str) -> list[Instance]:
    """The pictures of a folder or of a dataset's rows, in the order of their names or rows.

    Raises UserError where there are too few, and for captions that can't be read.
    """
    folder = Path(data)
    if not data or not folder.is_dir():
        raise UserError(f"--data {data or 'is missing'}: give a folder of pictures, or of rows")
    rows = any(folder.rglob("*.parquet"))
    found = _rows(data) if rows else _files(folder)
    if len(found) < FEWEST:
        kinds = ", ".join(suffix.removeprefix(".") for suffix in SUFFIXES)
        raise UserError(
            f"--data {data} holds {len(found)} pictures, but {FEWEST} are the fewest to learn from"
            + ("" if rows else f" ({kinds})")
        )
    return found


def digest(instances: Sequence[Instance]) -> str:
    """SHA-256 over names, contents and captions."""
    total = hashlib.sha256()
    for instance in instances:
        content = hashlib.sha256(instance.read()).hexdigest()
        total.update(json.dumps([instance.name, content, instance.caption]).encode())
    return f"sha256:{total.hexdigest()}"


def _files(folder: Path) -> list[Instance]:
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file()
    }
    captions = _metadata(folder / "metadata.jsonl", files)
    for name, path in files.items():
        if (beside := path.with_suffix(".txt")).is_file():
            captions.setdefault(name, " ".join(_text(beside).split()))
    return [Instance(name, captions.get(name) or None, path.read_bytes) for name, path in files.items()]


def _metadata(file: Path, names: Collection[str]) -> dict[str, str]:
    captions = {}
    lines = _text(file).splitlines() if file.is_file() else []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
                name = row["file_name"]
            except (ValueError, LookupError, TypeError, RecursionError) as error:
                raise UserError(f"{file}, line {number}: it must be JSON with a file_name") from error
            if name not in names:
                raise UserError(f"{file}, line {number}: there is no picture {name!r}")
            captions[name] = _caption(row)
    return captions


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text") from error


def _caption(row: Mapping[str, Any]) -> str:
    texts = (row.get(key) for key in CAPTIONS)
    return next((" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip()), "")


def _rows(data: str) -> list[Instance]:
    from datasets import Image as Picture
    from datasets import load_dataset

    try:
        rows = load_dataset(data, split="train").cast_column("image", Picture(decode=False))
    except Exception as error:  # the libraries below raise many kinds, each meaning that it can't be read
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--data {data}: no rows with pictures that can be read ({reason})") from error

    def content(index: int) -> bytes:
        stored = rows[index]["image"]
        return stored["bytes"] or Path(stored["path"]).read_bytes()

    columns = {name: rows[name][:] for name in (*CAPTIONS, "sample_id") if name in rows.column_names}
    return [
        Instance(
            columns["sample_id"][k] if "sample_id" in columns else f"row {k}",
            _caption({name: values[k] for name, values in columns.items()}) or None,
            partial(content, k),
        )
        for k in range(len(rows))
    ]


# --- latents --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crop:
    """The size of a crop in pixels, and the autoencoder's factor, which divides both."""

    height: int
    width: int
    factor: int

    def fit(self, image: Image.Image, name: str) -> Image.Image:
        """``image`` as small as the crop allows, its sides cut to multiples of the factor.

        Raises UserError where it is smaller than the crop.
        """
        width, height = image.size
        scale = max(self.height / height, self.width / width)
        if scale > 1:
            raise UserError(
                f"picture {name} is {width} x {height} pixels, smaller than the crops of {self.width} x"
                f" {self.height}: lower --crop-size, change --aspect, or take it out"
            )
        size = max(round(width * scale), self.width), max(round(height * scale), self.height)
        right, bottom = (side // self.factor * self.factor for side in size)
        return image.resize(size, Image.Resampling.LANCZOS).crop((0, 0, right, bottom))


def make_crop(settings: Settings, factor: int) -> Crop:
    """The crops of ``settings``. Raises UserError for a height that the autoencoder can't make."""
    if settings.crop_size % factor:
        raise UserError(f"--crop-size {settings.crop_size}: the model makes multiples of {factor} pixels")
    width = max(round(settings.crop_size * settings.aspect / factor), 1) * factor
    return Crop(settings.crop_size, width, factor)


def decode(content: bytes) -> Image.Image | None:
    """The picture in RGB, upright; None where it can't be read."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises
        return None


@torch.no_grad()
def encode_pictures(
    vae: Any, instances: Sequence[Instance], crop: Crop, progress: bool = False
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The latents of the pictures that can be read, by their places among ``instances``: means (C, h, w)
    float16, scaled as the UNet takes them; and the names of the other pictures.

    Raises UserError where too few can be read, and for one that is smaller than the crop.
    """
    latents, skipped = {}, []
    for place, instance in enumerate(tqdm(instances, "encoding", unit="picture", disable=not progress)):
        image = decode(instance.read())
        if image is None:
            skipped.append(instance.name)
            continue
        pixels = torch.from_numpy(np.array(crop.fit(image, instance.name))).permute(2, 0, 1)[None]
        mean = vae.encode(pixels.to(vae.device).float() / 127.5 - 1).latent_dist.mean[0]
        latents[str(place)] = (mean * vae.config.scaling_factor).half().cpu()
    names = ", ".join(skipped[:_SHOWN]) + (", ..." if len(skipped) > _SHOWN else "")
    if len(latents) < FEWEST:
        raise UserError(
            f"{len(latents)} of {len(instances)} pictures can be read, but {FEWEST} are the fewest to learn"
            f" from; broken: {names}"
        )
    if skipped:
        print(f"attn2mask: warning: skipped {len(skipped)} broken pictures: {names}", file=sys.stderr)
    return latents, skipped


class Latents:
    """Encoded pictures in a file, each read when it is needed.

    Attributes:
        places: of the pictures among the instances that were to be encoded.
        skipped: names of those that could not be read.
    """

    def __init__(self, file: Path) -> None:
        self._file = safe_open(file, "pt")
        self.places = sorted(map(int, self._file.keys()))
        self.skipped: list[str] = json.loads(self._file.metadata()["skipped"])

    @staticmethod
    def write_file(file: Path, latents: Mapping[str, torch.Tensor], skipped: Sequence[str]) -> None:
        """What `encode_pictures` returns."""
        write_file(file, save(dict(latents), {"skipped": json.dumps(list(skipped))}))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> torch.Tensor:
        """(C, h, w) float32."""
        return self._file.get_tensor(str(self.places[index])).float()


def paint_class_pictures(
    painter: Painter, folder: Path, prompt: str, count: int, crop: Crop, seed: int, rank: int, processes: int
) -> list[Instance]:
    """Pictures of ``prompt`` by the painter as it is, for prior preservation: PNG files, each a function of
    its number and ``seed``. This process paints every ``processes``-th; those that are there stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:05d}.png" for number in range(count)]
    mine = [number for number in range(rank, count, processes) if not files[number].exists()]
    for number in tqdm(mine, "class pictures", unit="picture", disable=rank > 0):
        image = painter.pipe(
            prompt, height=crop.height, width=crop.width, num_inference_steps=painter.defaults.steps,
            guidance_scale=painter.defaults.guidance_scale,
            generator=torch.Generator().manual_seed(image_seed(seed, number, 0)),
        ).images[0]  # fmt: skip
        write_file(files[number], encode_png(np.asarray(image)))
    return [Instance(file.name, prompt, file.read_bytes) for file in files]


# --- batches --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Feed:
    """Batches of crops. `captions` are parallel to `latents`; `timesteps` is how many the noise has."""

    latents: Latents
    captions: Sequence[str | None]
    crop: Crop
    instance_prompt: str
    settings: Settings
    seed: int
    timesteps: int
    prior: Latents | None = None
    class_prompt: str = ""

    def __call__(self, places: Iterable[tuple[int, int]]) -> Batch:
        """The batch of (position in the run, number of the picture)."""
        examples, priors = [], []
        for position, index in places:
            rng = np.random.default_rng([self.seed, 2, position])
            text = training_prompt(self.instance_prompt, self.captions[index], self.prior is not None, rng)
            examples.append(self._example(self.latents[index], text, rng))
            if self.prior is not None:
                latent = self.prior[int(rng.integers(len(self.prior)))]
                priors.append(self._example(latent, self.class_prompt, rng))
        latents, noise, timesteps, texts, time_ids = zip(*examples, *priors, strict=True)
        return Batch(
            torch.stack(latents), torch.stack(noise), torch.tensor(timesteps), list(texts),
            torch.tensor(time_ids, dtype=torch.float32),
        )  # fmt: skip

    def _example(self, latent: torch.Tensor, text: str, rng: np.random.Generator) -> tuple:
        factor, (height, width) = self.crop.factor, latent.shape[1:]
        high, wide = self.crop.height // factor, self.crop.width // factor
        top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
        dropped = rng.random() < self.settings.dropout
        timestep, seed = int(rng.integers(self.timesteps)), int(rng.integers(2**62))
        crop = latent[:, top : top + high, left : left + wide]
        noise = torch.randn(crop.shape, generator=torch.Generator().manual_seed(seed))
        time_ids = [factor * side for side in (height, width, top, left, high, wide)]
        return crop, noise, timestep, "" if dropped else text, time_ids

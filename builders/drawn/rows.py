"""Drawn scenes as rows with exact masks: what a segmenter is measured on, and trained on for comparison.

    attn2mask draw objects --num-images 300 --seed 77000000 --out runs/drawn/objects
    attn2mask draw streets --num-images 300 --out runs/drawn/streets

The rows have a build's columns, so they stand wherever painted rows do: `--dataset` or `--eval-dataset` of
training, and `attn2mask evaluate`. Streets are rows of Cityscapes' table, the other worlds of VOC's; a
street's caption says what stands in it, its place and its light, in the words of a build's own captions.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.options import option
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words import grammar

if TYPE_CHECKING:
    from attn2mask.builders.drawn.scenes import Scene

TABLES = {"objects": "voc", "variety": "voc", "shifted": "voc", "streets": "cityscapes"}  # by world
SEEN = 0.005  # share of an image's pixels from which on a caption may name a class
HELD_OUT = 77_000_000  # seeds from here on belong to evaluation; nothing is trained on them


@dataclass(frozen=True)
class DrawConfig:
    """What `attn2mask draw` takes."""

    world: str = option("objects, variety, shifted or streets", positional=True)
    out: str = option("directory of the rows (%(default)s)", "runs/drawn", metavar="DIR")
    num_images: int = option("scenes to draw (%(default)s)", 300, metavar="N")
    seed: int = option("of the first scene (%(default)s: kept from all training)", HELD_OUT, metavar="N")
    size: int = option("height of the images in pixels (%(default)s)", 128, metavar="N")
    width: int | None = option("width (as the height; streets are twice as wide)", None, metavar="N")


def row(
    sample_id: str,
    image: np.ndarray,
    mask: np.ndarray,
    reliability: np.ndarray | None = None,
    table: ClassTable | None = None,
    caption: str = "",
) -> dict[str, Any]:
    """A row of ``table`` (VOC's) from (H, W, 3) uint8, ids (H, W) uint8 and, where not all is reliable, 0 to
    255 (H, W) uint8.
    """
    table = table or load_table("voc")
    classes = [int(k) for k in np.unique(mask) if k >= table.first_id and k != table.ignore_index]
    reliability = np.full_like(mask, 255) if reliability is None else reliability
    return {
        "image": _png(image), "mask": _png(mask), "reliability": _png(reliability), "prompt": "",
        "caption": caption, "classes": classes, "words": [table.names[k] for k in classes], "seed": 0,
        "sample_id": sample_id, "peaks": [1.0] * len(classes),
    }  # fmt: skip


def write_rows(rows: Iterable[dict[str, Any]], out: Path, table: ClassTable | None = None) -> None:
    """One Parquet shard of rows of ``table`` (VOC's), written under a temporary name and renamed."""
    from datasets import Dataset

    from attn2mask.builders.sample import features

    out.mkdir(parents=True, exist_ok=True)
    columns = features(table or load_table("voc"), store_scores=False)
    temporary = out / "train-00000.tmp"
    Dataset.from_list(list(rows), features=columns).to_parquet(temporary)
    temporary.replace(out / "train-00000-of-00001.parquet")


def draw_rows(
    world: str, count: int, seed: int, size: int | tuple[int, int] = 128
) -> Iterable[dict[str, Any]]:
    """``count`` scenes of a drawn world, functions of (seed, index); ``size`` as `draw_scene` takes it."""
    from attn2mask.builders.drawn.scenes import draw_scene

    table = load_table(TABLES[world])
    for index in tqdm(range(count), f"drawing {world}", unit="scene", mininterval=1):
        scene = draw_scene(world, np.random.default_rng([seed, index]), size)
        caption = street_caption(scene, table, index) if world == "streets" else ""
        sample_id = f"{world}-{seed}-{index:06d}"
        yield row(sample_id, scene.image, scene.mask, table=table, caption=caption)


def street_caption(scene: Scene, table: ClassTable, index: int) -> str:
    """What someone would say of a drawn street: classes that take up at least `SEEN` of it, as many as the
    captions of a build name, its place and its light.
    """
    rng = np.random.default_rng(index)
    sizes = np.bincount(scene.mask.ravel(), minlength=256)[: len(table.classes)] / scene.mask.size
    named = grammar.scene_classes(table, rng, np.flatnonzero(sizes >= SEEN).tolist())
    return f"{grammar.describe(table, named, rng)} {scene.place} {scene.light}"


def _png(array: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def run(config: DrawConfig) -> None:
    """Draw and write. Raises UserError for an unknown world or a folder in use."""
    out = Path(config.out)
    if config.world not in TABLES:
        *most, last = TABLES
        raise UserError(f"no drawn world {config.world!r}: there are {', '.join(most)} and {last}")
    width = config.width or config.size * (2 if config.world == "streets" else 1)
    if config.num_images < 1 or min(config.size, width) < 32:
        raise UserError("--num-images must be above 0, --size and --width 32 or more")
    if config.world != "streets" and width != config.size:
        raise UserError(f"scenes of {config.world} are square: leave out --width")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another --out")
    rows = draw_rows(config.world, config.num_images, config.seed, (config.size, width))
    write_rows(rows, out, load_table(TABLES[config.world]))
    print(f"made {config.num_images} scenes with exact masks in {out}")
    print(f"next: attn2mask evaluate --checkpoint runs/segmenter --dataset {out}")

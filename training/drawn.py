"""Drawn scenes as rows with exact masks: what a segmenter is measured on, and trained on for comparison.

    python training/drawn.py objects --num-images 300 --seed 77000000 --out runs/drawn/objects

The rows have a build's columns, so they stand wherever painted rows do: `--dataset` or `--eval-dataset` of
training, and `attn2mask evaluate`.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from attn2mask.builders.arguments import option, parse, run_command
from attn2mask.builders.errors import UserError
from attn2mask.builders.labels import load_table

HELD_OUT = 77_000_000  # seeds from here on belong to evaluation; nothing is trained on them


@dataclass(frozen=True)
class DrawnConfig:
    """What `training/drawn.py` takes."""

    world: str = option("objects, variety or shifted", positional=True)
    out: str = option("directory of the rows (%(default)s)", "runs/drawn", metavar="DIR")
    num_images: int = option("scenes to draw (%(default)s)", 300, metavar="N")
    seed: int = option("of the first scene (%(default)s: kept from all training)", HELD_OUT, metavar="N")
    size: int = option("side of the pictures in pixels (%(default)s)", 128, metavar="N")


def row(
    sample_id: str, image: np.ndarray, mask: np.ndarray, reliability: np.ndarray | None = None
) -> dict[str, Any]:
    """A row of VOC's table from (H, W, 3) uint8, ids (H, W) uint8 and, where not all is reliable, 0 to 255
    (H, W) uint8.
    """
    classes = [int(k) for k in np.unique(mask) if k not in (0, 255)]
    names = load_table("voc").names
    reliability = np.full_like(mask, 255) if reliability is None else reliability
    return {
        "image": _png(image), "mask": _png(mask), "reliability": _png(reliability), "prompt": "",
        "caption": "", "classes": classes, "words": [names[k] for k in classes], "seed": 0,
        "sample_id": sample_id, "peaks": [1.0] * len(classes),
    }  # fmt: skip


def write_rows(rows: Iterable[dict[str, Any]], out: Path) -> None:
    """One Parquet shard of rows of VOC's table, written under a temporary name and renamed."""
    from datasets import Dataset

    from attn2mask.builders.sample import features

    out.mkdir(parents=True, exist_ok=True)
    columns = features(load_table("voc"), store_scores=False)
    temporary = out / "train-00000.tmp"
    Dataset.from_list(list(rows), features=columns).to_parquet(temporary)
    temporary.replace(out / "train-00000-of-00001.parquet")


def draw_rows(world: str, count: int, seed: int, size: int = 128) -> Iterable[dict[str, Any]]:
    """``count`` scenes of a drawn world, functions of (seed, index)."""
    from attn2mask.builders.worlds.scenes import draw_scene

    for index in tqdm(range(count), f"drawing {world}", unit="scene", mininterval=1):
        scene = draw_scene(world, np.random.default_rng([seed, index]), size)
        yield row(f"{world}-{seed}-{index:06d}", scene.image, scene.mask)


def _png(array: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def run(config: DrawnConfig) -> None:
    """Draw and write. Raises UserError for an unknown world or a folder in use."""
    out = Path(config.out)
    if config.world not in ("objects", "variety", "shifted"):
        raise UserError(f"no drawn world {config.world!r}: there are objects, variety and shifted")
    if config.num_images < 1 or config.size < 32:
        raise UserError("--num-images must be above 0, --size 32 or more")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another --out")
    write_rows(draw_rows(config.world, config.num_images, config.seed, config.size), out)
    print(f"made {config.num_images} scenes with exact masks in {out}")
    print(f"next: attn2mask evaluate --checkpoint runs/segmenter --dataset {out}")


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    return run_command(lambda: run(parse(DrawnConfig, argv, "training/drawn.py", __doc__.splitlines()[0])))


if __name__ == "__main__":
    sys.exit(main())

"""`attn2mask draw`: the second builder of rows. It draws scenes, whose masks are exact.

    attn2mask draw objects --num-images 300 --out runs/drawn/objects
    attn2mask draw streets --num-images 300 --out runs/drawn/streets

The rows have the columns of a build, so they can be used wherever painted rows are. Rows of streets belong to
the table of Cityscapes, and have captions; those of the other worlds belong to the table of VOC. The folder
has the files of a build (see `shards.py`), with the record draw.json, and the same command resumes.
"""

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from tqdm import tqdm

from attn2mask.builders.build import run_name
from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.images import encode_jpeg, encode_mask, encode_png, overlay
from attn2mask.builders.options import SAME_COMMAND, CheckedOptions, option, to_yaml
from attn2mask.builders.provenance import FORMAT_VERSION, provenance
from attn2mask.builders.sample import features, image_columns, optional_columns
from attn2mask.builders.shards import DRAWN_RECORD, BuildDirectory
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words import grammar

if TYPE_CHECKING:
    from attn2mask.builders.drawn.scenes import DrawnScene

TABLE_OF = {"objects": "voc", "variety": "voc", "shifted": "voc", "streets": "cityscapes"}  # by world
SHARD_SIZE = 1_000  # rows in a Parquet file
LEAST_SHARE = 0.005  # the least share of an image's pixels with which a class may be named in a caption
HELD_OUT = 77_000_000  # seeds from here on are for evaluation alone: nothing is trained on their scenes


@dataclass(frozen=True)
class DrawConfig(CheckedOptions):
    """The options of `attn2mask draw`. Raises UserError for an unknown world and numbers out of range."""

    RESUMES: ClassVar = SAME_COMMAND

    world: str = option("world of the scenes: objects, variety, shifted, or streets", positional=True)
    out: str = option("directory of the rows", "runs/drawn", stored=False, metavar="DIR")
    num_images: int = option("number of scenes to draw", 300, at_least=1)
    seed: int = option(
        "random seed of the scenes; nothing is trained on scenes of the default", HELD_OUT, at_least=0
    )
    size: int = option("height of the images in pixels", 128, at_least=32)
    width: int | None = option(
        "width of the images in pixels", None, at_least=32, default_text="--size; for streets twice --size"
    )
    overlay: bool = option("store the mask drawn over the image as column overlay", False)

    def __post_init__(self) -> None:
        if self.world not in TABLE_OF:
            raise UserError(f"there is no drawn world {self.world!r}: choose one of {', '.join(TABLE_OF)}")
        super().__post_init__()
        if self.world != "streets" and self.width not in (None, self.size):
            raise UserError(f"scenes of {self.world} are square: leave out --width")


def run(config: DrawConfig) -> None:
    """Draw the scenes and write their rows, or those that are missing.

    Raises UserError if the output directory holds something else, and if it holds rows of other options.
    """
    directory, table = BuildDirectory(Path(config.out), DRAWN_RECORD), load_table(TABLE_OF[config.world])
    directory.check_free()
    size = (config.size, config.width or config.size * (2 if config.world == "streets" else 1))
    identity = {
        "world": config.world,
        "seed": config.seed,
        "size": size,
        "shard_size": SHARD_SIZE,
        "overlay": config.overlay,
    }
    options = {
        "draw.yaml": to_yaml(config, "attn2mask draw --config draw.yaml", width=size[1]),
        "id2label.json": table.id2label,
    }
    with directory.locked(rank=0, run=run_name(1)):
        directory.claim(_record(config.num_images, identity), options, rank=0)
        shards = directory.shards
        directory.check_data(shards)
        for shard in directory.missing(shards):
            rows = draw_rows(config.world, shard.rows, config.seed, size, config.overlay)
            directory.write_shard(shard, features(table, optional_columns(identity)), rows, {})
    print(f"{directory.path}: {config.num_images} rows with exact masks")
    command = f"attn2mask evaluate --checkpoint runs/segmenter --dataset {shlex.quote(str(directory.path))}"
    print(f"next: {command}")


def draw_rows(
    world: str,
    indices: int | range,
    seed: int,
    size: int | tuple[int, int] = 128,
    with_overlay: bool = False,
) -> Iterator[dict[str, Any]]:
    """The rows of scenes of a drawn world, which are functions of (seed, index).

    `indices` are those of the scenes, or their number from 0 on. `size` is that of `draw_scene`, and
    `with_overlay` that of `exact_row`.
    """
    from attn2mask.builders.drawn.scenes import draw_scene

    table = load_table(TABLE_OF[world])
    indices = range(indices) if isinstance(indices, int) else indices
    for index in tqdm(indices, f"drawing {world}", unit="scene", mininterval=1):
        scene = draw_scene(world, np.random.default_rng([seed, index]), size)
        caption = street_caption(scene, table, index) if world == "streets" else ""
        sample_id = f"{world}-{seed}-{index:06d}"
        yield exact_row(sample_id, scene.image, scene.mask, None, table, caption, with_overlay)


def exact_row(
    sample_id: str,
    image: np.ndarray,
    mask: np.ndarray,
    reliability: np.ndarray | None = None,
    table: ClassTable | None = None,
    caption: str = "",
    with_overlay: bool = False,
) -> dict[str, Any]:
    """The row of an image (H, W, 3) uint8 with its known `mask` (H, W) uint8, in ids of `table` (None: VOC).

    `reliability` is (H, W) uint8, 0 to 255; None stands for 255 everywhere. The row has no prompt, its words
    are the names of the classes in the mask, and its seed is 0. `with_overlay` says whether the mask is also
    drawn over the image.
    """
    table = table or load_table("voc")
    classes = [int(k) for k in np.unique(mask) if k >= table.first_id and k != table.ignore_index]
    label = mask
    if reliability is None:
        reliability = np.full_like(mask, 255)
    else:
        from attn2mask.builders.reliability import reliable_ids  # which loads torch

        label = reliable_ids(mask, reliability, table.ignore_index)
    return {
        **image_columns(
            encode_png(image),
            encode_mask(mask, table),
            encode_mask(label, table),
            encode_png(reliability),
            encode_jpeg(overlay(image, mask, table)) if with_overlay else None,
        ),
        "prompt": "",
        "caption": caption,
        "classes": classes,
        "words": [table.names[k] for k in classes],
        "seed": 0,
        "sample_id": sample_id,
        "peaks": [1.0] * len(classes),
    }


def write_rows(rows: Iterable[dict[str, Any]], out: Path, table: ClassTable | None = None) -> None:
    """Write rows of `table` (None: VOC) as one shard in `out`, with its record and manifest."""
    directory, made = BuildDirectory(out, DRAWN_RECORD), list(rows)
    out.mkdir(parents=True, exist_ok=True)
    directory.claim(_record(len(made), {"shard_size": len(made)}), {}, rank=0)
    for shard in directory.shards:
        directory.write_shard(shard, features(table or load_table("voc")), made, {})


def _record(count: int, identity: dict[str, Any]) -> dict[str, Any]:
    """The record of `count` drawn rows."""
    record = {"format_version": FORMAT_VERSION, "command": "draw", "num_images": count}
    return {**record, "identity": identity, **provenance()}


def street_caption(scene: "DrawnScene", table: ClassTable, index: int) -> str:
    """A caption of a drawn street: some of the classes that cover at least `LEAST_SHARE` of it, its place and
    its light. It is a function of the scene and `index`.
    """
    rng = np.random.default_rng(index)
    shares = np.bincount(scene.mask.ravel(), minlength=256)[: len(table.classes)] / scene.mask.size
    named = grammar.scene_classes(table, rng, np.flatnonzero(shares >= LEAST_SHARE).tolist())
    return f"{grammar.describe(table, named, rng)} {scene.place} {scene.light}"

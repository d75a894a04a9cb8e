"""ImageNet-S: its three sets as a builder of the datasets library, and its own folders and masks.

    builder = Attn2MaskImageNetS(config_name="imagenet_s_919", num_images=919)
    python builders/imagenet_s.py data/imagenet_s_919 --out data/ImageNetS919

The second line (where the package is installed, `python -m attn2mask.builders.imagenet_s`) writes a build for
ImageNet-S's own tools, its evaluator among them: a mask id is R + 256 * G of an RGB PNG, 0 is other, 1000 is
ignored, and each class has a folder, named by its WordNet id: train/n01443537/NAME.png beside
train-segmentation/n01443537/NAME.png (Gao et al., Large-scale Unsupervised Semantic Segmentation, 2022).
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attn2mask.builders.dataset_builder import Attn2MaskBuilder, Attn2MaskConfig
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import write_file
from attn2mask.builders.images import decode_png, encode_png
from attn2mask.builders.options import option
from attn2mask.builders.shards import BuildDirectory, plan
from attn2mask.builders.table_reader import IMAGENET_S_IGNORE, wordnet_ids

SETS = ("imagenet_s_50", "imagenet_s_300", "imagenet_s_919")
SPLIT = "train"


class Attn2MaskImageNetS(Attn2MaskBuilder):
    """Painted and labeled images in the classes of ImageNet-S, which take turns.

    `config_name` is imagenet_s_50, imagenet_s_300 or imagenet_s_919. Masks of the larger two have 16 bits,
    and 65535 where nothing is known.
    """

    BUILDER_CONFIGS = [Attn2MaskConfig(name=name) for name in SETS]  # noqa: RUF012, datasets wants a list
    DEFAULT_CONFIG_NAME = SETS[0]


@dataclass(frozen=True)
class ImageNetSConfig:
    """The options of `builders/imagenet_s.py`."""

    dir: str = option("a build of imagenet_s_50, imagenet_s_300 or imagenet_s_919", positional=True)
    out: str | None = option("folder to write", None, default_text="DIR-folders", metavar="DIR")


def in_colors(mask: np.ndarray, ignore: int) -> np.ndarray:
    """A mask (H, W) of ids in ImageNet-S's own encoding, (H, W, 3) uint8; `ignore` becomes 1000."""
    ids = np.where(mask == ignore, IMAGENET_S_IGNORE, mask.astype(np.int64))
    return np.stack([ids % 256, ids // 256, np.zeros_like(ids)], axis=-1).astype(np.uint8)


def run(config: ImageNetSConfig) -> None:
    """Write the folders. Raises UserError for another table, an unfinished build and a folder with other
    things in it.
    """
    source = BuildDirectory(Path(config.dir))
    record, table = source.record(), source.table
    if table.name not in SETS:
        raise UserError(f"{source.path} is a build of {table.name}, not of one of {', '.join(SETS)}")
    source.check_complete()
    shards = plan(record["num_images"], record["identity"]["shard_size"])
    out = Path(config.out or f"{source.path}-folders")
    images, masks = out / SPLIT, out / f"{SPLIT}-segmentation"
    if out.exists() and (others := [path for path in out.iterdir() if path not in (images, masks)]):
        raise UserError(f"--out {out} holds other things ({others[0].name}): choose an empty folder")
    # Also those that stay empty: the number of folders tells ImageNet-S's sets apart.
    wnids = wordnet_ids(table.name)
    for folder in (root / wnid for root in (images, masks) for wnid in wnids):
        folder.mkdir(parents=True, exist_ok=True)
    written = without = 0
    for shard in shards:
        for row in source.rows(shard):
            if not row["classes"]:
                without += 1
                continue
            name = Path(wnids[row["classes"][0] - table.first_id], f"{row['sample_id']}.png")
            mask = decode_png(row["mask"]["bytes"])
            write_file(masks / name, encode_png(in_colors(mask, table.ignore_index)))
            write_file(images / name, row["image"]["bytes"])
            written += 1
    left_out = f"; {without} rows without a class are left out" if without else ""
    print(f"{out}: {written} images with masks in ImageNet-S's encoding{left_out}")


if __name__ == "__main__":
    from attn2mask.builders.command import run_command

    description = "Write a build of ImageNet-S into ImageNet-S's own folders, with masks in its own encoding."
    sys.exit(run_command(ImageNetSConfig, run, sys.argv[1:], "builders/imagenet_s.py", description))

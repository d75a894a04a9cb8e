"""ImageNet-S: a builder of the datasets library for its three sets, and a writer of its folders and masks.

    builder = Attn2MaskImageNetS(config_name="imagenet_s_919", num_images=919)
    python builders/imagenet_s.py data/imagenet_s_919 --out data/ImageNetS919

The second line converts a build to the format that ImageNet-S's evaluator reads; without a clone, write
`python -m attn2mask.builders.imagenet_s`. A mask id is R + 256 * G of an RGB PNG; 0 is other, and 1000 is
ignored. A class has a folder named by its WordNet id: train/n01443537/NAME.png beside
train-segmentation/n01443537/NAME.png (Gao et al., Large-scale Unsupervised Semantic Segmentation, 2022).
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attn2mask.builders.dataset_builder import Attn2MaskBuilder, Attn2MaskConfig
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import write_file
from attn2mask.builders.images import decode_png, encode_png
from attn2mask.builders.options import option
from attn2mask.builders.shards import BuildDirectory
from attn2mask.builders.table_reader import IMAGENET_S_IGNORE, wordnet_ids

logger = logging.getLogger(__name__)

NAMES = ("imagenet_s_50", "imagenet_s_300", "imagenet_s_919")
SPLIT = "train"


class Attn2MaskImageNetS(Attn2MaskBuilder):
    """Painted and labeled images in the classes of ImageNet-S, one class per image, in turns.

    `config_name` is one of `NAMES`. Masks of the last two have 16 bits and the ignore value 65535.
    """

    BUILDER_CONFIGS = [Attn2MaskConfig(name=name) for name in NAMES]  # noqa: RUF012, datasets wants a list
    DEFAULT_CONFIG_NAME = NAMES[0]


@dataclass(frozen=True)
class ImageNetSConfig:
    """The options of `builders/imagenet_s.py`."""

    dir: str = option("a build of imagenet_s_50, imagenet_s_300 or imagenet_s_919", positional=True)
    out: str | None = option("folder to write", None, default_text="DIR-folders", metavar="DIR")


def in_colors(mask: np.ndarray, ignore: int) -> np.ndarray:
    """A mask (H, W) of ids in ImageNet-S's encoding, (H, W, 3) uint8. The ignore value becomes 1000."""
    ids = np.where(mask == ignore, IMAGENET_S_IGNORE, mask.astype(np.int64))
    return np.stack([ids % 256, ids // 256, np.zeros_like(ids)], axis=-1).astype(np.uint8)


def run(config: ImageNetSConfig) -> None:
    """Write the folders. Raises UserError for a build that is not complete or has another table, and for an
    output folder with other files.
    """
    source = BuildDirectory(Path(config.dir))
    table = source.table
    if table.name not in NAMES:
        raise UserError(f"{source.path} is a build of {table.name}, not of one of {', '.join(NAMES)}")
    source.check_complete()
    logger.info("Writing the rows of %s in the format of ImageNet-S", source.path)
    out = Path(config.out or f"{source.path}-folders")
    images, masks = out / SPLIT, out / f"{SPLIT}-segmentation"
    if out.exists() and (others := [path for path in out.iterdir() if path not in (images, masks)]):
        raise UserError(f"--out {out} holds other files ({others[0].name}): choose an empty folder")
    # Folders that stay empty are made, too, because the number of folders identifies the set.
    wnids = wordnet_ids(table.name)
    for folder in (root / wnid for root in (images, masks) for wnid in wnids):
        folder.mkdir(parents=True, exist_ok=True)
    written = without = 0
    for row in (row for shard in source.shards for row in source.rows(shard)):
        if not row["classes"]:
            without += 1
            continue
        name = Path(wnids[row["classes"][0] - table.first_id], f"{row['sample_id']}.png")
        mask = decode_png(row["mask"]["bytes"])
        write_file(masks / name, encode_png(in_colors(mask, table.ignore_index)))
        write_file(images / name, row["image"]["bytes"])
        written += 1
    left_out = f"; {without} rows without a class were left out" if without else ""
    print(f"{out}: {written} images with masks in ImageNet-S's encoding{left_out}")


if __name__ == "__main__":
    from attn2mask.builders.command import run_command

    description = "Write a build of ImageNet-S in the folders and with the encoding of ImageNet-S itself."
    sys.exit(run_command(ImageNetSConfig, run, sys.argv[1:], "builders/imagenet_s.py", description))

"""`attn2mask predict`: segments a folder of images with a checkpoint.

    attn2mask predict --checkpoint runs/r50 --images photos --out predicted --overlay

It writes `masks/NAME.png` for each image `NAME.jpg`: ids at the size of the image, in the table's colors.
With `--overlay` it also writes `overlays/NAME.png`, the mask drawn over the image. `id2label.json` has the
names of the ids, and `predict.json` the options and the weights.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from attn2mask import __version__
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import write_file
from attn2mask.builders.options import SAME_COMMAND, CheckedOptions, option
from attn2mask.training.config import factors_of

logger = logging.getLogger(__name__)

RECORD = "predict.json"


@dataclass(frozen=True)
class PredictConfig(CheckedOptions):
    """The options of `attn2mask predict`."""

    RESUMES: ClassVar = SAME_COMMAND

    checkpoint: str = option("a folder that training wrote, or a model of the Hub", "", required=True)
    images: str = option("folder of images", "", required=True, metavar="DIR")
    out: str = option("folder of the masks", "predicted", metavar="DIR")
    overlay: bool = option("also write each mask drawn over its image", False)
    scales: str = option(
        "take the maximum of the logits of each image at these scales, with commas between them",
        "1",
        metavar="S,S",
    )
    flip: bool = option("also take the logits of the mirrored image", False)
    trust_remote_code: bool = option(
        "run Python code that the checkpoint brings along, with all rights of this user", False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        factors_of(self.scales)


def run(config: PredictConfig) -> None:
    """Segment the images that have no mask in `config.out` yet. Images that cannot be read are counted and
    named.

    Raises UserError for a folder without images that can be read, a checkpoint that cannot be loaded, and an
    output folder that holds something else.
    """
    from tqdm import tqdm

    from attn2mask.builders.devices import default_device
    from attn2mask.builders.images import (
        UnreadableError,
        encode_mask,
        encode_png,
        overlay,
        read_image,
        shortened,
    )
    from attn2mask.builders.table_reader import bare_table
    from attn2mask.training.checkpoint import load_checkpoint
    from attn2mask.training.inference import Augmentation, segment
    from attn2mask.training.measured import digest_of

    folder, out = Path(config.images), Path(config.out)
    images = dict(named_images(folder))
    if not images:
        raise UserError(f"--images {folder} holds no image")
    checkpoint = load_checkpoint(config.checkpoint, config.trust_remote_code)
    networks = [network for network in (checkpoint.network, checkpoint.peer) if network is not None]
    table = bare_table(checkpoint.table_name or "the checkpoint's table", checkpoint.names)
    augmentation = Augmentation(factors_of(config.scales), config.flip)
    claim(
        out,
        {
            "version": __version__,
            "checkpoint": config.checkpoint,
            "weights": [digest_of(network) for network in networks],
            "scales": config.scales,
            "flip": config.flip,
            "trust_remote_code": config.trust_remote_code,
        },
    )
    write_file(out / "id2label.json", table.id2label.encode())
    for network in networks:
        network.to(default_device())
    unreadable = []
    for name, file in tqdm(images.items(), "segmenting", unit="image"):
        mask, drawn = out / "masks" / f"{name}.png", out / "overlays" / f"{name}.png"
        if mask.exists() and (drawn.exists() or not config.overlay):
            continue
        try:
            image = read_image(file, str(file))
        except UnreadableError as error:
            unreadable.append(f"{file.relative_to(folder)} ({error.reason})")
            continue
        ids = segment(networks, checkpoint.processor, image, augmentation)
        if config.overlay:
            drawn.parent.mkdir(parents=True, exist_ok=True)
            write_file(drawn, encode_png(overlay(image, ids, table)))
        mask.parent.mkdir(parents=True, exist_ok=True)
        write_file(mask, encode_mask(ids, table))
    if unreadable:
        logger.warning("left out %d images that cannot be read: %s", len(unreadable), shortened(unreadable))
    if len(unreadable) == len(images):
        raise UserError(f"--images {folder} holds no image that can be read")
    made = f"{len(images) - len(unreadable)} masks in {out / 'masks'}"
    print(f"made {made}" + (f", drawn over the images in {out / 'overlays'}" if config.overlay else ""))
    print(f"{out / 'id2label.json'} names the {len(table.names)} ids")


def named_images(folder: Path) -> Iterator[tuple[str, Path]]:
    """The images of a folder and its subfolders, each with its path in it without its ending. Raises
    UserError if there is no such folder, and for two images that differ in their endings alone.
    """
    from attn2mask.builders.images import image_files

    if not folder.is_dir():
        raise UserError(f"--images {folder}: there is no such folder")
    seen: dict[str, Path] = {}
    for file in image_files(folder):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in seen:
            raise UserError(
                f"{seen[name]} and {file} would have the same mask: rename one, or move it to another folder"
            )
        seen[name] = file
        yield name, file


def claim(out: Path, record: dict[str, Any]) -> None:
    """Write the record of the predictions. Raises UserError for a folder that holds something else, or
    predictions with other weights or options.
    """
    file = out / RECORD
    if file.exists():
        try:
            before = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError):
            before = None
        if before != record:
            raise UserError(f"{out} holds predictions with other weights or options: choose another --out")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is not empty: choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_file(file, f"{json.dumps(record, indent=2)}\n".encode())

"""`attn2mask demo`: everything at a small scale, offline, on a CPU, and measured.

It builds rows with the embedded painter and draws a sheet of them and of every token's attention. It compares
the masks of each threshold rule with the referee. Then it trains a small segmenter alone and two that
co-train, and measures them and the attention masks on held-out images. `report.json` holds all results.
"""

import json
import logging
import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from attn2mask.builders.files import write_file
from attn2mask.builders.options import SAME_COMMAND, CheckedOptions, option, to_yaml

if TYPE_CHECKING:
    from attn2mask.training.held_out import PaintedImage

logger = logging.getLogger(__name__)

DATASET_NAME, MODEL_NAME = "your-name/attn2mask-voc-demo", "your-name/attn2mask-deeplabv3plus-demo"
TOKENS_PROMPT = "a red bus next to a horse on the street"
SEGMENTERS = {"no co-training": "alone", "full": "segmenter"}  # names in the report, and their directories


@dataclass(frozen=True)
class Size:
    """How much a demo makes: rows to build, training steps of each segmenter, images of each held-out set,
    and drawn scenes that the referee's own accuracy is measured on.
    """

    num_images: int
    max_steps: int
    held_out: int
    referee_scenes: int


SIZES = {"full": Size(384, 400, 120, 200), "small": Size(40, 40, 16, 32)}


def _of_sizes(name: str) -> str:
    return ", ".join(f"{getattr(size, name)} for {key}" for key, size in SIZES.items())


@dataclass(frozen=True)
class DemoConfig(CheckedOptions):
    """The options of `attn2mask demo`. Raises UserError for numbers out of range."""

    RESUMES: ClassVar = SAME_COMMAND

    out: str = option("directory of everything that the demo makes", "runs/demo", stored=False, metavar="DIR")
    size: str = option(
        "how much the demo makes: full takes about ten minutes on two idle cores, small takes two",
        "full",
        choices=tuple(SIZES),
    )
    num_images: int | None = option(
        "number of rows to build", None, at_least=1, default_text=_of_sizes("num_images")
    )
    max_steps: int | None = option(
        "training steps of each segmenter; 0 trains none",
        None,
        at_least=0,
        default_text=_of_sizes("max_steps"),
    )

    def resolve(self) -> Size:
        """The size, with the given numbers in the place of its own."""
        given = {name: getattr(self, name) for name in ("num_images", "max_steps")}
        return replace(
            SIZES[self.size], **{name: value for name, value in given.items() if value is not None}
        )


def demo(config: DemoConfig) -> None:
    """Run all parts and print what they measured."""
    from attn2mask.builders import show
    from attn2mask.builders.painter import load_painter
    from attn2mask.training.held_out import build_rows, painted_images

    started, out, size = time.monotonic(), Path(config.out), config.resolve()
    data = out / "data"
    build_rows(data, size.num_images)
    write_file(out / "demo.yaml", to_yaml(config, "attn2mask demo --config demo.yaml").encode())
    show.run(show.ShowConfig(str(data), str(out / "sheet.png")))
    show.token_sheet(load_painter(), TOKENS_PROMPT, out / "tokens.png")
    images = painted_images(data)
    report = measure_masks(images, size.referee_scenes)
    report |= {"rows": size.num_images, "rows_measured": len(images)}
    if size.max_steps:
        report["segmenters"] = measure_segmenters(size, data, out)
    cards = write_cards(data, out / "segmenter" if size.max_steps else None, out / "cards")
    report["seconds"] = round(time.monotonic() - started, 1)
    write_file(out / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    print(mask_text(report))
    names = ["data", "sheet.png", "tokens.png", "report.json"]
    if size.max_steps:
        print(segmenter_text(report["segmenters"]))
        names += ["segmenter", "segmenter/metrics_objects_images.png"]
    made = ", ".join([*(str(out / name) for name in names), *map(str, cards)])
    print(f"made in {report['seconds']:.0f} s: {made}")
    quoted = shlex.quote(str(data))
    print(f'next: load_dataset("{data}", split="train"), or attn2mask show {quoted} --out sheet.png')
    print(f"Nothing was published. To publish: attn2mask publish dataset {quoted} {DATASET_NAME}")
    if size.max_steps:
        print(f"                                   attn2mask publish model {out / 'segmenter'} {MODEL_NAME}")


def measure_masks(images: "list[PaintedImage]", referee_scenes: int) -> dict[str, Any]:
    """Mean IoU, 0 to 1, of the masks of painted images against the referee: under each threshold rule, and
    inside and outside the reliable part under the rules of the build; and the referee's own mean IoU on
    `referee_scenes` drawn scenes.
    """
    import numpy as np
    from tqdm import tqdm

    from attn2mask.builders.label import label_image
    from attn2mask.builders.rules import Threshold, load_rules
    from attn2mask.builders.table_reader import load_table
    from attn2mask.builders.workers import default_workers, labeling_pool
    from attn2mask.training.held_out import referee_accuracy
    from attn2mask.training.mask_quality import mask_quality
    from attn2mask.training.referee import load_referee

    logger.info("Comparing the masks with the referee")
    table, referee, default = load_table("voc"), load_referee(), load_rules("embedded")
    targets = referee.segment(np.stack([image.image for image in images]))
    classes = [image.classes for image in images]
    report: dict[str, Any] = {
        "referee_miou": referee_accuracy(referee, "objects", referee_scenes),
        "masks": {},
    }
    with labeling_pool(default_workers() + 1) as pool:
        for threshold in get_args(Threshold):
            rules = replace(default, threshold=threshold)
            jobs = [pool.submit(label_image, image.image, image.scores, rules, True) for image in images]
            labels = (job.result() for job in tqdm(jobs, f"threshold {threshold}", unit="mask"))
            quality = mask_quality(labels, classes, targets, table)
            report["masks"][threshold] = {stage: quality[stage] for stage in ("coarse", "crf")}
            if threshold == default.threshold:
                report["iou_inside_reliable"] = quality["inside"]
                report["iou_outside_reliable"] = quality["outside"]
                report["reliable_share"] = quality["reliable"]
    return report


def measure_segmenters(size: Size, data: Path, out: Path) -> dict[str, Any]:
    """Mean IoU, 0 to 1, on each held-out set: of the attention masks, which always know the image-level
    labels, and of one network and of two that co-trained, with and without the labels given.
    """
    from attn2mask.training.config import TrainConfig
    from attn2mask.training.held_out import attention_masks, make_sets, make_validation, train_and_score
    from attn2mask.training.prediction_size import IMAGES

    logger.info("Making the held-out sets")
    held_out = out / "held-out"
    sets = make_sets(held_out, size.held_out)
    attention = attention_masks(held_out, size.held_out)
    validation = make_validation(out / "validation", min(size.held_out, IMAGES))
    found: dict[str, Any] = {
        "attention masks": {name: {"mean_iou_given_labels": iou} for name, iou in attention.items()}
    }
    for name, directory in SEGMENTERS.items():
        logger.info("Training a segmenter: %s", name)
        training = TrainConfig(
            dataset=[str(data)],
            output_dir=str(out / directory),
            max_steps=size.max_steps,
            resume=True,
            size_dataset=str(validation),
            no_co_training=name == "no co-training",
            mixed_precision="no",
        )
        found[name] = train_and_score(training, sets)
    return found


def write_cards(data: Path, segmenter: Path | None, folder: Path) -> list[Path]:
    """The cards that publishing would send, to look at."""
    from attn2mask.hub.cards.dataset import dataset_card
    from attn2mask.hub.cards.markdown import write_card
    from attn2mask.hub.cards.segmenter import model_card

    cards = {"dataset": dataset_card({"voc": data}, DATASET_NAME)}
    if segmenter is not None:
        cards["model"] = model_card(segmenter, MODEL_NAME)
    return [write_card(card, folder / kind) for kind, card in cards.items()]


def mask_text(report: dict[str, Any]) -> str:
    """What `measure_masks` found as a table."""
    lines = [f"\nmIoU of the masks of {report['rows_measured']} painted images against the referee"]
    lines.append(f"{'threshold':12}{'coarse':>8}{'after CRF':>11}")
    for name, quality in report["masks"].items():
        lines.append(f"{name:12}{quality['coarse']:8.3f}{quality['crf']:11.3f}")
    lines.append(
        f"after the CRF: {report['iou_inside_reliable']:.3f} inside the reliable part"
        f" ({report['reliable_share']:.0%} of the pixels), {report['iou_outside_reliable']:.3f} outside"
    )
    lines.append(f"the referee itself, on drawn scenes with exact masks: {report['referee_miou']:.3f}\n")
    return "\n".join(lines)


def segmenter_text(segmenters: dict[str, dict[str, dict[str, float]]]) -> str:
    """What `measure_segmenters` found as a table."""
    columns = {"objects": "drawn", "shifted": "drawn, shifted", "painted": "painted"}
    lines = ["mIoU on held-out images, without and with test-time augmentation"]
    lines.append("(in brackets: given image-level labels; attention masks always know them)")
    lines.append(f"{'':24}" + "".join(f"{title:>18}" for title in columns.values()))
    for name, sets in segmenters.items():
        if "plain_mean_iou" in sets["objects"]:
            plain = "".join(f"{sets[held_out]['plain_mean_iou']:18.3f}" for held_out in columns)
            lines.append(f"{name:24}{plain}")
            name = "  with augmentation"
        line = f"{name:24}"
        for held_out in columns:
            mean_iou, given_labels = sets[held_out].get("mean_iou"), sets[held_out]["mean_iou_given_labels"]
            entry = "-" if mean_iou is None else f"{mean_iou:.3f}"
            line += f"{entry} ({given_labels:.3f})".rjust(18)
        lines.append(line)
    lines.append("drawn: against exact masks; painted: against the referee's masks\n")
    return "\n".join(lines)

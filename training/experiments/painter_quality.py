"""What a painter of VOC's classes can do, measured on seeds that nothing was trained on.

    python training/experiments/painter_quality.py [--model runs/painter/pipeline]

The measurements are:
- drawn: drawn scenes are encoded, noised, and denoised in one pass under the recorder; their masks from
  attention are compared with the exact ones;
- grounding: how well the attention of each class word covers its thing in these scenes, by map size;
- recognized: the share of images of one class in which the referee recognizes the class, by class;
- pairs: the share of captions with two classes for which the referee finds both in the image;
- distance: the kernel distance (KID) of all these images from drawn scenes, and that of two halves of the
  drawn scenes from each other;
- painted: the masks of all these images are compared with the referee's.

Both kinds of masks are measured under each preset, also those of other methods, and under the preset
`embedded` with each threshold and reliability, and with the maps multiplied by the self-attention. Rules that
need self-attention are left out, with a warning, if it was not recorded.
"""

import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.command import run_command
from attn2mask.builders.drawn.rows import HELD_OUT
from attn2mask.builders.options import CheckedOptions, option, preset_names
from attn2mask.builders.painter import Painter, load_painter
from attn2mask.builders.prompts import Prompt
from attn2mask.builders.rules import PRESETS, Reliability, Rules, Threshold, load_rules
from attn2mask.builders.scores import BACKGROUND, SELF_ATTENTION
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words.grammar import pick, usual_places
from attn2mask.training.experiments.fidelity import kernel_distance, pooled_features
from attn2mask.training.experiments.grounding import grounding
from attn2mask.training.held_out import held_out_scenes, referee_accuracy
from attn2mask.training.mask_quality import (
    PROPAGATION,
    RecordedImage,
    class_prompt,
    record_scenes,
    recorded_quality,
)
from attn2mask.training.referee import load_referee

logger = logging.getLogger(__name__)

POWERS = (1, 2, 4)  # of the self-attention
PRESENT = 0.01  # least share of an image's pixels from which on a class counts as present
RECOGNIZED = 0.8  # least share of its images from which on a class counts as recognized
PAINTED_SEED, BATCH_SIZE = 1_000, 8  # seed of the first painted image; images painted at a time


@dataclass(frozen=True)
class PainterQualityConfig(CheckedOptions):
    """The options of `training/experiments/painter_quality.py`."""

    out: str = option("directory of painter_quality.json", "runs/painter_quality", metavar="DIR")
    model: str = option("painter to measure: embedded, or a folder with a diffusers pipeline", "embedded")
    drawn: int = option("number of drawn scenes", 120, at_least=1)
    singles: int = option("number of images of each class", 8, at_least=1)
    pairs: int = option("number of images of two classes", 80, at_least=1)
    referee_scenes: int = option("drawn scenes that the referee is measured on", 300, at_least=4)


def rule_sets() -> dict[str, Rules]:
    """The rules to compare: all presets, and `embedded` with each threshold and reliability, and with powers
    of the self-attention.
    """
    own = load_rules("embedded")
    rules = {name: load_rules(name) for name in preset_names(PRESETS)}
    rules |= {f"embedded, threshold {t}": replace(own, threshold=t) for t in get_args(Threshold)}
    rules |= {f"embedded, reliability {r}": replace(own, reliability=r) for r in get_args(Reliability)}
    rules |= {f"embedded, propagation power {p}": replace(own, propagation_power=p) for p in POWERS}
    rules["embedded, background words"] = replace(own, background_words=True)
    return {name: rule for name, rule in rules.items() if name == "embedded" or rule != own}


def measurable(rules: Mapping[str, Rules], images: Iterable[RecordedImage]) -> dict[str, Rules]:
    """The rules that can be applied to all these images. A warning names the others."""
    has_self_attention = all(image.self_attention for image in images)
    kept = {name: rule for name, rule in rules.items() if has_self_attention or not rule.propagation_power}
    if missing := [name for name in rules if name not in kept]:
        logger.warning("not measured, because no self-attention was recorded: %s", "; ".join(missing))
    return kept


def make_prompt(
    classes: Sequence[int], table: ClassTable, painter: Painter, rng: np.random.Generator
) -> Prompt:
    """A prompt that names the classes at positions of `table.classes`, in a usual place of the first."""
    labels = [table.classes[k] for k in classes]
    ids = [table.first_id + k for k in classes]
    return class_prompt(ids, pick(usual_places(labels[0]), rng), table, painter, rng)


def paint(painter: Painter, prompts: Sequence[Prompt]) -> Iterator[RecordedImage]:
    """Paint each prompt as the painter does by default."""
    for start in tqdm(range(0, len(prompts), BATCH_SIZE), "painting", unit="batch", mininterval=5):
        batch = prompts[start : start + BATCH_SIZE]
        seeds = [PAINTED_SEED + start + k for k in range(len(batch))]
        painting = replace(painter.defaults, self_attention=PROPAGATION, background=True)
        images, maps, _ = painter.paint(batch, seeds, painting)
        for prompt, image, by_word in zip(batch, images, maps, strict=True):
            maps, side = [by_word[word] for word in prompt.words], painter.latent_side(*image.shape[:2])
            spread, background = by_word[SELF_ATTENTION], by_word[BACKGROUND]
            yield RecordedImage(image, prompt.classes, maps, side, spread, background)


def recognized(
    images: Sequence[RecordedImage], judged: Iterable[np.ndarray], table: ClassTable
) -> dict[str, float]:
    """By class, the share of its images in which it is `PRESENT` and the largest in the masks `judged`."""
    hits: dict[str, list[bool]] = {label.name: [] for label in table.classes}
    for image, mask in zip(images, judged, strict=True):
        areas = np.bincount(mask.ravel(), minlength=len(table.names))[1:]
        largest = areas.argmax() + 1 == image.classes[0]
        hits[table.names[image.classes[0]]].append(bool(largest and areas.max() > PRESENT * mask.size))
    return {name: float(np.mean(found)) for name, found in hits.items()}


def all_present(images: Sequence[RecordedImage], judged: Iterable[np.ndarray]) -> float:
    """The share of images in which the referee's masks `judged` hold all classes of the image."""
    pairs = zip(images, judged, strict=True)
    return float(
        np.mean([all((mask == k).mean() >= PRESENT for k in image.classes) for image, mask in pairs])
    )


def distances(painted: Sequence[RecordedImage], count: int) -> dict[str, float]:
    """The `kernel_distance` of painted images from `count` held-out drawn scenes, and that of two halves of
    the drawn scenes from each other, which is what images of one distribution have.
    """
    drawn = pooled_features(np.stack([scene.image for scene in held_out_scenes("objects", count)]))
    images = pooled_features(np.stack([image.image for image in painted]))
    return {
        "painted": kernel_distance(images, drawn),
        "halves": kernel_distance(drawn[: count // 2], drawn[count // 2 :]),
    }


def measure(config: PainterQualityConfig) -> dict[str, Any]:
    """All measurements. Values are in 0 to 1, except those of `distance` (see `distances`)."""
    table, referee, rules = load_table("voc"), load_referee(), rule_sets()
    logger.info("Loading the painter %s", config.model)
    painter = load_painter(config.model)
    if config.model != "embedded":  # pipelines of `make painter` paint like the embedded one
        painter.defaults = replace(painter.defaults, steps=20, guidance_scale=3.0)
    report: dict[str, Any] = {
        "referee_miou": referee_accuracy(referee, "objects", config.referee_scenes),
        "referee_miou_shifted": referee_accuracy(referee, "shifted", config.referee_scenes),
    }
    scenes = list(held_out_scenes("objects", config.drawn))
    drawn = list(record_scenes(painter, table, tqdm(scenes, "recording drawn scenes", mininterval=5)))
    exact = [scene.mask for scene in scenes]
    report["grounding"] = grounding(drawn, exact)

    rng, classes = np.random.default_rng(HELD_OUT), range(len(table.classes))
    singles = [make_prompt([k], table, painter, rng) for k in classes for _ in range(config.singles)]
    chosen = [rng.choice(len(classes), 2, replace=False) for _ in range(config.pairs)]
    pairs = [make_prompt(two.tolist(), table, painter, rng) for two in chosen]
    painted = list(paint(painter, [*singles, *pairs]))
    judged = referee.segment(np.stack([image.image for image in painted]))
    count = len(singles)
    report["distance"] = distances(painted, config.referee_scenes)
    report["recognized"] = recognized(painted[:count], judged[:count], table)
    report["pairs"] = all_present(painted[count:], judged[count:])
    rules = measurable(rules, [*drawn, *painted])
    for kind, images, targets in (("drawn", drawn, exact), ("painted", painted, judged)):
        bar = tqdm(rules.items(), f"masks of {kind} images", unit="rule")
        report[kind] = {name: recorded_quality(images, targets, rule, table) for name, rule in bar}
    return report


def as_text(report: dict[str, Any]) -> str:
    """What `measure` returns as text."""
    shares = report["recognized"]
    good = sum(share >= RECOGNIZED for share in shares.values())
    by_class = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    lines = [
        f"mIoU of the referee: {report['referee_miou']:.3f} on drawn scenes in the painter's style,"
        f" {report['referee_miou_shifted']:.3f} in the shifted style",
        f"class recognized in {np.mean(list(shares.values())):.3f} of the images of one class;"
        f" {good} of {len(shares)} classes in {RECOGNIZED:.0%} of their images or more",
        f"  {by_class}",
        f"both classes present in {report['pairs']:.3f} of the images of two classes",
        f"kernel distance from drawn scenes {report['distance']['painted']:.1f}"
        f" (of their halves {report['distance']['halves']:.1f})",
        "",
        f"{'attention of class words':34}{'area':>9}{'below 0.5':>11}{'IoU':>8}{'threshold':>11}",
        *(
            f"{'maps of ' + size:34}{found['auc']:9.3f}{found['below_chance']:11.3f}{found['iou']:8.3f}"
            f"{found['threshold']:11.2f}"
            for size, found in report["grounding"].items()
        ),
        "",
        f"{'rules':34}{'drawn':>18}{'painted':>18}{'inside':>9}{'outside':>9}{'reliable':>10}",
    ]
    for name, drawn in report["drawn"].items():
        painted = report["painted"][name]
        values = (
            drawn["coarse"],
            drawn["crf"],
            *(painted[k] for k in ("coarse", "crf", "inside", "outside")),
        )
        entries = "".join("        -" if value is None else f"{value:9.3f}" for value in values)
        lines.append(f"{name:34}{entries}{painted['reliable']:10.2f}")
    return "\n".join(lines)


def run(config: PainterQualityConfig) -> None:
    """Measure, write painter_quality.json and print a table."""
    started, out = time.monotonic(), Path(config.out)
    report = measure(config)
    report["seconds"] = round(time.monotonic() - started, 1)
    out.mkdir(parents=True, exist_ok=True)
    (out / "painter_quality.json").write_text(json.dumps(report, indent=2) + "\n")
    print(as_text(report))
    print(f"made {out / 'painter_quality.json'} in {report['seconds']:.0f} s")


if __name__ == "__main__":
    sys.exit(run_command(PainterQualityConfig, run, sys.argv[1:], sys.argv[0], __doc__.splitlines()[0]))

"""The paper's ablation (Table 4) with the embedded painter, on drawn and painted images.

    python training/experiments/ablation.py --out runs/ablation --seeds 3

Each trial trains one variant with one seed. It is measured on three held-out sets: drawn scenes in the
painter's style, drawn scenes in another style, and painted images with the referee's masks; each with and
without image-level labels given. Exact masks, and painted images with the referee's masks, separate the
effect of the images from that of the masks.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

from attn2mask.builders import remask
from attn2mask.builders.command import run_command
from attn2mask.builders.drawn.rows import draw_rows, exact_row
from attn2mask.builders.label import label_image, to_ids
from attn2mask.builders.options import option
from attn2mask.builders.rules import load_rules
from attn2mask.builders.table_reader import load_table
from attn2mask.training.experiments.trials import ExperimentConfig, Trial, as_entry, plan_trials, run_trials
from attn2mask.training.held_out import (
    MEASURES,
    SETS,
    attention_masks,
    build_rows,
    judged_rows,
    make_sets,
    painted_images,
    write_once,
)

PRESET = "demo-beco"  # BECO's step with the small backbone
TITLES = dict(zip(SETS, ("drawn, in-domain", "drawn, shifted", "painted, by the referee"), strict=True))
EXACT_SEED = 9  # of the drawn scenes that are trained on with exact masks


@dataclass(frozen=True)
class Variant:
    """A row of the table: the rows that are trained on, further flags of training, and its meaning."""

    name: str
    data: str
    flags: tuple[str, ...] = ()
    meaning: str = ""


VARIANTS = (
    Variant("full", "default", meaning="BECO's co-training on masks where they are reliable"),
    Variant(
        "no co-training", "default", ("--no-co-training",), "one network, which ignores unreliable pixels"
    ),
    Variant("no mixing", "default", ("--no-mixing",), "no ClassMix and no online labels"),
    Variant("preset demo", "default", ("--preset", "demo"), "the preset `demo` in place of BECO's step"),
    Variant("no adaptive threshold", "fixed", meaning="the threshold (1 - beta) / 2 for every class"),
    Variant("no prompt augmentation", "plain", meaning="class words as the captions have them"),
    Variant("no reliability", "default", ("--no-reliability",), "every label is trusted"),
    Variant("no CRF", "coarse", ("--no-reliability",), "coarse masks, every label is trusted"),
    Variant("referee's masks", "referee", meaning="the same images, labeled by the referee"),
    Variant("exact masks", "exact", meaning="as many drawn scenes, with exact masks"),
)


@dataclass(frozen=True)
class AblationConfig(ExperimentConfig):
    """The options of `training/experiments/ablation.py`."""

    out: str = option("directory of everything that the ablation makes", "runs/ablation", metavar="DIR")


def make_data(data: Path, count: int) -> None:
    """Make what is missing of the variants' datasets, `count` rows each."""
    table, rules = load_table("voc"), load_rules("embedded")
    default = data / "default"
    build_rows(default, count)
    build_rows(data / "plain", count, alias_probability=0.0)
    if not (data / "fixed" / "report.json").exists():
        remask.run(remask.RemaskConfig(dir=str(default), out=str(data / "fixed"), threshold="fixed"))

    def coarse() -> Iterator[dict[str, Any]]:
        for image in tqdm(painted_images(default), "coarse masks", unit="row", mininterval=1):
            labels = label_image(image.image, image.scores, rules, True)
            yield exact_row(image.sample_id, image.image, to_ids(labels.coarse, image.classes, table))

    write_once(data / "coarse", coarse)
    write_once(data / "referee", lambda: judged_rows(default))
    write_once(data / "exact", lambda: draw_rows("objects", count, EXACT_SEED))


def make_trials(config: AblationConfig, sets: list[Path]) -> list[Trial]:
    """All trainings, the variants of the first seed first."""
    data = Path(config.out) / "data"
    variants = {variant.name: (data / variant.data, variant.flags) for variant in VARIANTS}
    return plan_trials(config, PRESET, variants, sets)


def as_text(results: dict[str, Any]) -> str:
    """The table as Markdown, with an `as_entry` for each variant and set."""
    lines = [f"| | {' | '.join(TITLES.values())} |", "|---|---|---|---|"]
    attention = results["attention masks"]
    entries = [f"({100 * attention[name]:.1f})" if name in attention else "-" for name in SETS]
    lines.append(f"| attention masks themselves | {' | '.join(entries)} |")
    for variant, scores in results["variants"].items():
        lines.append(f"| {variant} | {' | '.join(as_entry(scores[name]) for name in SETS)} |")
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars of the mIoU, filled, and of the mIoU given image-level labels; seeds are dots."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    variants, attention = results["variants"], results["attention masks"]
    axes = figure.subplots(1, len(SETS), sharey=True)
    for axis, name in zip(axes, SETS, strict=True):
        for place, (variant, scores) in enumerate(variants.items()):
            free, given_labels = (scores[name][measure] for measure in MEASURES)
            color = "#4477aa" if variant == "full" else "#bbccdd"
            axis.barh(place, 100 * given_labels["mean"], fill=False, edgecolor="#889999", lw=0.8)
            axis.barh(place, 100 * free["mean"], color=color)
            seeds = [100 * value for value in free["seeds"]]
            axis.plot(seeds, [place] * len(seeds), ".", color="black")
        if name in attention:
            line = axis.axvline(100 * attention[name], color="#cc6677", ls="--")
        axis.set_yticks(range(len(variants)), list(variants), fontsize=8)
        axis.set_title(TITLES[name], fontsize=9)
        axis.set_xlabel("mIoU in %", fontsize=8)
    axes[0].invert_yaxis()
    if attention:
        label = "attention masks (given image-level labels)"
        figure.legend([line], [label], loc="outside lower center", fontsize=8)
    figure.savefig(path, dpi=150)


def run(config: AblationConfig) -> None:
    """Make the data, run the trials, and write the table. Raises UserError if a part fails."""
    started, out = time.monotonic(), Path(config.out)
    make_data(out / "data", config.num_images)
    sets = make_sets(out / "held-out", config.held_out)
    results: dict[str, Any] = {
        "variants": run_trials(make_trials(config, sets), config.jobs),
        "attention masks": attention_masks(out / "held-out", config.held_out),
    }
    results["seconds"] = round(time.monotonic() - started, 1)
    (out / "ablation.json").write_text(json.dumps(results, indent=2) + "\n")
    (out / "ablation.md").write_text(as_text(results) + "\n")
    plot(results, out / "ablation.png")
    print(as_text(results))
    made = ", ".join(str(out / f"ablation.{ending}") for ending in ("json", "md", "png"))
    print(f"made {made} in {results['seconds']:.0f} s; a second run makes only what is missing")


if __name__ == "__main__":
    sys.exit(run_command(AblationConfig, run, sys.argv[1:], sys.argv[0], __doc__.splitlines()[0]))

"""The paper's ablation (Table 4) on the embedded painter and the drawn worlds: `make evidence` runs it.

    python training/ablation.py --out runs/ablation --seeds 3

Every trial is one training of one variant with one seed, a process of its own that resumes; a second run of
the command makes only what is missing. Three sets are scored: drawn scenes of the painter's own world, the
same in a foreign style, and held-out painted pictures by the referee; each with the classes unknown, and with
those of the picture told, as the attention masks are. Beside the paper's parts stand the two ends, the
attention masks themselves and exact masks, and what tells pictures and masks apart: painted pictures with the
referee's masks. All train without ClassMix, which costs points in so few steps.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from attn2mask.builders import build, remask
from attn2mask.builders.drawn.rows import HELD_OUT, draw_rows, exact_row, write_rows
from attn2mask.builders.errors import UserError
from attn2mask.builders.label import label_image, to_ids
from attn2mask.builders.options import option
from attn2mask.builders.rules import load_rules
from attn2mask.builders.table_reader import load_table
from attn2mask.training.benchmarks import open_images
from attn2mask.training.experiments.trials import MEASURES, Trial, as_entry, run_trials
from attn2mask.training.miou import confusion_matrix, mean_iou

SETS = ("objects", "shifted", "painted")


@dataclass(frozen=True)
class Variant:
    """A row of the table: which rows are trained on, with which flags, and what it stands for."""

    name: str
    data: str
    flags: tuple[str, ...] = ()
    means: str = ""


VARIANTS = (
    Variant("full", "default", means="co-training on pseudo-masks where reliable"),
    Variant("no co-training", "default", ("--no-co-training",), "one network, unreliable pixels left out"),
    Variant("no adaptive threshold", "fixed", means="the threshold (1 - beta) / 2 for every class"),
    Variant("no prompt augmentation", "plain", means="class words as the captions have them"),
    Variant("no reliability", "default", ("--no-reliability",), "every label trusted"),
    Variant("no CRF", "coarse", ("--no-reliability",), "coarse masks, every label trusted"),
    Variant("referee's masks", "referee", means="the same pictures, labeled by the referee"),
    Variant("exact masks", "exact", means="as many drawn scenes, with the masks they were drawn from"),
)


@dataclass(frozen=True)
class AblationConfig:
    """What `training/ablation.py` takes."""

    out: str = option("directory of everything it makes (%(default)s)", "runs/ablation", metavar="DIR")
    num_images: int = option("rows of each dataset (%(default)s)", 1024, metavar="N")
    held_out: int = option("pictures of each set that is scored (%(default)s)", 200, metavar="N")
    max_steps: int = option("steps of each training (%(default)s)", 400, metavar="N")
    seeds: int = option("trainings of each variant (%(default)s)", 3, metavar="N")
    jobs: int = option("trainings at once (one a core)", 0, metavar="N")


# --- data -----------------------------------------------------------------------------------------


def build_rows(out: Path, count: int, seed: int = 0, alias_probability: float = 0.5) -> Path:
    """Painted rows with their scores, made by the embedded painter, or gone on with."""
    build.run(
        build.BuildConfig(
            "voc", str(out), num_images=count, seed=seed, alias_probability=alias_probability,
            store_scores=True, balance=True,
        )
    )  # fmt: skip
    return out


def painted_samples(data: Path) -> list[dict]:
    """What a build made, decoded: sample_id, image (H, W, 3), mask (H, W), scores (K, h, w), classes."""
    from datasets import load_dataset

    return [
        {
            "sample_id": r["sample_id"], "image": np.asarray(r["image"]), "mask": np.asarray(r["mask"]),
            "scores": np.array(r["scores"], np.uint8), "classes": r["classes"],
        }
        for r in load_dataset(str(data), split="train")
        if r["classes"]
    ]  # fmt: skip


def judged_rows(data: Path) -> Iterator[dict]:
    """The pictures of a build with the referee's masks."""
    from attn2mask.training.referee import load_referee

    samples = painted_samples(data)
    masks = load_referee().segment(np.stack([s["image"] for s in samples]))
    for sample, mask in zip(samples, masks, strict=True):
        yield exact_row(sample["sample_id"], sample["image"], mask)


def write_once(folder: Path, make: Callable[[], Iterable[dict]]) -> None:
    """Rows into a folder, if there are none."""
    if not list(folder.glob("*.parquet")):
        write_rows(make(), folder)


def make_sets(held: Path, count: int) -> None:
    """What is scored on, none of which anything is trained on: a folder of rows for each of `SETS`."""
    build_rows(held / "painted-build", count, seed=1_000_003)
    write_once(held / "painted", lambda: judged_rows(held / "painted-build"))
    for world in ("objects", "shifted"):
        write_once(held / world, lambda world=world: draw_rows(world, count, HELD_OUT))


def make_data(config: AblationConfig, out: Path) -> None:
    """All datasets of the variants and the sets to score on, each written once."""
    table, data = load_table("voc"), out / "data"
    default = build_rows(data / "default", config.num_images)
    build_rows(data / "plain", config.num_images, alias_probability=0.0)
    if not (data / "fixed" / "report.json").exists():
        remask.run(remask.RemaskConfig(str(default), str(data / "fixed"), threshold="fixed"))

    def coarse() -> Iterator[dict]:
        for s in tqdm(painted_samples(default), "coarse masks", unit="row", mininterval=1):
            labels = label_image(s["image"], s["scores"], load_rules("default"), True)
            yield exact_row(s["sample_id"], s["image"], to_ids(labels.coarse, s["classes"], table))

    write_once(data / "coarse", coarse)
    write_once(data / "referee", lambda: judged_rows(default))
    write_once(data / "exact", lambda: draw_rows("objects", config.num_images, 9))
    make_sets(out / "held-out", config.held_out)


def attention_masks(held: Path, count: int) -> dict[str, float]:
    """Mean IoU of the attention masks themselves: on held-out painted pictures by the referee; on drawn
    scenes, each encoded, noised and passed once, against exact masks.
    """
    from attn2mask.builders.painter import load_painter
    from attn2mask.training.experiments.painter_quality import drawn_mask_iou

    table = load_table("voc")
    n = len(table.names)
    truth = open_images(str(held / "painted"), None, table)
    own = {s["sample_id"]: s["mask"] for s in painted_samples(held / "painted-build")}
    matrix = sum(confusion_matrix(own[e.name], e.target, n) for e in truth)
    found = {"painted": mean_iou(matrix)}
    for world in ("objects", "shifted"):
        found[world] = drawn_mask_iou(load_painter(), table, count, world)
    return found


# --- trials ----------------------------------------------------------------------------------------


def make_trial(config: AblationConfig, out: Path, variant: Variant, seed: int) -> Trial:
    """The training of one variant with one seed."""
    folder = out / "trials" / f"{variant.name.replace(' ', '-').replace(chr(39), '')}-{seed}"
    flags = ("--max-steps", str(config.max_steps), "--no-mixing", *variant.flags)
    return Trial(variant.name, seed, folder, out / "data" / variant.data, flags)


# --- table ----------------------------------------------------------------------------------------


def as_text(found: dict) -> str:
    """The table as Markdown: mean and spread in per cent of mIoU, classes unknown and (told)."""
    lines = ["| | drawn, in-domain | drawn, shifted | painted, by the referee |", "|---|---|---|---|"]
    attention = found["attention masks"]
    trials = [f"({100 * attention[s]:.1f})" if s in attention else "-" for s in SETS]
    lines.append(f"| attention masks themselves | {' | '.join(trials)} |")
    for name, scores in found["variants"].items():
        lines.append(f"| {name} | {' | '.join(as_entry(scores[s]) for s in SETS)} |")
    return "\n".join(lines)


def plot(found: dict, path: Path) -> None:
    """Bars of every variant with the seeds as dots, one panel for each set; hollow bars and the line of the
    attention masks where the classes are told.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    names = list(found["variants"])
    for axis, s in zip(figure.subplots(1, len(SETS), sharey=True), SETS, strict=True):
        for place, name in enumerate(names):
            scores, told = (found["variants"][name][s][m] for m in MEASURES)
            axis.barh(place, 100 * told["mean"], fill=False, edgecolor="#889999", lw=0.8)
            axis.barh(place, 100 * scores["mean"], color="#4477aa" if name == "full" else "#bbccdd")
            axis.plot([100 * v for v in scores["seeds"]], [place] * len(scores["seeds"]), ".", color="black")
        if s in found["attention masks"]:
            axis.axvline(
                100 * found["attention masks"][s], color="#cc6677", ls="--", label="attention masks (told)"
            )
            axis.legend(fontsize=7)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_title(s, fontsize=9)
        axis.set_xlabel("mIoU in %", fontsize=8)
        axis.invert_yaxis() if s == SETS[0] else None
    figure.savefig(path, dpi=150)


def run(config: AblationConfig) -> None:
    started, out = time.time(), Path(config.out)
    for name in ("num_images", "held_out", "max_steps", "seeds"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(config, name)}, but must be above 0")
    make_data(config, out)
    held = out / "held-out"
    trials = [make_trial(config, out, variant, seed) for seed in range(config.seeds) for variant in VARIANTS]
    variants = run_trials(trials, {s: held / s for s in SETS}, load_table("voc"), config.jobs)
    found: dict = {"variants": variants, "attention masks": attention_masks(held, config.held_out)}
    found["seconds"] = round(time.time() - started, 1)
    (out / "ablation.json").write_text(json.dumps(found, indent=2) + "\n")
    (out / "ablation.md").write_text(as_text(found) + "\n")
    plot(found, out / "ablation.png")
    print(as_text(found))
    made = ", ".join(str(out / name) for name in ("ablation.json", "ablation.md", "ablation.png"))
    print(f"made {made} in {found['seconds']:.0f} s; a second run makes only what is missing")


if __name__ == "__main__":
    from attn2mask.builders.command import run_command

    sys.exit(
        run_command(
            AblationConfig, run, sys.argv[1:], "training/experiments/ablation.py", __doc__.splitlines()[0]
        )
    )

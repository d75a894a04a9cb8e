"""The paper's Table 3 at a small scale, offline: a model of images and text that is read directly, beside
networks that are trained on the labels of the painter's attention.

    python training/experiments/table3.py --out runs/table3 --results docs/results.md

Both sides see the same drawn scenes and captions, and no mask. On one side stands MaskCLIP on a small CLIP
that is trained from random weights (`training/pretraining/clip_training.py`). On the other side stand the
embedded painter's own attention, the masks that are made of it, and networks that were co-trained on such
masks. All are measured on three held-out sets (see `held_out.py`), over the regions and at their boundaries,
with and without image-level labels, before and after a dense CRF.
"""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from attn2mask.builders.command import run_command
from attn2mask.builders.cores import usable_cores
from attn2mask.builders.drawn.rows import draw_rows
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import write_file
from attn2mask.builders.label import label_image, to_ids
from attn2mask.builders.options import flag_of, option
from attn2mask.builders.painter import load_painter
from attn2mask.builders.rules import load_rules
from attn2mask.builders.table_reader import load_table
from attn2mask.training.benchmarks import open_images
from attn2mask.training.evaluate_command import run as evaluate
from attn2mask.training.evaluate_config import EvaluateConfig
from attn2mask.training.evaluation import counts_of, report, summarize
from attn2mask.training.experiments.trials import ExperimentConfig, plan_trials, run_trials
from attn2mask.training.held_out import (
    IMAGE_SIDE,
    SETS,
    build_rows,
    held_out_scenes,
    make_sets,
    painted_images,
    write_once,
)
from attn2mask.training.inference import logits_of, pixels_of
from attn2mask.training.mask_quality import record_scenes
from attn2mask.training.measured import measured_method
from attn2mask.training.miou import MeanIoU
from attn2mask.training.zeroshot.decision import Decision

PRESET = "demo-beco"  # BECO's step with the small backbone
THRESHOLD_SEED = 78_000_001  # of the scenes on which the thresholds are chosen
THRESHOLD_SCENES = 40
THRESHOLDS = [round(0.05 * k, 2) for k in range(1, 20)]
SCRIPT = Path(__file__).parents[1] / "pretraining" / "clip_training.py"
TITLES = dict(zip(SETS, ("drawn scenes", "drawn scenes in another style", "painted images"), strict=True))
# The columns of the tables: keys of metrics.json, and their titles.
WITHOUT_LABELS = {
    "mean_iou": "mIoU",
    "crf_mean_iou": "mIoU, CRF",
    "boundary_iou": "boundary IoU",
    "crf_boundary_iou": "boundary IoU, CRF",
}
GIVEN_LABELS = {f"{key}_given_labels": title for key, title in WITHOUT_LABELS.items()}
MASKCLIP, ATTENTION = "MaskCLIP on the small CLIP", "the painter's attention"
MASKS, NETWORKS = "our masks", "our co-trained networks"
START, END = "<!-- table3 -->", "<!-- end of table3 -->"

# What one evaluation found, by the keys of metrics.json.
Metrics = dict[str, Any]


@dataclass(frozen=True)
class Table3Config(ExperimentConfig):
    """The options of `training/experiments/table3.py`."""

    out: str = option("directory of everything that the experiment makes", "runs/table3", metavar="DIR")
    scenes: int = option("number of drawn scenes that the small CLIP is trained on", 20_000, at_least=1)
    clip_steps: int = option("number of training steps of the small CLIP", 2_400, at_least=1)
    results: str | None = option(
        "Markdown file whose part between the marks `table3` is replaced by the tables",
        None,
        stored=False,
        metavar="FILE",
    )


# The small CLIP


def train_clips(config: Table3Config, folder: Path) -> list[Path]:
    """The folders of the small CLIP models, one for each seed. What is finished is not repeated. All of them
    see the scenes that the first one draws.
    """
    made = []
    for seed in range(config.seeds):
        output = folder / f"seed-{seed}"
        weights = output / "weights"
        made.append(weights)
        if (weights / "training.json").exists():
            continue
        output.mkdir(parents=True, exist_ok=True)
        for file in (folder / "seed-0").glob("*-[0-9]*.*"):  # images, masks and scenes of each process
            if seed and not (output / file.name).exists():
                (output / file.name).symlink_to(Path("..", "seed-0", file.name))
        options = {"output-dir": output, "scenes": config.scenes, "steps": config.clip_steps, "seed": seed}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(usable_cores())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if subprocess.run([*command, str(SCRIPT), *words], env=environment).returncode:
            raise UserError(f"the training of the small CLIP with seed {seed} failed; its error is above")
    return made


# Measures


def best_threshold(method: str, weights: str, rows: Path) -> float:
    """The threshold of the background with the highest sum of the mean IoU with and without image-level
    labels, on rows that are not held out.
    """
    options: dict[str, Any] = {"method": method, "weights": weights, "dataset": str(rows)}
    config = EvaluateConfig(**options, background="threshold", threshold=0.5, size=IMAGE_SIDE)
    measured = measured_method(config)
    decision = measured.decide
    if not isinstance(decision, Decision):
        raise TypeError(f"{method} has no threshold")
    images = open_images(str(rows), None, measured.table)
    metrics = {
        at: (MeanIoU(len(measured.table.names)), MeanIoU(len(measured.table.names))) for at in THRESHOLDS
    }
    for index in tqdm(range(len(images)), f"threshold of {method}", unit="image"):
        example = images[index]
        with torch.no_grad():
            pixels = pixels_of(measured.processor, example.image)
            logits = logits_of(measured.networks, pixels, measured.augmentation)[-1]
        present = np.union1d([0], example.target)  # drawn scenes have no ignored pixels
        choices = (None, torch.from_numpy(present))
        for threshold, pair in metrics.items():
            decide = replace(decision, protocol=replace(decision.protocol, threshold=threshold))
            for metric, ids in zip(pair, decide(logits, example.image, choices), strict=True):
                metric.add(prediction=ids.numpy(), reference=example.target)
    sums = {at: sum(metric.compute()["mean_iou"] for metric in pair) for at, pair in metrics.items()}
    return max(THRESHOLDS, key=lambda at: sums[at])


def measure(out: Path, **options: Any) -> Metrics:
    """The metrics of `attn2mask evaluate` with these options, which is run unless it is finished."""
    if not out.exists():
        evaluate(EvaluateConfig(**options, out=str(out), crf="beco"))
    return json.loads(out.read_text())


def measure_masks(folder: Path, count: int) -> dict[str, Metrics]:
    """The metrics of the masks of the painter's attention on each of `SETS`, given image-level labels.

    Painted images have the masks of their build. Drawn scenes are recorded in one denoising pass with a
    caption of their things. The CRF is that of the masks' own rules.
    """
    table, rules, painter = load_table("voc"), load_rules("embedded"), load_painter()
    built = {image.sample_id: image for image in painted_images(folder / "painted-build")}
    found = {}
    for name in SETS:
        images = open_images(str(folder / name), None, table)
        if name == "painted":
            rows = (built[example.name] for example in images)
            labeled = ((label_image(row.image, row.scores, rules, True), row.classes) for row in rows)
        else:
            recorded = record_scenes(painter, table, held_out_scenes(name, count))
            labeled = ((image.labels(rules, table), image.classes) for image in recorded)
        counts = {}
        bar = tqdm(labeled, f"masks of {name}", len(images), unit="image")
        for index, (labels, classes) in enumerate(bar):
            masks = {"given_labels": labels.coarse, "crf_given_labels": labels.mask}
            ids = {key: torch.from_numpy(to_ids(mask, classes, table)).int() for key, mask in masks.items()}
            counts[index] = counts_of(ids, images[index], table, boundaries=True)
        found[name] = report(summarize(counts, table, ("given_labels", "crf_given_labels")))
    return found


def measure_all(config: Table3Config, clips: Sequence[Path], sets: Sequence[Path]) -> dict[str, Any]:
    """The metrics of each row of the tables by the name of the set: one for each seed."""
    out, chosen = Path(config.out), Path(config.out) / "threshold-scenes"
    write_once(chosen, partial(draw_rows, "objects", THRESHOLD_SCENES, THRESHOLD_SEED))
    networks = out / "trials"
    found: dict[str, dict[str, list[Metrics]]] = {
        row: {name: [] for name in SETS} for row in (MASKCLIP, ATTENTION, MASKS, NETWORKS)
    }
    thresholds: dict[str, list[float]] = {MASKCLIP: [], ATTENTION: []}
    sources = [(MASKCLIP, "maskclip", str(clip)) for clip in clips] + [(ATTENTION, "attention", "embedded")]
    for number, (row, method, weights) in enumerate(sources):
        files = {rows: out / "metrics" / f"{method}-{number}-{rows.name}.json" for rows in sets}
        if not all(file.exists() for file in files.values()):
            threshold = best_threshold(method, weights, chosen)
        for rows, file in files.items():
            options = {"method": method, "weights": weights, "size": IMAGE_SIDE, "background": "threshold"}
            if not file.exists():
                options["threshold"] = threshold
            found[row][rows.name].append(measure(file, dataset=str(rows), **options))
        recorded = found[row][rows.name][-1]["evaluated"]
        thresholds[row].append(recorded["method"]["protocol"]["threshold"])
    for seed in range(config.seeds):
        for rows in sets:
            file = out / "metrics" / f"networks-{seed}-{rows.name}.json"
            checkpoint = str(networks / f"networks-{seed}")
            found[NETWORKS][rows.name].append(measure(file, checkpoint=checkpoint, dataset=str(rows)))
    masks = out / "metrics" / "masks.json"
    if not masks.exists():
        write_file(masks, json.dumps(measure_masks(out / "held-out", config.held_out)).encode())
    for name, metrics in json.loads(masks.read_text()).items():
        found[MASKS][name].append(metrics)
    return {"rows": found, "thresholds": thresholds}


# Tables


def entry(values: Sequence[float | None]) -> str:
    """The mean in %, with the standard deviation if there are several seeds; "-" if it was not measured."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    deviation = f" ± {np.std(known, ddof=1):.1f}" if len(known) > 1 else ""
    return f"{np.mean(known):.1f}{deviation}"


def as_table(rows: Mapping[str, Mapping[str, Sequence[Metrics]]], name: str) -> str:
    """The rows on one set as Markdown: four columns without, and four given image-level labels."""
    columns = {**WITHOUT_LABELS, **GIVEN_LABELS}
    titles = [*WITHOUT_LABELS.values(), *(f"{title}, given labels" for title in WITHOUT_LABELS.values())]
    lines = [f"| {TITLES[name]}, % | {' | '.join(titles)} |", f"|---|{'---|' * len(titles)}"]
    for row, by_set in rows.items():
        entries = [entry([metrics.get(key) for metrics in by_set[name]]) for key in columns]
        lines.append(f"| {row} | {' | '.join(entries)} |")
    return "\n".join(lines)


def as_text(results: Mapping[str, Any], config: Table3Config) -> str:
    """The part of docs/results.md: the command, what it took and where, and a table for each set."""
    changed = [
        word
        for name in ("scenes", "clip_steps", "num_images", "held_out", "max_steps", "seeds")
        if getattr(config, name) != getattr(Table3Config(), name)
        for word in (flag_of(name), str(getattr(config, name)))
    ]
    command = ["python", "training/experiments/table3.py", *changed] if changed else ["make", "table3"]
    minutes = [f"{part} {seconds / 60:.0f} minutes" for part, seconds in results["seconds"].items()]
    thresholds = [
        f"{row} {' and '.join(f'{value:g}' for value in values)}"
        for row, values in results["thresholds"].items()
    ]
    facts = [
        f"- Time on {results['cores']} cores of {results['machine']}: {', '.join(minutes)}.",
        f"- Seeds of the trainings: {config.seeds}. Standard deviations are over them.",
        f"- Each small CLIP saw {results['pairs']:,} pairs of image and caption of {config.scenes:,} scenes.",
        f"- The networks were trained on {config.num_images:,} painted rows in {config.max_steps:,} steps.",
        f"- Held-out images of each set: {config.held_out}.",
        f"- Thresholds of the background, chosen on other scenes: {', '.join(thresholds)}.",
    ]
    listed = "\n".join(fill(fact, 110, subsequent_indent="  ", break_on_hyphens=False) for fact in facts)
    tables = [as_table(results["rows"], name) for name in SETS]
    return "\n\n".join([f"```console\n$ {shlex.join(command)}\n```", listed, *tables])


def replace_part(file: Path, text: str) -> None:
    """Replace the part of a file between `START` and `END`. Raises UserError if it lacks these marks."""
    content = file.read_text("utf-8")
    if START not in content or END not in content:
        raise UserError(f"--results {file} has no lines {START} and {END}: add both")
    before, rest = content.split(START, 1)
    after = rest.split(END, 1)[1]
    write_file(file, f"{before}{START}\n\n{text}\n\n{END}{after}".encode())


def machine() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.M) if info.exists() else []
    return names[0].strip() if names else platform.processor() or platform.machine()


def run(config: Table3Config) -> None:
    """Make what is missing of data, models and metrics, and write the tables. Raises UserError if a part
    fails.
    """
    out = Path(config.out)
    seconds = read_seconds(out)

    def timed(part: str, started: float) -> None:
        seconds[part] = seconds.get(part, 0.0) + time.monotonic() - started
        write_file(out / "seconds.json", json.dumps(seconds).encode())

    (out / "metrics").mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    clips = train_clips(config, out / "clip")
    timed("training of the small CLIP models", started)
    started = time.monotonic()
    sets = make_sets(out / "held-out", config.held_out)
    build_rows(out / "data", config.num_images)
    timed("painting of all rows", started)
    started = time.monotonic()
    run_trials(plan_trials(config, PRESET, {"networks": (out / "data", ())}, []), config.jobs)
    timed("co-training of the networks", started)
    started = time.monotonic()
    results = measure_all(config, clips, sets)
    timed("evaluation", started)
    trained = json.loads((clips[0] / "training.json").read_text())
    results |= {
        "seconds": seconds,
        "cores": usable_cores(),
        "machine": machine(),
        "pairs": trained["images_a_step"] * trained["options"]["steps"],
    }
    text = as_text(results, config)
    write_file(out / "table3.json", json.dumps(results, indent=2).encode())
    write_file(out / "table3.md", f"{text}\n".encode())
    if config.results is not None:
        replace_part(Path(config.results), text)
    print(text)
    files = [
        str(out / "metrics" / f"{name}-objects.json")
        for name in ("maskclip-0", f"attention-{config.seeds}", "networks-0")
    ]
    print(f"made {out / 'table3.json'} and table3.md beside it; a second run makes only what is missing")
    print(f"next: attn2mask compare {' '.join(files)} --out {out / 'compare.md'}")


def read_seconds(out: Path) -> dict[str, float]:
    """The seconds that each part took so far, in all runs."""
    file = out / "seconds.json"
    return json.loads(file.read_text()) if file.exists() else {}


if __name__ == "__main__":
    sys.exit(run_command(Table3Config, run, sys.argv[1:], sys.argv[0], "Table 3 at a small scale, offline."))

"""The trials of an experiment: one training of one variant with one seed each, and what it scored.

A trial is a process of its own that resumes, with a folder of its own: a second run of the experiment makes
only what is missing. `ablation.py` and `domains.py` say which trials there are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.workers import default_workers
from attn2mask.training.benchmarks import open_images

TRAIN = Path(__file__).parent / "train.py"
# How pictures are seen in all scores: larger than in training, whose random crops enlarge things (Touvron et
# al., "Fixing the train-test resolution discrepancy", NeurIPS 2019).
TEST_TIME_AUGMENTATION: dict = {"scales": (1.5, 2.0), "flip": True}
MEASURES = ("mean_iou", "mean_iou_given_labels")


@dataclass(frozen=True)
class Trial:
    """One training: ``data``, the rows it learns from; ``flags`` of `training/train.py` beside the usual."""

    name: str
    seed: int
    folder: Path
    data: Path
    flags: tuple[str, ...] = ()

    @property
    def scores(self) -> dict | None:
        """What it scored, once it is finished."""
        file = self.folder / "scores.json"
        return json.loads(file.read_text()) if file.exists() else None

    @property
    def command(self) -> list[str]:
        return [
            sys.executable, str(TRAIN), "--dataset", str(self.data), "--output-dir", str(self.folder / "run"),
            "--preset", "demo", "--seed", str(self.seed), "--workers", "0", "--report-to", "none",
            "--mixed-precision", "no", "--resume", *self.flags,
        ]  # fmt: skip


def run_trial(trial: Trial, sets: dict[str, Path], table: ClassTable) -> dict[str, dict[str, float]]:
    """Train, if that is not done, and score: by name of the set, each of `MEASURES` in 0 to 1.

    Raises UserError that names the log where training fails.
    """
    from attn2mask.training.checkpoint import load_checkpoint
    from attn2mask.training.inference import Augmentation, evaluate, report

    if trial.scores:
        return trial.scores
    trial.folder.mkdir(parents=True, exist_ok=True)
    log = trial.folder / "train.log"
    with log.open("w") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        code = subprocess.run(trial.command, stdout=file, stderr=file, env=environment).returncode
    if code:
        raise UserError(f"training of {trial.name!r} with seed {trial.seed} failed: see {log}")
    checkpoint = load_checkpoint(trial.folder / "run")
    networks = [net for net in (checkpoint.network, checkpoint.peer) if net is not None]
    scores = {}
    for name, rows in sets.items():
        pictures = open_images(str(rows), None, table)
        augmentation = Augmentation(**TEST_TIME_AUGMENTATION)
        found = report(
            evaluate(networks, checkpoint.processor, pictures, table, augmentation, progress=False)
        )
        scores[name] = {key: found[key] for key in MEASURES}
    (trial.folder / "scores.json").write_text(json.dumps(scores))
    return scores


def run_trials(
    trials: Sequence[Trial], sets: dict[str, Path], table: ClassTable, jobs: int = 0
) -> dict[str, dict]:
    """`spread` of the trials by name, ``jobs`` of them at once (0: one a core)."""
    results: dict[str, list[dict]] = {trial.name: [] for trial in trials}
    with ThreadPoolExecutor(jobs or default_workers() + 1) as pool:
        running = {pool.submit(run_trial, trial, sets, table): trial for trial in trials}
        try:
            for job in tqdm(as_completed(running), "training trials", len(running), unit="trial"):
                results[running[job].name].append(job.result())
                tqdm.write(f"{running[job].name}, seed {running[job].seed}: {job.result()}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: spread(found, sets) for name, found in results.items()}


def spread(found: Sequence[dict], sets: Iterable[str]) -> dict[str, dict[str, dict]]:
    """By set and measure: `mean` and `std` (0 for one alone) over the trials' scores, and `seeds`, all."""

    def over(values: list[float]) -> dict:
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return {"mean": float(np.mean(values)), "std": deviation, "seeds": values}

    return {s: {m: over([scores[s][m] for scores in found]) for m in MEASURES} for s in sets}


def as_entry(scores: dict[str, dict]) -> str:
    """One set's mean and deviation in per cent of mIoU, classes unknown and (told)."""
    free, told = (f"{100 * scores[m]['mean']:.1f} ± {100 * scores[m]['std']:.1f}" for m in MEASURES)
    return f"{free} ({told})"

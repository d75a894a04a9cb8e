"""The trials of an experiment: trainings of several variants with several seeds, and their scores.

A trial is a process with a directory, and it resumes. A second run of the experiment makes only what is
missing. `ablation.py` and `domain_gap.py` define the trials; this file is also the script of their processes.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from attn2mask.builders.command import run_command
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import write_file
from attn2mask.builders.options import SAME_COMMAND, CheckedOptions, option
from attn2mask.builders.workers import default_workers
from attn2mask.training.config import EVALUATION, TrainConfig
from attn2mask.training.held_out import MEASURES, train_and_score

Scores = dict[str, dict[str, float]]  # each of `MEASURES`, 0 to 1, by the name of a held-out set


@dataclass(frozen=True)
class ExperimentConfig(CheckedOptions):
    """The options that experiments with trials share. Raises UserError for values out of range."""

    RESUMES: ClassVar = SAME_COMMAND

    out: str = option("directory of everything that the experiment makes", "runs/experiment", metavar="DIR")
    num_images: int = option("rows of each dataset", 1024, at_least=1)
    held_out: int = option("images of each held-out set", 200, at_least=1)
    max_steps: int = option("steps of each training of a segmenter", 400, at_least=1)
    seeds: int = option("number of trainings of each variant", 3, at_least=1)
    jobs: int | None = option(
        "number of trainings at a time", None, at_least=1, default_text="one for each core"
    )


@dataclass(frozen=True)
class TrialConfig(TrainConfig):
    """The options of a trial's process: those of `attn2mask train`, and what to measure on."""

    held_out: list[str] | None = option(
        "directories of rows to measure the trained networks on", None, EVALUATION, stored=False
    )


@dataclass(frozen=True)
class Trial:
    """One training on the rows `data`, with further `flags`, that is measured on the held-out `sets`."""

    name: str
    seed: int
    directory: Path
    data: Path
    sets: Sequence[Path]
    flags: Sequence[str] = ()

    @property
    def scores(self) -> Scores | None:
        """What it scored; None before it is finished."""
        file = self.directory / "scores.json"
        return json.loads(file.read_text()) if file.exists() else None

    @property
    def command(self) -> list[str]:
        """The command of its process."""
        held_out = ("--held-out", *map(str, self.sets)) if self.sets else ()
        data = ("--dataset", str(self.data), "--output-dir", str(self.directory), "--workers", "0")
        method = ("--seed", str(self.seed), "--mixed-precision", "no", "--resume")
        return [sys.executable, __file__, *held_out, *data, *method, *self.flags]


def plan_trials(
    config: ExperimentConfig,
    preset: str,
    variants: Mapping[str, tuple[Path, Sequence[str]]],
    sets: Sequence[Path],
) -> list[Trial]:
    """The trials of all variants by a preset, those of the first seed first. A variant has rows and further
    flags.
    """
    # Predictions are at the size of the training's images, before test-time augmentation changes it.
    flags = ("--preset", preset, "--max-steps", str(config.max_steps), "--predict-scales", "1")
    folders = {name: Path(config.out) / "trials" / re.sub(r"\W+", "-", name) for name in variants}
    return [
        Trial(name, seed, Path(f"{folders[name]}-{seed}"), rows, sets, (*flags, *more))
        for seed in range(config.seeds)
        for name, (rows, more) in variants.items()
    ]


def run(config: TrialConfig) -> None:
    """Train and score one trial, in its own process."""
    scores = train_and_score(config, [Path(rows) for rows in config.held_out or ()])
    write_file(Path(config.output_dir) / "scores.json", json.dumps(scores).encode())


def run_trial(trial: Trial) -> Scores:
    """The scores of a trial, which is run unless it is finished. Raises UserError if it fails."""
    if trial.scores is not None:
        return trial.scores
    log = trial.directory.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        status = subprocess.run(trial.command, stdout=file, stderr=file, env=environment).returncode
    if status or trial.scores is None:
        raise UserError(f"the training of {trial.name!r} with seed {trial.seed} failed: see {log}")
    return trial.scores


def run_trials(trials: Sequence[Trial], jobs: int | None = None) -> dict[str, dict[str, dict]]:
    """The `spread` of all trials of each name. `jobs` trials run at once (None: one for each core)."""
    results: dict[str, list[Scores]] = {trial.name: [] for trial in trials}
    with ThreadPoolExecutor(jobs or default_workers() + 1) as pool:
        running = {pool.submit(run_trial, trial): trial for trial in trials}
        try:
            for job in tqdm(as_completed(running), "trials", len(running), unit="trial"):
                results[running[job].name].append(job.result())
                tqdm.write(f"{running[job].name}, seed {running[job].seed}: {job.result()}", sys.stderr)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: spread(scores) for name, scores in results.items()}


def spread(scores: Sequence[Scores]) -> dict[str, dict[str, dict]]:
    """`mean`, standard deviation `std` (0 for one trial) and all `seeds`, for each set and measure."""

    def over(values: list[float]) -> dict[str, float | list[float]]:
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return {"mean": float(np.mean(values)), "std": deviation, "seeds": values}

    return {s: {m: over([one[s][m] for one in scores]) for m in MEASURES} for s in scores[0]}


def as_entry(scores: dict[str, dict]) -> str:
    """mIoU in %, and in brackets given image-level labels, each with its standard deviation if there are
    several trials.
    """

    def entry(found: dict[str, Any]) -> str:
        deviation = f" ± {100 * found['std']:.1f}" if len(found["seeds"]) > 1 else ""
        return f"{100 * found['mean']:.1f}{deviation}"

    free, given_labels = (entry(scores[measure]) for measure in MEASURES)
    return f"{free} ({given_labels})"


if __name__ == "__main__":
    sys.exit(run_command(TrialConfig, run, sys.argv[1:], sys.argv[0], __doc__.splitlines()[0]))

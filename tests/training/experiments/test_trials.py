"""Trials of an experiment are run once, in processes with logs of their own, and summed up by name."""

import json
import sys

import pytest

from attn2mask.builders.drawn.rows import draw_rows
from attn2mask.builders.errors import UserError
from attn2mask.training.checkpoint import load_checkpoint
from attn2mask.training.experiments import trials
from attn2mask.training.experiments.trials import Trial
from attn2mask.training.held_out import write_once


def finished(tmp_path, name: str, seed: int, value: float) -> Trial:
    trial = Trial(name, seed, tmp_path / f"{name}-{seed}", tmp_path / "data", [tmp_path / "objects"])
    trial.directory.mkdir()
    scores = {"objects": {"mean_iou": value, "mean_iou_given_labels": value + 0.1}}
    (trial.directory / "scores.json").write_text(json.dumps(scores))
    return trial


def test_finished_trials_are_not_run_again_but_summed_up_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(trials.subprocess, "run", None)
    made = [finished(tmp_path, *c) for c in (("full", 0, 0.4), ("full", 1, 0.6), ("alone", 0, 0.3))]
    found = trials.run_trials(made, jobs=1)
    assert list(found) == ["full", "alone"]
    full, alone = (found[name]["objects"]["mean_iou"] for name in found)
    assert sorted(full["seeds"]) == [0.4, 0.6]
    assert full["mean"] == pytest.approx(0.5)
    assert full["std"] == pytest.approx(0.02**0.5)
    assert alone["std"] == 0
    assert trials.as_entry(found["alone"]["objects"]) == "30.0 (40.0)"
    assert trials.as_entry(found["full"]["objects"]) == "50.0 ± 14.1 (60.0 ± 14.1)"


def test_a_trial_that_fails_names_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(Trial, "command", [sys.executable, "-c", "raise SystemExit('no such thing')"])
    trial = Trial("full", 0, tmp_path / "full-0", tmp_path / "data", [])
    with pytest.raises(UserError, match=r"the training of 'full' with seed 0 failed: see .*full-0\.log"):
        trials.run_trial(trial)
    assert "no such thing" in (tmp_path / "full-0.log").read_text()
    assert trial.scores is None


def test_a_trial_trains_and_scores_in_its_own_process(tmp_path):
    rows = tmp_path / "objects"
    write_once(rows, lambda: draw_rows("objects", 2, 5))
    flags = ("--max-steps", "1", "--batch-size", "2", "--no-mixing", "--no-co-training")
    trial = Trial("toy", 3, tmp_path / "trials" / "toy-3", rows, [rows], flags)
    scores = trials.run_trial(trial)
    assert scores == trial.scores
    assert set(scores) == {"objects"}
    assert 0 <= scores["objects"]["mean_iou"] <= 1
    assert load_checkpoint(trial.directory).peer is None
    record = json.loads((trial.directory / "training_config.json").read_text())
    assert record["options"]["seed"] == 3
    assert "held_out" not in record["options"]

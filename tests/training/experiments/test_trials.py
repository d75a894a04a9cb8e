"""Cells of an experiment: made once, each in a process that tells where its log is, and summed up by name."""

import json
import sys

import pytest

from attn2mask.builders.errors import UserError
from attn2mask.builders.table_reader import load_table
from attn2mask.training.experiments import trials
from attn2mask.training.experiments.trials import Trial


def scores(value: float) -> dict:
    return {"objects": {"mean_iou": value, "mean_iou_given_labels": value + 0.1}}


def finished(tmp_path, name: str, seed: int, value: float) -> Trial:
    trial = Trial(name, seed, tmp_path / f"{name}-{seed}", tmp_path / "data")
    trial.folder.mkdir()
    (trial.folder / "scores.json").write_text(json.dumps(scores(value)))
    return trial


def test_finished_cells_are_not_made_again_but_summed_up_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(trials.subprocess, "run", None)
    made = [finished(tmp_path, *c) for c in (("full", 0, 0.4), ("full", 1, 0.6), ("alone", 0, 0.3))]
    found = trials.run_trials(made, {"objects": tmp_path}, load_table("voc"), jobs=1)
    assert list(found) == ["full", "alone"]
    full, alone = (found[name]["objects"]["mean_iou"] for name in found)
    assert sorted(full["seeds"]) == [0.4, 0.6]
    assert full["mean"] == pytest.approx(0.5)
    assert full["std"] == pytest.approx(0.02**0.5)
    assert alone["std"] == 0
    assert trials.as_entry(found["alone"]["objects"]) == "30.0 ± 0.0 (40.0 ± 0.0)"


def test_a_cell_that_fails_names_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(Trial, "command", [sys.executable, "-c", "raise SystemExit('no such thing')"])
    trial = Trial("full", 0, tmp_path / "full-0", tmp_path / "data")
    with pytest.raises(UserError, match=r"training of 'full' with seed 0 failed: see .*train\.log"):
        trials.run_trial(trial, {}, load_table("voc"))
    assert "no such thing" in (trial.folder / "train.log").read_text()
    assert trial.scores is None

"""The ablation: its table says what the cells say, and a finished cell is not made again."""

import json
import subprocess

import pytest
from PIL import Image

from attn2mask.builders.arguments import parse
from attn2mask.builders.errors import UserError
from attn2mask.training import ablation
from attn2mask.training.settings import TrainConfig

CONFIG = ablation.AblationConfig(max_steps=7)


def scores(value: float) -> dict:
    return {s: {"mean_iou": value, "told_mean_iou": value + 0.1} for s in ablation.SETS}


def test_the_table_gives_mean_and_spread(tmp_path):
    found = ablation.summary({"full": [scores(0.4), scores(0.6)], "no CRF": [scores(0.3)]}, {"objects": 0.35})
    assert found["variants"]["full"]["objects"]["mean_iou"]["mean"] == pytest.approx(0.5)
    assert found["variants"]["full"]["objects"]["mean_iou"]["std"] == pytest.approx(0.02**0.5)
    text = ablation.as_text(found).splitlines()
    assert text[2] == "| attention masks themselves | (35.0) | - | - |"
    assert text[3].startswith("| full | 50.0 ± 14.1 (60.0 ± 14.1) |")
    assert text[4].startswith("| no CRF | 30.0 ± 0.0 (40.0 ± 0.0) |")
    ablation.plot(found, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.parametrize("variant", ablation.VARIANTS, ids=lambda v: v.name)
def test_every_variant_is_a_training_that_parses(tmp_path, variant):
    cell = ablation.make_cell(CONFIG, tmp_path, variant, 2)
    config = parse(TrainConfig, cell.command[2:], "train", "")
    settings = config.settings()
    assert (config.seed, settings.max_steps, config.resume) == (2, 7, True)
    assert settings.co_training == (variant.name != "no co-training")
    assert settings.mixing == (variant.name != "no mixing")
    assert settings.reliability == (variant.name not in ("no reliability", "no CRF"))


def test_a_finished_cell_is_not_made_again(tmp_path, monkeypatch):
    cell = ablation.make_cell(CONFIG, tmp_path, ablation.VARIANTS[0], 0)
    cell.folder.mkdir(parents=True)
    (cell.folder / "scores.json").write_text(json.dumps(scores(0.5)))
    monkeypatch.setattr(subprocess, "run", None)
    assert ablation.run_cell(cell, tmp_path) == scores(0.5)


def test_a_cell_that_fails_names_its_log(tmp_path):
    cell = ablation.make_cell(CONFIG, tmp_path, ablation.VARIANTS[0], 0)
    cell.command = [cell.command[0], "-c", "raise SystemExit('no such thing')"]
    with pytest.raises(UserError, match=r"training of 'full' with seed 0 failed: see .*train\.log"):
        ablation.run_cell(cell, tmp_path)
    assert "no such thing" in (cell.folder / "train.log").read_text()

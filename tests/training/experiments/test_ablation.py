"""The ablation: its trials are trainings, and its table and plot say what they scored."""

import pytest
from PIL import Image

from attn2mask.builders.options import parse
from attn2mask.training.config import TrainConfig
from attn2mask.training.experiments import ablation
from attn2mask.training.experiments.trials import spread

CONFIG = ablation.AblationConfig(max_steps=7)


def scores(value: float) -> dict:
    return {s: {"mean_iou": value, "mean_iou_given_labels": value + 0.1} for s in ablation.SETS}


def test_the_table_gives_mean_and_spread(tmp_path):
    variants = {"full": [scores(0.4), scores(0.6)], "no CRF": [scores(0.3)]}
    variants = {name: spread(each, ablation.SETS) for name, each in variants.items()}
    found = {"variants": variants, "attention masks": {"objects": 0.35}}
    text = ablation.as_text(found).splitlines()
    assert text[2] == "| attention masks themselves | (35.0) | - | - |"
    assert text[3].startswith("| full | 50.0 ± 14.1 (60.0 ± 14.1) |")
    assert text[4].startswith("| no CRF | 30.0 ± 0.0 (40.0 ± 0.0) |")
    ablation.plot(found, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.parametrize("variant", ablation.VARIANTS, ids=lambda v: v.name)
def test_every_variant_is_a_training_that_parses(tmp_path, variant):
    trial = ablation.make_trial(CONFIG, tmp_path, variant, 2)
    config = parse(TrainConfig, trial.command[2:], "train", "")
    settings = config.settings()
    assert (config.seed, settings.max_steps, config.resume) == (2, 7, True)
    assert settings.co_training == (variant.name != "no co-training")
    assert not settings.mixing
    assert settings.reliability == (variant.name not in ("no reliability", "no CRF"))

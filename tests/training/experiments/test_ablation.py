"""The ablation: its trials are trainings, table and plot show their scores, and it runs at toy size."""

import json

import pytest
from PIL import Image

from attn2mask.builders.options import parse
from attn2mask.training.experiments import ablation
from attn2mask.training.experiments.ablation import AblationConfig
from attn2mask.training.experiments.trials import TrialConfig, spread
from attn2mask.training.held_out import SETS

CONFIG = AblationConfig(max_steps=7, seeds=1)


def scores(value: float) -> dict:
    return {s: {"mean_iou": value, "mean_iou_given_labels": value + 0.1} for s in SETS}


def test_the_table_gives_mean_and_spread(tmp_path):
    variants = {"full": [scores(0.4), scores(0.6)], "no CRF": [scores(0.3)]}
    variants = {name: spread(each) for name, each in variants.items()}
    results = {"variants": variants, "attention masks": {"objects": 0.35}}
    text = ablation.as_text(results).splitlines()
    assert text[2] == "| attention masks themselves | (35.0) | - | - |"
    assert text[3].startswith("| full | 50.0 ± 14.1 (60.0 ± 14.1) |")
    assert text[4].startswith("| no CRF | 30.0 (40.0) |")
    ablation.plot(results, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert min(image.size) > 300


@pytest.mark.parametrize("index", range(len(ablation.VARIANTS)), ids=lambda k: ablation.VARIANTS[k].name)
def test_every_variant_is_a_training_that_parses(tmp_path, index):
    variant = ablation.VARIANTS[index]
    trial = ablation.make_trials(CONFIG, [tmp_path / "objects", tmp_path / "painted"])[index]
    assert trial.name == variant.name
    config = parse(TrialConfig, trial.command[2:], "trials.py", "").resolve()
    assert (config.seed, config.max_steps, config.resume) == (0, 7, True)
    assert config.held_out == [str(tmp_path / "objects"), str(tmp_path / "painted")]
    assert config.co_training == (variant.name != "no co-training")
    assert config.preset == ("demo" if variant.name == "preset demo" else "demo-beco")
    assert config.mixing == (variant.name not in ("preset demo", "no mixing"))
    assert config.reliability == (variant.name not in ("no reliability", "no CRF"))


def toy(tmp_path) -> dict:
    argv = ["--out", str(tmp_path), "--num-images", "2", "--held-out", "2", "--max-steps", "1"]
    ablation.run(parse(AblationConfig, [*argv, "--seeds", "1", "--jobs", "1"], "ablation.py", ""))
    for name in {variant.data for variant in ablation.VARIANTS}:
        assert list((tmp_path / "data" / name).glob("**/*.parquet")), name
    with Image.open(tmp_path / "ablation.png") as image:
        assert min(image.size) > 300
    results = json.loads((tmp_path / "ablation.json").read_text())
    assert set(results["attention masks"]) == set(SETS)
    assert set(results["variants"]) == {variant.name for variant in ablation.VARIANTS}
    return results


def test_a_toy_ablation_makes_its_table(tmp_path, monkeypatch, capsys):
    """The trainings are stubbed out here; `test_trials.py` runs one, and the slow test below all."""
    monkeypatch.setattr(
        ablation, "run_trials", lambda trials, jobs: {trial.name: spread([scores(0.25)]) for trial in trials}
    )
    toy(tmp_path)
    text = (tmp_path / "ablation.md").read_text()
    assert "| no co-training | 25.0 (35.0) |" in text
    assert text.strip() in capsys.readouterr().out


@pytest.mark.slow
def test_a_toy_ablation_with_all_trainings(tmp_path):
    for variant in toy(tmp_path)["variants"].values():
        assert all(0 <= variant[s]["mean_iou"]["mean"] <= 1 for s in SETS)

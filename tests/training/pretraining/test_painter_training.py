"""The embedded painter's parts have their shapes, and its training runs from scenes to a pipeline."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from attn2mask.builders.errors import UserError
from attn2mask.builders.options import parse
from attn2mask.builders.painter import load_painter
from attn2mask.training.pretraining import autoencoder, painter_training
from attn2mask.training.pretraining.autoencoder import make_autoencoder
from attn2mask.training.pretraining.painter_training import (
    PainterTrainingConfig,
    make_unet,
    random_timesteps,
)
from attn2mask.training.pretraining.vocabulary import MAX_TOKENS


@pytest.fixture(autouse=True)
def fresh_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def small(monkeypatch):
    """Few images at each point of the training."""
    monkeypatch.setattr(painter_training, "SAMPLE_PROMPTS", "a dog on the grass | a bus on the street")
    monkeypatch.setattr(painter_training, "CHECKED", 4)
    monkeypatch.setattr(painter_training, "PAINTING", replace(painter_training.PAINTING, steps=2))
    monkeypatch.setattr(autoencoder, "CROPS", 4)


def toy(out, *more: str) -> PainterTrainingConfig:
    argv = ["--output-dir", str(out), "--scenes", "16", "--autoencoder-steps", "2", "--steps", "2"]
    argv += ["--decoder-steps", "2", "--batch-size", "2", *more]
    return parse(PainterTrainingConfig, argv, "painter_training.py", "")


def test_shapes():
    vae, unet = make_autoencoder().eval(), make_unet()
    with torch.no_grad():
        latent = vae.encode(torch.zeros(1, 3, 128, 128)).latent_dist
        assert latent.mean.shape == (1, 8, 16, 16)
        assert float(latent.std.max()) < 0.01
        assert vae.decode(latent.mean).sample.shape == (1, 3, 128, 128)
        text = torch.zeros(1, MAX_TOKENS, unet.config.cross_attention_dim)
        assert unet(latent.mean, 10, text).sample.shape == latent.mean.shape


def test_timesteps_cover_the_schedule():
    drawn = random_timesteps(4000, np.random.default_rng(0))
    assert drawn.min() >= 0
    assert drawn.max() <= 999
    assert drawn.float().mean() == pytest.approx(520, abs=40)


def test_a_toy_training_makes_a_pipeline_that_paints_and_can_be_trained_further(tmp_path, small, capsys):
    painter_training.run(toy(tmp_path / "run"))
    painter = load_painter(str(tmp_path / "run" / "pipeline"))
    assert painter.pipe.vae.config.scaling_factor > 0.1
    assert painter.pipe.unet.config.sample_size == 16
    with Image.open(tmp_path / "run" / "sheet.png") as sheet:
        assert sheet.size == (8 * 128, 128)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    (check,) = (line for line in log if line["stage"] == "check")
    assert check["step"] == 2
    assert 0 < check["true"] < 10
    assert list(check["grounding"]) == ["16x16", "8x8", "4x4"]
    assert all(0 < values["auc"] < 1 for values in check["grounding"].values())
    record = json.loads((tmp_path / "run" / "pipeline" / "training.json").read_text())
    assert record["options"]["seed"] == 0
    assert record["options"]["steps"] == record["images_a_step"] == 2
    assert record["versions"]["torch"] == torch.__version__
    assert f"next: attn2mask build voc --model {tmp_path / 'run' / 'pipeline'}" in capsys.readouterr().out

    pipeline = str(tmp_path / "run" / "pipeline")
    painter_training.run(toy(tmp_path / "further", "--start-from", pipeline, "--export", str(tmp_path / "e")))
    further = load_painter(str(tmp_path / "e"))
    assert further.pipe.vae.config.scaling_factor == painter.pipe.vae.config.scaling_factor
    weights = (p.pipe.vae.encoder.conv_in.weight for p in (painter, further))
    assert torch.allclose(*weights, atol=1e-2)  # the autoencoder was kept
    again = json.loads((tmp_path / "e" / "training.json").read_text())
    assert again["start"] == record
    assert again["options"]["start_from"] == "pipeline"


def test_an_autoencoder_is_kept(tmp_path, small, monkeypatch):
    monkeypatch.setattr(painter_training, "train_autoencoder", None)
    given = make_autoencoder()
    given.register_to_config(scaling_factor=0.7)
    given.save_pretrained(tmp_path / "vae")
    painter_training.run(toy(tmp_path, "--autoencoder", str(tmp_path / "vae"), "--decoder-steps", "0"))
    kept = load_painter(str(tmp_path / "pipeline")).pipe.vae
    assert kept.config.scaling_factor == 0.7
    for name, weight in kept.state_dict().items():
        assert torch.allclose(weight, given.state_dict()[name].half().float())


def test_a_folder_without_an_autoencoder_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"--autoencoder {tmp_path} cannot be loaded"):
        painter_training.run(toy(tmp_path / "run", "--autoencoder", str(tmp_path)))
    assert not (tmp_path / "run").exists()


def test_the_words_of_the_text_encoder_do_not_mix():
    """A token's embedding depends on its own word and position alone: end tokens carry no word."""
    encoder = painter_training.make_text_encoder(painter_training.make_tokenizer()).eval()
    ids = torch.arange(MAX_TOKENS)[None]
    changed = ids.clone()
    changed[0, 3] = 77
    with torch.no_grad():
        same = (encoder(ids).last_hidden_state == encoder(changed).last_hidden_state).all(-1)[0]
    assert same.tolist() == [k != 3 for k in range(MAX_TOKENS)]


def test_a_start_with_another_architecture_is_refused(tmp_path):
    with pytest.raises(UserError, match="--start-from embedded: its text encoder has another architecture"):
        painter_training.run(toy(tmp_path, "--start-from", "embedded"))


def test_a_start_with_another_vocabulary_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(painter_training, "train_autoencoder", None)
    tokenizer = painter_training.make_tokenizer()
    tokenizer.add_tokens(["zyzzyva"])
    monkeypatch.setattr(painter_training, "make_tokenizer", lambda: tokenizer)
    with pytest.raises(UserError, match="its tokenizer has another vocabulary"):
        painter_training.run(toy(tmp_path, "--start-from", "embedded"))

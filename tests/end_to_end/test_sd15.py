"""Stable Diffusion 1.5 by its published configs, with random weights, through the commands that users type:
only the weights differ from the real thing.

A minute or two on idle cores, 8 GB of memory, 2.2 GB of disk.
"""

import json
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from safetensors.torch import load_file
from stable_diffusion import stable_diffusion

from attn2mask.builders import synthesize
from attn2mask.builders.drawn.scenes import draw_scene
from attn2mask.builders.painter import load_painter
from attn2mask.builders.provenance import LORA_WEIGHTS
from attn2mask.hub.cli import main

pytestmark = pytest.mark.slow

GIGABYTES = 12
# Numbers of parameters of the published models.
PARAMETERS = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}


@pytest.fixture
def model(tiny_pipeline, tmp_path) -> Path:
    """The folder of the saved pipeline; its words are spelt by the tiny tokenizer, in CLIP's 77 tokens."""
    available = psutil.virtual_memory().available / 2**30
    if available < GIGABYTES:
        pytest.skip(
            f"Stable Diffusion 1.5 on the CPU takes {GIGABYTES} GB of memory, {available:.1f} are free"
        )
    pipe = stable_diffusion(tiny_pipeline("sd15").tokenizer)
    counts = {name: sum(p.numel() for p in getattr(pipe, name).parameters()) for name in PARAMETERS}
    assert counts == PARAMETERS
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_stable_diffusion_builds_rows(model, tmp_path, monkeypatch):
    seen = []

    def class_scores(maps, rules, latent_side):
        seen.append((maps, *synthesize_scores(maps, rules, latent_side)))
        return seen[-1][1:]

    synthesize_scores = synthesize.class_scores
    monkeypatch.setattr(synthesize, "class_scores", class_scores)
    # One attempt: whether random weights pass the gate is chance.
    monkeypatch.setattr(synthesize, "ATTEMPTS", 1)
    (tmp_path / "captions.txt").write_text("a photo of a dog and a bus on the street\n")
    out = tmp_path / "voc"
    command = f"build voc --model {model} --captions {tmp_path / 'captions.txt'} --out {out} --num-images 1"
    options = "--steps 2 --height 512 --width 512 --preset paper --alias-probability 0 --store-scores"
    assert main([*command.split(), *options.split()]) == 0

    ((maps, scores, peaks),) = seen
    assert [set(of_word) for of_word in maps] == [{(64, 64), (32, 32), (16, 16), (8, 8)}] * 2
    assert scores.shape == (2, 32, 32)
    assert torch.isfinite(scores).all()
    assert ((peaks > 0) & (peaks < 1)).all()
    assert not torch.equal(maps[0][32, 32], maps[1][32, 32])

    (row,) = load_dataset(str(out), split="train")
    assert row["prompt"] == "a photo of a dog and a bus on the street"
    assert [row[name].size for name in ("image", "mask", "reliability")] == [(512, 512)] * 3
    assert [row[name].mode for name in ("image", "mask", "reliability")] == ["RGB", "L", "L"]
    assert np.asarray(row["image"]).std() > 1
    assert set(np.unique(np.asarray(row["mask"]))) <= {0, *row["classes"], 255}
    stored = np.asarray(row["scores"], np.uint8)
    assert len(row["words"]) == len(row["classes"]) == len(stored)
    for word, own in zip(row["words"], stored, strict=True):
        expected = scores[["dog", "bus"].index(word)].numpy()
        assert np.abs(own / 255 - expected).max() <= 0.5 / 255 + 1e-6


def test_the_preset_of_table_2_adapts_it(model, tmp_path):
    frames, out = tmp_path / "frames", tmp_path / "adapted"
    frames.mkdir()
    for number in range(4):
        image = draw_scene("streets", np.random.default_rng([8, number]), (128, 256)).image
        Image.fromarray(image).save(frames / f"{number}.png")
    command = f"--data {frames} --model {model} --output-dir {out} --preset cityscapes --max-steps 2"
    options = "--crop-size 128 --micro-batch 1 --sample-every 0 --report-to none"
    assert main(["adapt", *command.split(), *options.split()]) == 0

    chosen = json.loads((out / "training_config.json").read_text())["options"]
    assert (chosen["learning_rate"], chosen["power"], chosen["weight_decay"]) == (2e-5, 1.0, 0.01)
    assert chosen["batch_size"] == 4
    weights = load_file(out / LORA_WEIGHTS)
    assert len(weights) == 2 * 4 * 32  # A and B of to_q, to_k, to_v and to_out, in 16 + 16 attentions
    assert all(weight.isfinite().all() for weight in weights.values())
    moved = [name for name, weight in weights.items() if "lora_B" in name and weight.any()]
    assert len(moved) == 4 * 32  # B begins at nothing
    pipe = load_painter(str(model), lora=str(out)).pipe
    assert pipe.unet.peft_config["lora"].r == chosen["rank"]

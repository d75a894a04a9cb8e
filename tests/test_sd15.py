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
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from attn2mask.builders import synthesize
from attn2mask.builders.painter import LORA_WEIGHTS, load_painter
from attn2mask.builders.worlds.scenes import draw_scene
from attn2mask.hub.cli import main
from attn2mask.training import adapt

pytestmark = pytest.mark.slow

GIGABYTES = 12
# Numbers of parameters of the published models.
PARAMETERS = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}


def random_weights(module: nn.Module) -> nn.Module:
    """`module`, made on the meta device, in float16 on the CPU: matrices that keep variance, no biases.

    The default initialisation would take minutes and, in float32, twice the memory.
    """
    module = module.half().to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    for name, weight in module.named_parameters():
        if weight.dim() > 1:
            weight.data.normal_(std=weight[0].numel() ** -0.5, generator=generator)
        else:
            weight.data.fill_(float(name.endswith("weight")))
        # Words' maps that differ from each other, and from place to place.
        if "attn2.to_q" in name or "attn2.to_k" in name:
            weight.data *= 2
    return module


def stable_diffusion(tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    down, up = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=4,
            out_channels=4,
            down_block_types=(down, down, down, "DownBlock2D"),
            up_block_types=("UpBlock2D", up, up, up),
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            attention_head_dim=8,
            cross_attention_dim=768,
        )
        vae = AutoencoderKL(
            sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=768,
                intermediate_size=3072,
                projection_dim=768,
                num_hidden_layers=12,
                num_attention_heads=12,
                max_position_embeddings=77,
                hidden_act="quick_gelu",
                bos_token_id=0,
                eos_token_id=2,
                pad_token_id=1,
            )
        )
    return StableDiffusionPipeline(
        unet=random_weights(unet),
        vae=random_weights(vae),
        text_encoder=random_weights(text_encoder),
        tokenizer=tokenizer,
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            set_alpha_to_one=False,
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


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

    def class_scores(maps, rules):
        seen.append((maps, *synthesize_scores(maps, rules)))
        return seen[-1][1:]

    synthesize_scores = synthesize.class_scores
    monkeypatch.setattr(synthesize, "class_scores", class_scores)
    # One attempt: whether random weights pass the gate is chance.
    monkeypatch.setattr(synthesize, "ATTEMPTS", 1)
    (tmp_path / "captions.txt").write_text("a photo of a dog and a bus on the street\n")
    out = tmp_path / "voc"
    command = f"build voc --model {model} --captions {tmp_path / 'captions.txt'} --out {out} --num-images 1"
    options = "--steps 2 --height 512 --width 512 --preset paper --alias-probability 0 --store-scores true"
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
    assert adapt.main([*command.split(), *options.split()]) == 0

    settings = json.loads((out / "training_config.json").read_text())["settings"]
    assert (settings["learning_rate"], settings["power"], settings["weight_decay"]) == (2e-5, 1.0, 0.01)
    assert settings["batch_size"] == 4
    weights = load_file(out / LORA_WEIGHTS)
    assert len(weights) == 2 * 4 * 32  # A and B of to_q, to_k, to_v and to_out, in 16 + 16 attentions
    assert all(weight.isfinite().all() for weight in weights.values())
    moved = [name for name, weight in weights.items() if "lora_B" in name and weight.any()]
    assert len(moved) == 4 * 32  # B begins at nothing
    pipe = load_painter(str(model), lora=str(out)).pipe
    assert pipe.unet.peft_config["lora"].r == settings["rank"]

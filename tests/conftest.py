"""Fixtures: tiny pipelines of the real architectures, with random weights, built without a network."""

import random
import string
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from background import let_children_get_signals
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import convert_state_dict_to_diffusers
from hypothesis import settings
from peft import LoraConfig, get_peft_model_state_dict
from tiny_clip import clip_config
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

# A single example has no deadline, because machines that run tests are busy.
settings.register_profile("busy", deadline=None)
settings.register_profile("long", deadline=None)  # `--hypothesis-profile long`: see test_fuzz.py
settings.load_profile("busy")

let_children_get_signals()

# Words of one token. All others are spelled letter by letter: "dog" is one token, "cow" is three.
WORDS = ["a", "an", "the", "of", "on", "in", "with", "and", "photo", "dog", "cat", "bus", "street", "red"]


@pytest.fixture(scope="session")
def tiny_pipeline() -> Callable[[str], DiffusionPipeline]:
    """`tiny_pipeline(kind)` with kind "sd15", "sd2" or "sdxl".

    128 x 128 pixels, 16 x 16 latents, 77 tokens, float32. One pipeline of a kind is shared by all tests:
    leave it as it was, or copy it first.
    """
    made: dict[str, DiffusionPipeline] = {}

    def pipeline(kind: str) -> DiffusionPipeline:
        if kind not in made:
            made[kind] = _build(kind)
        return made[kind]

    return pipeline


@pytest.fixture(scope="session")
def tiny_model(tiny_pipeline, tmp_path_factory) -> Callable[[str], Path]:
    """`tiny_model(kind)`: the folder of such a pipeline, as `--model` takes it."""

    def folder(kind: str) -> Path:
        path = tmp_path_factory.getbasetemp() / f"model-{kind}"
        if not path.exists():
            tiny_pipeline(kind).save_pretrained(path)
        return path

    return folder


@pytest.fixture(scope="session")
def family(tmp_path_factory) -> Callable[[str], DiffusionPipeline]:
    """`family(kind)`: a tiny pipeline that all tests share. Leave it as it was, or copy it first."""
    from families import tiny_family  # it imports many models

    made: dict[str, DiffusionPipeline] = {}

    def pipeline(kind: str) -> DiffusionPipeline:
        if kind not in made:
            made[kind] = tiny_family(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return pipeline


@pytest.fixture(scope="session")
def family_model(family, tmp_path_factory) -> Callable[[str], Path]:
    """`family_model(kind)`: the folder of such a pipeline, as `--model` takes it."""

    def folder(kind: str) -> Path:
        path = tmp_path_factory.getbasetemp() / f"family-{kind}"
        if not path.exists():
            family(kind).save_pretrained(path)
        return path

    return folder


@pytest.fixture(scope="session")
def tiny_lora(tiny_model, tmp_path_factory) -> Path:
    """The folder of a LoRA of the tiny "sd15", as `--lora` takes it, with random weights of rank 2."""
    folder = tmp_path_factory.mktemp("lora")
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model("sd15"), dtype=torch.float32)
    pipe.unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_k", "to_q"]))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    return folder


def _tokenizer(pad: str) -> CLIPTokenizer:
    letters = list(string.ascii_lowercase + string.digits + string.punctuation)
    vocab = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = (parts[-2], parts[-1])
            if pair not in merges:
                merges.append(pair)
            parts[-2:] = ["".join(pair)]
        vocab += [first + second for first, second in merges if first + second not in vocab]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocab)}, merges=merges, model_max_length=77, pad_token=pad
    )


def _unet(kind: str) -> UNet2DConditionModel:
    shared = {"sample_size": 16, "norm_num_groups": 4, "in_channels": 4, "out_channels": 4}
    down, up = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    if kind == "sdxl":
        return UNet2DConditionModel(
            **shared,
            block_out_channels=(8, 16, 16),
            down_block_types=("DownBlock2D", down, down),
            up_block_types=(up, up, "UpBlock2D"),
            attention_head_dim=(1, 2, 4),
            transformer_layers_per_block=(1, 1, 2),
            use_linear_projection=True,
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
        )
    levels = {
        "block_out_channels": (8, 16, 16, 16),
        "down_block_types": (down, down, down, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", up, up, up),
        "cross_attention_dim": 16,
    }
    if kind == "sd2":
        return UNet2DConditionModel(
            **shared, **levels, attention_head_dim=(1, 2, 4, 4), use_linear_projection=True
        )
    return UNet2DConditionModel(**shared, **levels, attention_head_dim=2)


def _build(kind: str) -> DiffusionPipeline:
    state = torch.random.get_rng_state()
    torch.manual_seed(random.Random(kind).randrange(2**31))
    try:
        unet = _unet(kind)
        # Random weights attend evenly; larger ones make maps that differ between words and places.
        for name, weight in unet.named_parameters():
            if "attn2.to_q" in name or "attn2.to_k" in name:
                weight.data *= 4
        vae = AutoencoderKL(
            block_out_channels=(4, 4, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=128,
        )
        parts = {"unet": unet, "vae": vae, "scheduler": _scheduler(kind)}
        tokenizer = _tokenizer("<|endoftext|>" if kind != "sd2" else "!")
        encoder = CLIPTextModel(clip_config(tokenizer))
        if kind == "sdxl":
            second = _tokenizer("!")
            pipe = StableDiffusionXLPipeline(
                **parts,
                tokenizer=tokenizer,
                text_encoder=encoder,
                tokenizer_2=second,
                text_encoder_2=CLIPTextModelWithProjection(clip_config(second)),
                add_watermarker=False,
            )
        else:
            pipe = StableDiffusionPipeline(
                **parts,
                tokenizer=tokenizer,
                text_encoder=encoder,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
    finally:
        torch.random.set_rng_state(state)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _scheduler(kind: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if kind == "sd2" else "epsilon",
    )

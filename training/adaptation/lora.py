"""DreamBooth with LoRA as functions: which layers learn, what the painter is told, and its error on a batch.

    weights = add_lora(pipe, settings, seed=0)          # the painter's own weights are frozen
    conditions = encode(pipe, ["a red bus, a photo in sks style"])
    errors = prediction_errors(pipe, make_schedule(pipe), latents, noise, timesteps, conditions)

For UNets of Stable Diffusion 1.x, 2.x and XL, whatever they predict. The LoRA is saved with its configuration
under peft's own names, in the format that diffusers' `load_lora_weights` reads: converted names of the older
format lose the attention layers where convolutions stand beside them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn

from attn2mask.builders.errors import UserError
from attn2mask.training.adaptation.config import LAYERS, Settings

TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")
ENCODERS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Conditions:
    """What the UNet is told beside the noise: `texts` (B, tokens, width), and for XL `added`, which holds
    "text_embeds" (B, width) and "time_ids" (B, 6).
    """

    texts: torch.Tensor
    added: dict[str, torch.Tensor] | None


@dataclass(frozen=True)
class Batch:
    """B pictures to learn from; with prior preservation the second half are class pictures.

    `latents` and `noise` (B, C, h, w) float32, `timesteps` (B,) int64, `texts`, and `time_ids` (B, 6) as
    `encode` takes them.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    texts: list[str]
    time_ids: torch.Tensor


def check_pipeline(pipe: Any, model: str) -> None:
    """Raises UserError for a pipeline that is no text-to-image UNet of Stable Diffusion 1.x, 2.x or XL."""
    unet = pipe.unet.config
    fits = unet.in_channels == unet.out_channels == pipe.vae.config.latent_channels
    if not fits or unet.addition_embed_type not in (None, "text_time"):
        raise UserError(
            f"--model {model}: a {type(pipe).__name__} of this kind can't be adapted;"
            " give a text-to-image model of Stable Diffusion 1.x, 2.x or XL"
        )
    if pipe.scheduler.config.get("prediction_type") not in ("epsilon", "v_prediction", "sample"):
        raise UserError(f"--model {model}: its scheduler does not say what the UNet predicts")


def make_schedule(pipe: Any) -> Any:
    """diffusers' DDPMScheduler with the pipeline's own noise, whichever scheduler it paints with."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(pipe.scheduler.config)


def encoders(pipe: Any) -> dict[str, nn.Module]:
    """The text encoders by the names of their parts, one or two."""
    return {name: part for name in ENCODERS if (part := getattr(pipe, name, None)) is not None}


def add_lora(
    pipe: Any, settings: Settings, seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, nn.Parameter]:
    """Freeze the pipeline, in ``dtype`` but for the autoencoder, and put a LoRA beside the layers of
    ``settings``.

    Returns the LoRA's weights, in float32, by part and name. They are functions of ``seed``; torch's own
    random state stays as it was.
    """
    from peft import LoraConfig

    pipe.vae.requires_grad_(False)
    weights: dict[str, nn.Parameter] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, part in {"unet": pipe.unet, **encoders(pipe)}.items():
            part.requires_grad_(False).to(dtype=dtype)
            if name != "unet" and not settings.text_encoder:
                continue
            layers = LAYERS[settings.layers] if name == "unet" else TEXT_LAYERS
            part.add_adapter(
                LoraConfig(
                    r=settings.rank, lora_alpha=settings.rank, init_lora_weights="gaussian",
                    target_modules=list(layers),
                )
            )  # fmt: skip
            for key, weight in part.named_parameters():
                if weight.requires_grad:
                    weight.data = weight.data.float()
                    weights[f"{name}.{key}"] = weight
    return weights


def save_lora(pipe: Any, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors` with the LoRA of every part and its configuration.

    Of the configuration only what any version of peft knows is kept: rank, alpha and layers. Raises OSError.
    """
    from peft import get_peft_model_state_dict

    given: dict[str, Any] = {}
    for name, part in {"unet": pipe.unet, **encoders(pipe)}.items():
        if getattr(part, "peft_config", None):
            config = part.peft_config["default"]
            layers = sorted(config.target_modules)
            given[f"{name}_lora_layers"] = get_peft_model_state_dict(part)
            given[f"{name}_lora_adapter_metadata"] = {
                "r": config.r, "lora_alpha": config.lora_alpha, "target_modules": layers,
            }  # fmt: skip
    try:
        type(pipe).save_lora_weights(folder, **given)
    except SafetensorError as error:  # what it makes of a full disk
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from error


def training_prompt(instance_prompt: str, caption: str | None, apart: bool, rng: np.random.Generator) -> str:
    """What the painter is told of a picture.

    Without a caption: the instance prompt. With one: the caption, half of the time with the instance prompt
    after it, so that the words of a build, which names no identifier, bring the new look, too. ``apart``, for
    prior preservation, which keeps words without the identifier as they are: always with it.
    """
    if caption is None:
        return instance_prompt
    return f"{caption.rstrip(' .')}, {instance_prompt}" if apart or rng.random() < 0.5 else caption


def encode(pipe: Any, texts: Sequence[str], time_ids: torch.Tensor | None = None) -> Conditions:
    """Texts as the pipeline's own `encode_prompt` reads them, cut at the model's token limit.

    Args:
        time_ids: (B, 6), for XL: height and width of the whole picture, top and left of the crop, its
            height and width, all in pixels.

    Where XL's guidance holds against nothing instead of the empty text, so do empty texts here.
    """
    first, _, *pooled = pipe.encode_prompt(
        list(texts), device=pipe.unet.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    if not pooled:
        return Conditions(first, None)
    if pipe.config.force_zeros_for_empty_prompt:
        told = torch.tensor([bool(text) for text in texts], device=first.device)
        first, pooled[0] = first * told[:, None, None], pooled[0] * told[:, None]
    return Conditions(first, {"text_embeds": pooled[0], "time_ids": time_ids.to(first)})


def prediction_errors(
    pipe: Any,
    schedule: Any,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    conditions: Conditions,
) -> torch.Tensor:
    """The mean square error of the UNet's prediction on each of B noised latents (B, C, h, w): (B,) float32.

    What it predicts (noise, velocity or the picture) is the schedule's `prediction_type`. Ho et al. 2020,
    equation 14; Salimans and Ho 2022, appendix D, for the velocity.
    """
    noisy = schedule.add_noise(latents, noise, timesteps)
    output = pipe.unet(
        noisy.to(pipe.unet.dtype), timesteps, conditions.texts, added_cond_kwargs=conditions.added
    ).sample.float()
    kind = schedule.config.prediction_type
    if kind == "v_prediction":
        target = schedule.get_velocity(latents, noise, timesteps)
    else:
        target = noise if kind == "epsilon" else latents
    return (output - target).square().mean((1, 2, 3))


def batch_loss(pipe: Any, schedule: Any, batch: Batch, settings: Settings) -> torch.Tensor:
    """The mean error on a batch's pictures and, with prior preservation, ``prior_weight`` times that on the
    class pictures in its second half. Ruiz et al. 2023 (DreamBooth), equation 2.
    """
    device = pipe.unet.device
    latents, noise, timesteps = (
        tensor.to(device) for tensor in (batch.latents, batch.noise, batch.timesteps)
    )
    with torch.set_grad_enabled(settings.text_encoder):
        conditions = encode(pipe, batch.texts, batch.time_ids)
    errors = prediction_errors(pipe, schedule, latents, noise, timesteps, conditions)
    if not settings.prior_weight:
        return errors.mean()
    own, prior = errors.chunk(2)
    return own.mean() + settings.prior_weight * prior.mean()

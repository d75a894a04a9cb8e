"""DreamBooth with LoRA: the layers that learn, the conditioning, and the loss on a batch.

    weights = add_lora(pipe, config)          # the painter's own weights are frozen
    conditions = encode_prompts(pipe, ["a red bus, a photo in sks style"])
    errors = prediction_errors(pipe, make_schedule(pipe), latents, noise, timesteps, conditions)

These functions are for UNets of Stable Diffusion 1.x, 2.x and XL with any prediction type. The LoRA is saved
with its configuration under peft's own names, in the format that diffusers' `load_lora_weights` reads: with
the converted names of the older format, diffusers loses the attention layers if convolutions have a LoRA,
too.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from attn2mask.builders.errors import UserError, system_error_number
from attn2mask.training.adaptation.batches import Batch
from attn2mask.training.adaptation.config import LAYERS, AdaptConfig

TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")
ENCODERS = ("text_encoder", "text_encoder_2")
Conditions = tuple[torch.Tensor, dict[str, torch.Tensor] | None]  # what `encode_prompts` returns


def check_pipeline(pipe: Any, model: str) -> None:
    """Raises UserError for a pipeline that is not a text-to-image one of Stable Diffusion 1.x, 2.x or XL."""
    unet = pipe.unet.config if hasattr(pipe, "unet") else None
    fits = unet is not None and unet.in_channels == unet.out_channels == pipe.vae.config.latent_channels
    if not fits or unet.addition_embed_type not in (None, "text_time") or unet.encoder_hid_dim is not None:
        raise UserError(
            f"--model {model}: a {type(pipe).__name__} of this kind cannot be adapted;"
            " give a text-to-image model of Stable Diffusion 1.x, 2.x or XL (docs/painters.md has commands"
            " for Stable Diffusion 3 and FLUX.1)"
        )
    if pipe.scheduler.config.get("prediction_type") not in ("epsilon", "v_prediction", "sample"):
        raise UserError(f"--model {model}: its scheduler has no prediction type that is known")


def make_schedule(pipe: Any) -> Any:
    """diffusers' DDPMScheduler with the noise of the pipeline's own scheduler."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(pipe.scheduler.config)


def encoders(pipe: Any) -> dict[str, nn.Module]:
    """The one or two text encoders by their names in the pipeline."""
    return {name: part for name in ENCODERS if (part := getattr(pipe, name, None)) is not None}


def add_lora(pipe: Any, config: AdaptConfig, dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    """Freeze the pipeline, in `dtype` except for the autoencoder, and add a LoRA to the layers that `config`
    names.

    Returns the LoRA's weights, in float32, by part and name. They are functions of the seed; torch's own
    random state does not change.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    pipe.vae.requires_grad_(False)
    weights: dict[str, nn.Parameter] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        for name, part in {"unet": pipe.unet, **encoders(pipe)}.items():
            part.requires_grad_(False).to(dtype=dtype)
            if name != "unet" and not config.text_encoder:
                continue
            layers = LAYERS[config.layers] if name == "unet" else TEXT_LAYERS
            settings = {"r": config.rank, "lora_alpha": config.rank, "target_modules": list(layers)}
            part.add_adapter(LoraConfig(**settings, init_lora_weights="gaussian"))
            cast_training_params(part)
            weights |= {f"{name}.{key}": w for key, w in part.named_parameters() if w.requires_grad}
    return weights


def save_lora(pipe: Any, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors` with the LoRA of every part and its configuration.

    The configuration holds only what all versions of peft know: rank, alpha and layers. Raises OSError.
    """
    from peft import get_peft_model_state_dict

    given: dict[str, Any] = {}
    for name, part in {"unet": pipe.unet, **encoders(pipe)}.items():
        if getattr(part, "peft_config", None):
            config = part.peft_config["default"]
            settings = {"r": config.r, "lora_alpha": config.lora_alpha}
            settings["target_modules"] = sorted(config.target_modules)
            given[f"{name}_lora_layers"] = get_peft_model_state_dict(part)
            given[f"{name}_lora_adapter_metadata"] = settings
    try:
        type(pipe).save_lora_weights(folder, **given)
    except SafetensorError as error:  # for example of a full disk
        number = system_error_number(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(folder)) from error


def encode_prompts(pipe: Any, texts: Sequence[str], time_ids: torch.Tensor | None = None) -> Conditions:
    """Prompts through the pipeline's own `encode_prompt`, cut at the model's token limit.

    Args:
        time_ids: (B, 6), for XL: height and width of the whole image, top and left of the crop, and its
            height and width, all in pixels.

    Returns the texts (B, tokens, width), and for XL a dictionary of "text_embeds" (B, width) and "time_ids".
    If the pipeline's guidance replaces the empty prompt by zeros (XL), so does this function.
    """
    first, _, *pooled = pipe.encode_prompt(
        list(texts), device=pipe.unet.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    if not pooled:
        return first, None
    if pipe.config.force_zeros_for_empty_prompt:
        kept = torch.tensor([bool(text) for text in texts], device=first.device)
        first, pooled[0] = first * kept[:, None, None], pooled[0] * kept[:, None]
    return first, {"text_embeds": pooled[0], "time_ids": time_ids.to(first)}


def prediction_errors(
    pipe: Any,
    schedule: Any,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    conditions: Conditions,
) -> torch.Tensor:
    """The mean square error of the UNet's prediction for each of B noised latents (B, C, h, w): (B,) float32.

    The schedule's `prediction_type` says whether the UNet predicts the noise, the velocity or the image. Ho
    et al. 2020, equation 14; for the velocity, Salimans and Ho 2022, appendix D.
    """
    texts, added = conditions
    noisy = schedule.add_noise(latents, noise, timesteps).to(pipe.unet.dtype)
    output = pipe.unet(noisy, timesteps, texts, added_cond_kwargs=added).sample.float()
    kind = schedule.config.prediction_type
    if kind == "v_prediction":
        target = schedule.get_velocity(latents, noise, timesteps)
    else:
        target = noise if kind == "epsilon" else latents
    return (output - target).square().mean((1, 2, 3))


def batch_loss(pipe: Any, schedule: Any, batch: Batch, config: AdaptConfig) -> torch.Tensor:
    """The mean error on a batch. With prior preservation: the mean error on its first half plus
    `prior_weight` times the mean error on the class images in its second half. Ruiz et al. 2023 (DreamBooth),
    equation 2.
    """
    device = pipe.unet.device
    latents, noise, timesteps = (
        tensor.to(device) for tensor in (batch.latents, batch.noise, batch.timesteps)
    )
    with torch.set_grad_enabled(config.text_encoder):
        conditions = encode_prompts(pipe, batch.prompts, batch.time_ids)
    errors = prediction_errors(pipe, schedule, latents, noise, timesteps, conditions)
    if not config.prior_preservation:
        return errors.mean()
    own, prior = errors.chunk(2)
    return own.mean() + config.prior_weight * prior.mean()

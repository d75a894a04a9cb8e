"""The attention of a painter to the words of texts on images that are given to it: one denoising pass.

    latents = noisy_latents(painter, pixels, seed=0)
    recorder = single_pass(painter, latents, encode(painter, ["a dog on grass"]), [{"dog": (2,)}])
    recorder.maps[0]["dog"]

An image is encoded, and noise is added to it. The denoiser must be a UNet (`builders.layouts.UNet`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attn2mask.builders.layouts import Size
from attn2mask.builders.painter import Painter
from attn2mask.builders.recorder import AttentionRecorder

TIMESTEP = 350  # of 1,000: the noise that is added to images


@dataclass(frozen=True)
class EncodedTexts:
    """What the UNet takes of N texts: the states (N, L, D) of their tokens, and, for Stable Diffusion XL and
    Kolors, a vector (N, E) of each whole text.
    """

    states: Tensor
    pooled: Tensor | None = None


@torch.no_grad()
def encode(painter: Painter, texts: list[str]) -> EncodedTexts:
    """N texts, as the text encoders of the painter encode them."""
    states, _, *pooled = painter.pipe.encode_prompt(
        texts, device=painter.pipe.unet.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return EncodedTexts(states, pooled[0] if pooled else None)


@torch.no_grad()
def noisy_latents(painter: Painter, pixels: Tensor, seed: int) -> Tensor:
    """The latents (N, C, h, w) of pixels (N, 3, H, W) in [-1, 1] with the noise of `TIMESTEP`. H and W are
    multiples of the pipeline's factor. All images get the same noise, which is drawn on the CPU from `seed`.
    """
    pipe, device = painter.pipe, painter.pipe.unet.device
    signal = pipe.scheduler.alphas_cumprod[TIMESTEP].cpu()
    # The autoencoder of Stable Diffusion XL overflows in float16.
    latents = pipe.vae.float().encode(pixels.to(device)).latent_dist.mean.cpu()
    latents = latents * pipe.vae.config.scaling_factor
    noise = torch.randn(latents[:1].shape, generator=torch.Generator().manual_seed(seed))
    return (signal.sqrt() * latents + (1 - signal).sqrt() * noise).to(device, pipe.unet.dtype)


@torch.no_grad()
def single_pass(
    painter: Painter,
    latents: Tensor,
    texts: EncodedTexts,
    spans: Sequence[Mapping[Any, Sequence[int]]],
    self_attention: Callable[[Sequence[Size]], Size] | None = None,
) -> AttentionRecorder:
    """A recorder with the attention of one pass of the UNet over N noisy latents (N, C, h, w), each with its
    own one of N texts. `spans` and `self_attention` are those of `AttentionRecorder`.
    """
    pipe, states = painter.pipe, texts.states.to(latents)
    conditions = {}
    if texts.pooled is not None:  # such a UNet also takes original size, crop and target size
        height, width = (side * pipe.vae_scale_factor for side in latents.shape[-2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]]).to(states).expand(len(latents), -1)
        conditions = {"text_embeds": texts.pooled.to(latents), "time_ids": sizes}
    with AttentionRecorder(pipe.unet, spans, self_attention=self_attention) as recorder:
        pipe.unet(latents, TIMESTEP, states, added_cond_kwargs=conditions)
    return recorder

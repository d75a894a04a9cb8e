"""Batches of crops of encoded images, with prompts and noise.

What a position of the run sees (image, crop, prompt, noise, timestep) is a function of (seed, position), so
neither a kill nor the number of processes changes it. A crop's place is a multiple of the autoencoder's
factor.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from attn2mask.builders.prompts import with_instance_prompt
from attn2mask.training.adaptation.config import AdaptConfig
from attn2mask.training.adaptation.images import Crop, Latents


@dataclass(frozen=True)
class Batch:
    """B crops to learn from; with prior preservation, the second half are crops of class images.

    `latents` and `noise` are (B, C, h, w) float32, `timesteps` (B,) int64, `prompts` B texts, and `time_ids`
    (B, 6) as `lora.encode_prompts` takes them.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    prompts: list[str]
    time_ids: torch.Tensor


@dataclass(frozen=True)
class Batches:
    """Makes batches. `captions` are parallel to `latents`; `timesteps` is the number of steps of the noise
    schedule; `class_latents` are there with prior preservation; `config` is resolved.
    """

    config: AdaptConfig
    crop: Crop
    latents: Latents
    captions: Sequence[str | None]
    timesteps: int
    class_latents: Latents | None = None

    def __call__(self, positions: Iterable[tuple[int, int]]) -> Batch:
        """The batch of (position in the run, number of the image)."""
        config, with_class = self.config, self.class_latents is not None
        examples, of_class = [], []
        for position, index in positions:
            rng = np.random.default_rng([config.seed, 2, position])
            prompt = training_prompt(config.instance_prompt, self.captions[index], with_class, rng)
            examples.append(self._example(self.latents[index], prompt, rng))
            if self.class_latents is not None:
                latent = self.class_latents[int(rng.integers(len(self.class_latents)))]
                of_class.append(self._example(latent, config.class_prompt, rng))
        latents, noise, timesteps, prompts, time_ids = zip(*examples, *of_class, strict=True)
        return Batch(
            torch.stack(latents),
            torch.stack(noise),
            torch.tensor(timesteps),
            list(prompts),
            torch.tensor(time_ids, dtype=torch.float32),
        )

    def _example(self, latent: torch.Tensor, prompt: str, rng: np.random.Generator) -> tuple:
        factor, (height, width) = self.crop.factor, latent.shape[1:]
        high, wide = self.crop.height // factor, self.crop.width // factor
        top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
        dropped = rng.random() < self.config.dropout
        timestep, seed = int(rng.integers(self.timesteps)), int(rng.integers(2**62))
        crop = latent[:, top : top + high, left : left + wide]
        noise = torch.randn(crop.shape, generator=torch.Generator().manual_seed(seed))
        time_ids = [factor * side for side in (height, width, top, left, high, wide)]
        return crop, noise, timestep, "" if dropped else prompt, time_ids


def training_prompt(instance_prompt: str, caption: str | None, always: bool, rng: np.random.Generator) -> str:
    """The prompt for an image: the instance prompt, or the caption with the instance prompt after it.

    Half of the captions are used without the instance prompt, so that prompts that have no identifier also
    produce the new look. With `always`, for prior preservation, every caption has it, so that prompts without
    the identifier keep the original look.
    """
    if caption is None:
        return instance_prompt
    return with_instance_prompt(caption, instance_prompt) if always or rng.random() < 0.5 else caption

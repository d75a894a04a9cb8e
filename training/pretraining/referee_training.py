"""Train the referee, the reference segmenter, on drawn scenes with exact masks.

    torchrun --nproc-per-node 2 training/pretraining/referee_training.py --export builders/embedded/referee

A fifth of the images goes through the painter's autoencoder, so that the referee does not take the blur of
painted images for something else.
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from attn2mask.builders.command import run_command
from attn2mask.builders.options import option
from attn2mask.builders.painter import load_painter
from attn2mask.training.pretraining.scene_store import draw_scenes
from attn2mask.training.pretraining.trainer import PretrainingConfig, Trainer, fast_dtype, start_processes
from attn2mask.training.referee import WEIGHTS, Referee, to_tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RefereeTrainingConfig(PretrainingConfig):
    """The options of `training/pretraining/referee_training.py`."""

    output_dir: str = option("directory of scenes and checkpoints", "runs/referee", stored=False)
    painter: str = option("painter whose autoencoder blurs a fifth of the images", "embedded")


def augment(
    images: Tensor, masks: Tensor, vae: AutoencoderKL, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) in [-1, 1] and masks (N, H, W), both mirrored in half of the calls; the images with
    other brightness and contrast and with slight noise, a fifth of them after noise on their latents.
    """
    if rng.random() < 0.5:
        images, masks = images.flip(-1), masks.flip(-1)
    n = len(images)
    blurred = n // 5
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    with torch.no_grad():
        latent = vae.encode(images[:blurred].to(vae.dtype)).latent_dist.mean
        strength = float(rng.uniform(0.0, 0.25)) * latent.float().std()
        latent = latent + (torch.randn(latent.shape, generator=generator).to(latent) * strength).to(latent)
        images = torch.cat([vae.decode(latent).sample.float(), images[blurred:]])
    gain = torch.from_numpy(rng.uniform(0.8, 1.2, (n, 1, 1, 1)).astype(np.float32)).to(images)
    shift = torch.from_numpy(rng.uniform(-0.15, 0.15, (n, 3, 1, 1)).astype(np.float32)).to(images)
    noise = torch.randn(images.shape, generator=generator).to(images) * 0.03
    return (images * gain + shift + noise).clamp(-1, 1), masks


def run(config: RefereeTrainingConfig) -> None:
    """Draw the scenes, train, and write the weights in float16."""
    state, folder = start_processes(), Path(config.output_dir)
    scenes = draw_scenes(folder, state, config.scenes, config.seed)
    if state.is_main_process:
        logger.info("Loading the painter %s", config.painter)
    vae = load_painter(config.painter).pipe.vae.to(state.device, fast_dtype(state.device))
    torch.manual_seed(config.seed)
    referee = Referee()
    trainer = Trainer({"referee": referee}, state, folder / WEIGHTS, config.learning_rate, config.steps)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 6, step, state.process_index])
        rows = np.sort(rng.integers(len(scenes.images), size=config.batch_size))
        images, masks = to_tensor(scenes.images[rows]), torch.from_numpy(scenes.masks[rows]).long()
        x, y = augment(images.to(state.device), masks.to(state.device), vae, rng)
        return F.cross_entropy(referee(x.to(vae.dtype)).float(), y, ignore_index=255)

    trainer.run("referee", loss)
    if state.is_main_process:
        target = Path(config.export or folder / "weights")
        target.mkdir(parents=True, exist_ok=True)
        weights = {k: v.half().cpu().contiguous() for k, v in referee.state_dict().items()}
        save_file(weights, target / WEIGHTS)
        print(f"{target / WEIGHTS}: the referee after {config.steps} steps")
    state.destroy_process_group()


if __name__ == "__main__":
    sys.exit(run_command(RefereeTrainingConfig, run, sys.argv[1:], sys.argv[0], __doc__.splitlines()[0]))

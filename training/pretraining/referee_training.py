"""Trains the referee, the reference segmenter, on drawn scenes with exact masks.

torchrun --nproc-per-node 2 training/pretraining/referee_training.py --export builders/embedded/referee
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from attn2mask.builders.options import run_command
from attn2mask.builders.painter import load_painter
from attn2mask.training.referee import Referee


@dataclass(frozen=True)
class RefereeConfig:
    """What `training/referee.py` takes."""

    output_dir: str = "runs/referee"
    scenes: int = field(default=30_000, metadata={"help": "pictures drawn to train on"})
    painter: str = field(default="embedded", metadata={"help": "pipeline whose autoencoder blurs a fifth"})
    export: str = field(default="", metadata={"help": "folder that the finished weights are written to"})
    steps: int = 8_000
    batch_size: int = 16
    learning_rate: float = 2e-3
    seed: int = 0


def augment(
    images: torch.Tensor, masks: torch.Tensor, vae, rng: np.random.Generator
) -> tuple[torch.Tensor, ...]:
    """Mirror, brightness and contrast, slight noise, and for a fifth of the pictures the painter's
    autoencoder.
    """
    if rng.random() < 0.5:
        images, masks = images.flip(-1), masks.flip(-1)
    n = len(images)
    through = n // 5
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    with torch.no_grad():
        latent = vae.encode(images[:through].bfloat16()).latent_dist.mean
        strength = float(rng.uniform(0.0, 0.25)) * latent.float().std()
        latent = latent + (torch.randn(latent.shape, generator=generator).to(latent) * strength).to(latent)
        images = torch.cat([vae.decode(latent).sample.float(), images[through:]])
    gain = torch.from_numpy(rng.uniform(0.8, 1.2, (n, 1, 1, 1)).astype(np.float32)).to(images)
    shift = torch.from_numpy(rng.uniform(-0.15, 0.15, (n, 3, 1, 1)).astype(np.float32)).to(images)
    noise = torch.randn(images.shape, generator=generator).to(images) * 0.03
    return (images * gain + shift + noise).clamp(-1, 1), masks


def main(argv: list[str] | None = None) -> None:
    from transformers import HfArgumentParser

    from attn2mask.training.pretraining.painter_training import Pictures, draw, to_tensor
    from attn2mask.training.pretraining.trainer import Ranks, Trainer

    (config,) = HfArgumentParser(RefereeConfig).parse_args_into_dataclasses(argv)
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    ranks = Ranks()
    draw(config.scenes, config.seed, ranks, folder)
    pictures = Pictures(folder, ranks.rank)
    vae = load_painter(config.painter).pipe.vae.to(ranks.device, torch.bfloat16)
    torch.manual_seed(config.seed)
    referee = Referee()
    trainer = Trainer(
        {"referee": referee},
        ranks,
        folder / "referee.safetensors",
        learning_rate=config.learning_rate,
        steps=config.steps,
        ema=0.998,
    )

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([config.seed, 6, step, ranks.rank])
        rows = np.sort(rng.integers(len(pictures.images), size=config.batch_size))
        images, masks = to_tensor(pictures.images[rows]), torch.from_numpy(pictures.masks[rows]).long()
        x, y = augment(images.to(ranks.device), masks.to(ranks.device), vae, rng)
        return F.cross_entropy(referee(x.bfloat16()).float(), y, ignore_index=255)

    trainer.run("referee", loss)
    trainer.mean_weights()
    if ranks.main:
        target = Path(config.export or folder / "weights")
        target.mkdir(parents=True, exist_ok=True)
        weights = {k: v.half().cpu().contiguous() for k, v in referee.state_dict().items()}
        save_file(weights, target / "referee.safetensors")
        print(f"wrote {target / 'referee.safetensors'}")
    ranks.leave()


if __name__ == "__main__":
    sys.exit(run_command(main))

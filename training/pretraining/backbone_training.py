"""Pretrains the small backbone that ships: as a ResNet-50 learns ImageNet's classes, it learns the kinds of
drawn things.

    torchrun --nproc-per-node 2 training/backbone.py --export training/embedded/backbone

It learns which kinds of things a drawn scene shows, from the list of them alone and never from a mask, so
that the segmenters of the demo and of the ablation start, as the paper's do, from features, not from noise.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from attn2mask.builders.drawn.kinds import KINDS
from attn2mask.builders.options import run_command
from attn2mask.training.cotraining import normalize, photometric
from attn2mask.training.models import SCRATCH
from attn2mask.training.pretraining.painter_training import Pictures, draw
from attn2mask.training.pretraining.trainer import Ranks, Trainer

SIDES = (64, 80, 96)  # pixels that pictures are brought to, one side a step


@dataclass(frozen=True)
class BackboneConfig:
    """What `training/backbone.py` takes."""

    output_dir: str = "runs/backbone"
    scenes: int = field(default=30_000, metadata={"help": "pictures drawn to train on"})
    steps: int = 6_000
    batch_size: int = field(default=32, metadata={"help": "pictures a step and process"})
    learning_rate: float = 2e-3
    seed: int = 0
    export: str = field(default="", metadata={"help": "folder that the finished weights are written to"})


def batch_of(
    pictures: Pictures, kinds: np.ndarray, rng: np.random.Generator, size: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (N, 3, S, S), normalized, and which kinds they show (N, kinds) in 0 and 1."""
    rows = np.sort(rng.integers(len(pictures.images), size=size))
    side = SIDES[rng.integers(len(SIDES))]
    images = torch.from_numpy(pictures.images[rows]).to(device).permute(0, 3, 1, 2).float() / 255
    images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    images = images.flip(-1) if rng.random() < 0.5 else images
    torch.manual_seed(int(rng.integers(2**62)))
    return normalize(photometric(images)), torch.from_numpy(kinds[rows]).to(device)


def main(argv: list[str] | None = None) -> None:
    from transformers import AutoConfig, HfArgumentParser, ResNetForImageClassification

    (config,) = HfArgumentParser(BackboneConfig).parse_args_into_dataclasses(argv)
    ranks, folder = Ranks(), Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    draw(config.scenes, config.seed, ranks, folder, world="variety")
    pictures = Pictures(folder, ranks.rank)
    kinds = np.zeros((len(pictures.scenes), len(KINDS)), np.float32)
    for row, scene in enumerate(pictures.scenes):
        kinds[row, [k for k, _ in scene["things"]]] = 1

    torch.manual_seed(config.seed)
    names = {k: f"{kind.thing}: {kind.draw.__name__}" for k, kind in enumerate(KINDS)}
    described = AutoConfig.for_model(
        **SCRATCH["small"], id2label=names, problem_type="multi_label_classification"
    )
    network = ResNetForImageClassification(described)
    trainer = Trainer(
        {"network": network}, ranks, folder / "backbone.safetensors",
        learning_rate=config.learning_rate, steps=config.steps, ema=0.998,
    )  # fmt: skip

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng([config.seed, 7, step, ranks.rank])
        return batch_of(pictures, kinds, rng, config.batch_size, ranks.device)

    def loss(step: int) -> torch.Tensor:
        x, y = batch(step)
        return F.binary_cross_entropy_with_logits(network(x.bfloat16()).logits.float(), y) * len(KINDS)

    network.train()
    trainer.run("backbone", loss)
    trainer.mean_weights()
    settle_norms(network, (batch(config.steps + k)[0] for k in range(60)))
    if ranks.main:
        target = Path(config.export or folder / "weights")
        found = precision(network.eval(), [batch(config.steps + 100 + k) for k in range(20)])
        network.cpu().half().save_pretrained(target)
        print(f"wrote {target}: mean average precision {found:.3f} over kinds, on pictures it was trained on")
    ranks.leave()


@torch.no_grad()
def settle_norms(network: torch.nn.Module, batches) -> None:
    """Running statistics of the averaged weights, in float32: those of training belong to others."""
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    network.train()
    for x in batches:
        network(x)
    for norm in norms:
        norm.momentum = 0.1


@torch.no_grad()
def precision(network: torch.nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Mean over the kinds of the average precision, 0 to 1."""
    scores = torch.cat([network(x).logits for x, _ in batches])
    shown = torch.cat([y for _, y in batches])
    values = []
    for k in range(shown.shape[1]):
        hits = shown[scores[:, k].argsort(descending=True), k]
        if hits.any():
            ranks = hits.nonzero()[:, 0] + 1
            values.append(float((torch.arange(1, len(ranks) + 1, device=ranks.device) / ranks).mean()))
    return float(np.mean(values))


if __name__ == "__main__":
    sys.exit(run_command(main))

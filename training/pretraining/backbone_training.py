"""Train the small backbone that ships: it learns which kinds of things a drawn scene shows.

    torchrun --nproc-per-node 2 training/pretraining/backbone_training.py --export builders/embedded/backbone

It learns from the list of the kinds alone, as a ResNet-50 learns ImageNet's classes, and sees no mask. The
segmenters of the demo and of the ablation start from it, as the paper's start from ImageNet's features.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torchmetrics.functional.classification import multilabel_average_precision
from transformers import AutoConfig, ResNetForImageClassification

from attn2mask.builders.command import run_command
from attn2mask.builders.drawn.kinds import KINDS
from attn2mask.builders.options import option
from attn2mask.training.backbones import SCRATCH
from attn2mask.training.config import TrainConfig
from attn2mask.training.cotraining import normalize, photometric
from attn2mask.training.pretraining.scene_store import SceneStore, draw_scenes
from attn2mask.training.pretraining.trainer import PretrainingConfig, Trainer, start_processes

# Changes of the colors of the training images.
COLORS = TrainConfig(
    brightness=0.3, contrast=0.3, hue=0.1, gray_probability=0.1, blur_probability=0.3
).resolve()
SIDES = (64, 80, 96)  # pixels that the images of a batch are resized to, one of them in each step
NORM_BATCHES, TEST_BATCHES = 60, 20  # for the running statistics of BatchNorm, and for the average precision


@dataclass(frozen=True)
class BackboneTrainingConfig(PretrainingConfig):
    """The options of `training/pretraining/backbone_training.py`."""

    output_dir: str = option("directory of scenes and checkpoints", "runs/backbone", stored=False)
    steps: int = option("number of training steps", 6_000, at_least=1)
    batch_size: int = option("images of a step in each process", 32, at_least=1)


def make_batch(
    scenes: SceneStore, shown: np.ndarray, rng: np.random.Generator, size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Normalized images (B, 3, S, S), and their lines of `shown` (N, kinds): which kinds a scene shows."""
    rows = np.sort(rng.integers(len(scenes.images), size=size))
    side = SIDES[rng.integers(len(SIDES))]
    images = torch.from_numpy(scenes.images[rows]).to(device).permute(0, 3, 1, 2).float() / 255
    images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    images = images.flip(-1) if rng.random() < 0.5 else images
    torch.manual_seed(int(rng.integers(2**62)))
    return normalize(photometric(images, COLORS)), torch.from_numpy(shown[rows]).to(device)


def run(config: BackboneTrainingConfig) -> None:
    """Draw the scenes, train, measure the statistics of BatchNorm, and write the weights in float16."""
    state, folder = start_processes(), Path(config.output_dir)
    scenes = draw_scenes(folder, state, config.scenes, config.seed)
    shown = np.zeros((len(scenes.scenes), len(KINDS)), np.float32)
    for row, scene in enumerate(scenes.scenes):
        shown[row, [k for k, _ in scene["things"]]] = 1

    torch.manual_seed(config.seed)
    names = {k: f"{kind.thing}: {kind.draw.__name__}" for k, kind in enumerate(KINDS)}
    network = ResNetForImageClassification(
        AutoConfig.for_model(**SCRATCH["small"], id2label=names, problem_type="multi_label_classification")
    )
    trainer = Trainer(
        {"network": network}, state, folder / "backbone.safetensors", config.learning_rate, config.steps
    )

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([config.seed, 7, step, state.process_index])
        return make_batch(scenes, shown, rng, config.batch_size, state.device)

    def loss(step: int) -> Tensor:
        x, y = batch(step)
        return F.binary_cross_entropy_with_logits(network(x.to(network.dtype)).logits.float(), y) * len(KINDS)

    network.train()
    trainer.run("backbone", loss)
    if state.is_main_process:
        # Those of training belong to other weights than the averaged ones.
        update_bn((batch(config.steps + k) for k in range(NORM_BATCHES)), network)
        tested = [batch(config.steps + 100 + k) for k in range(TEST_BATCHES)]
        precision = mean_precision(network.eval(), tested)
        target = Path(config.export or folder / "weights")
        network.cpu().half().save_pretrained(target)
        print(f"{target}: the backbone, mean average precision {precision:.3f} on images it was trained on")
    state.destroy_process_group()


@torch.no_grad()
def mean_precision(network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The average precision, 0 to 1, in the mean over the kinds that the images show."""
    scores = torch.cat([network(x).logits for x, _ in batches])
    shown = torch.cat([y for _, y in batches]).int()
    kinds = shown.any(0).nonzero()[:, 0]
    return float(multilabel_average_precision(scores[:, kinds], shown[:, kinds], len(kinds)))


if __name__ == "__main__":
    sys.exit(run_command(BackboneTrainingConfig, run, sys.argv[1:], sys.argv[0], __doc__.splitlines()[0]))

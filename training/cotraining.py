"""One step of co-training: two networks learn labels where reliable, and each other's answer where not.

The method is BECO's (Rong et al., "Boundary-Enhanced Co-Training for Weakly Supervised Semantic
Segmentation", CVPR 2023) with the reliability map as its confidence mask. `cotraining_losses` is the step;
the rest are the functions that it calls, each pure but for the random generator of torch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn2mask.training.config import Settings

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colors, as backbones expect


class Pair(nn.Module):
    """Two networks as one module, so that one optimizer, one all-reduce and one checkpoint serve both; ``b``
    is None where one trains alone.
    """

    def __init__(self, a: nn.Module, b: nn.Module | None) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) normalized -> one or two logits (N, C, H, W) in float32."""
        return [net(pixel_values=images).logits.float() for net in (self.a, self.b) if net is not None]

    @torch.no_grad()
    def online(self, images: Tensor) -> Tensor:
        """Probabilities (N, C, H, W) of the mean of the logits, as the pair would predict: running
        statistics, no dropout.
        """
        training = self.training
        self.eval()
        logits = self(images)
        self.train(training)
        return torch.stack(logits).mean(0).softmax(1)


def cotraining_losses(
    forward: Callable[[Tensor], list[Tensor]],
    online: Callable[[Tensor], Tensor],
    batch: dict[str, Tensor],
    settings: Settings,
    together: bool,
    ignore: int,
    background: int | None,
) -> list[Tensor]:
    """The loss of each network on one batch.

    Args:
        forward: images -> logits of each network, with gradients.
        online: images -> probabilities of the pair, without.
        batch: pixels (N, 3, H, W) uint8; label (N, H, W) int64 with ``ignore``; trusted (N, H, W) bool.
        settings: which parts are on, and their constants.
        together: False in the warm-up, in which reliable labels alone are learnt.
        ignore: the label that is not learnt where it is trusted.
        background: its id, which mixing never pastes; None for tables without.
    """
    images, label, trusted = batch["pixels"].float() / 255, batch["label"], batch["trusted"]
    weight = torch.ones_like(label, dtype=torch.float32)
    if together and settings.mixing:
        label, trusted = add_online_labels(online(normalize(images)), label, trusted, settings.confidence)
        images, label, trusted, weight = classmix(
            images, label, trusted, ignore, background, settings.boundary_weight
        )
    logits = forward(normalize(photometric(images)))
    answers = [each.detach().max(1).indices for each in reversed(logits)]  # network A hears B, and B hears A
    if not together or len(logits) == 1:
        answers = [torch.full_like(label, ignore)] * len(logits)
    return [
        learn(own, torch.where(trusted, label, answer), weight, ignore)
        for own, answer in zip(logits, answers, strict=True)
    ]


def learn(logits: Tensor, target: Tensor, weight: Tensor, ignore: int) -> Tensor:
    """Cross-entropy, weighted, averaged over the pixels that are not ``ignore``; 0 where all are."""
    loss = F.cross_entropy(logits, target, ignore_index=ignore, reduction="none") * weight
    return loss.sum() / (target != ignore).sum().clamp(min=1)


def add_online_labels(
    probabilities: Tensor, label: Tensor, trusted: Tensor, confidence: float
) -> tuple[Tensor, Tensor]:
    """Where the label is not trusted and the pair is more than ``confidence`` sure, its answer becomes a
    trusted label. Shapes: (N, C, H, W); (N, H, W) int64; (N, H, W) bool.
    """
    sure, answer = probabilities.max(1)
    added = ~trusted & (sure > confidence)
    return torch.where(added, answer, label), trusted | added


def classmix(
    images: Tensor,
    label: Tensor,
    trusted: Tensor,
    ignore: int,
    background: int | None,
    boundary_weight: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ClassMix (Olsson et al., WACV 2021): half of the classes of the next picture, at random, on each.

    Returns images, label and trusted as they came, mixed, and a weight (N, H, W): ``boundary_weight`` along
    the pasted outline (a 3 x 3 dilation less the erosion), else 1.
    """
    order = torch.arange(len(images), device=label.device).roll(-1)
    pasted = torch.zeros_like(trusted)
    for i, j in enumerate(order.tolist()):
        classes = label[j].unique()
        classes = classes[(classes != ignore) & (classes != (-1 if background is None else background))]
        chosen = classes[torch.randperm(len(classes))[: (len(classes) + 1) // 2].to(classes.device)]
        pasted[i] = torch.isin(label[j], chosen)
    area = pasted[:, None].float()
    outline = F.max_pool2d(area, 3, 1, 1) + F.max_pool2d(-area, 3, 1, 1)  # dilation - erosion: 0 or 1
    weight = 1 + (boundary_weight - 1) * outline[:, 0]
    return (
        torch.where(pasted[:, None], images[order], images),
        torch.where(pasted, label[order], label),
        torch.where(pasted, trusted[order], trusted),
        weight,
    )


def normalize(images: Tensor) -> Tensor:
    """(N, 3, H, W) in 0 to 1 -> with ImageNet's mean and deviation taken out."""
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def photometric(images: Tensor) -> Tensor:
    """Random brightness, contrast, saturation, hue, grey and blur of each picture, (N, 3, H, W) in 0 to 1."""
    from kornia.augmentation import AugmentationSequential, ColorJiggle, RandomGaussianBlur, RandomGrayscale

    change = AugmentationSequential(
        ColorJiggle(0.3, 0.3, 0.3, 0.1, p=0.8),
        RandomGrayscale(p=0.1),
        RandomGaussianBlur((5, 5), (0.1, 1.5), p=0.3),
    )
    return change(images)

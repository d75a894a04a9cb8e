"""One step of co-training: two networks learn reliable labels, and each other's predictions elsewhere.

The method is BECO's (Rong et al., "Boundary-Enhanced Co-Training for Weakly Supervised Semantic
Segmentation", CVPR 2023) with the reliability map as its confidence mask. `cotraining_losses` is the step. It
calls the other functions, which have no side effects except that they use torch's random generator.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn2mask.training.config import TrainConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colors in 0 to 1


class Pair(nn.Module):
    """One or two networks (`b` is None) as one module with one optimizer and one checkpoint."""

    def __init__(self, a: nn.Module, b: nn.Module | None) -> None:
        super().__init__()
        self.a, self.b = a, b

    @property
    def networks(self) -> list[nn.Module]:
        """Network A and, where there is one, B."""
        return [network for network in (self.a, self.b) if network is not None]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) normalized -> one or two logits (N, C, H, W) in float32."""
        return [network(pixel_values=images).logits.float() for network in self.networks]

    @torch.no_grad()
    def online(self, images: Tensor) -> Tensor:
        """Probabilities (N, C, H, W) of the mean of the logits, in evaluation mode."""
        training = self.training
        self.eval()
        logits = self(images)
        self.train(training)
        return torch.stack(logits).mean(0).softmax(1)


def cotraining_losses(
    forward: Callable[[Tensor], list[Tensor]],
    online: Callable[[Tensor], Tensor],
    batch: dict[str, Tensor],
    config: TrainConfig,
    cotrained: bool,
    ignore: int,
    background: int | None,
) -> list[Tensor]:
    """The loss of each network on one batch.

    Args:
        forward: images -> logits of each network, with gradients.
        online: images -> probabilities of the pair, without gradients.
        batch: pixels (N, 3, H, W) uint8; label (N, H, W) int64 with `ignore`; trusted (N, H, W) bool.
        config: says which parts are on, and holds their constants.
        cotrained: False in the warm-up, in which only reliable labels are learned.
        ignore: the label that is not learned where it is trusted.
        background: id of the background, which mixing never pastes; None for tables without background.
    """
    images, label, trusted = batch["pixels"].float() / 255, batch["label"], batch["trusted"]
    weight = torch.ones_like(label, dtype=torch.float32)
    if cotrained and config.mixing:
        label, trusted = add_online_labels(online(normalize(images)), label, trusted, config.confidence)
        images, label, trusted, weight = classmix(
            images, label, trusted, ignore, background, config.boundary_weight
        )
    logits = forward(normalize(photometric(images)))
    predictions = [each.detach().max(1).indices for each in reversed(logits)]  # B's for A, and A's for B
    if not cotrained or len(logits) == 1:
        predictions = [torch.full_like(label, ignore)] * len(logits)
    return [
        weighted_loss(own, torch.where(trusted, label, prediction), weight, ignore)
        for own, prediction in zip(logits, predictions, strict=True)
    ]


def weighted_loss(logits: Tensor, target: Tensor, weight: Tensor, ignore: int) -> Tensor:
    """Weighted cross-entropy, averaged over the pixels that are not `ignore`; 0 if all pixels are."""
    loss = F.cross_entropy(logits, target, ignore_index=ignore, reduction="none") * weight
    return loss.sum() / (target != ignore).sum().clamp(min=1)


def add_online_labels(
    probabilities: Tensor, label: Tensor, trusted: Tensor, confidence: float
) -> tuple[Tensor, Tensor]:
    """Where the label is not trusted and the pair's largest probability is above `confidence`, its prediction
    becomes a trusted label. Shapes: (N, C, H, W); (N, H, W) int64; (N, H, W) bool.
    """
    probability, prediction = probabilities.max(1)
    added = ~trusted & (probability > confidence)
    return torch.where(added, prediction, label), trusted | added


def classmix(
    images: Tensor,
    label: Tensor,
    trusted: Tensor,
    ignore: int,
    background: int | None,
    boundary_weight: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ClassMix (Olsson et al., WACV 2021): half of the classes of the next image, at random, are pasted on
    each.

    Returns the mixed images, label and trusted, and a weight (N, H, W): `boundary_weight` along the pasted
    outline (a 3 x 3 dilation minus the erosion), and 1 elsewhere.
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
    """(N, 3, H, W) in 0 to 1 -> normalized by ImageNet's mean and standard deviation."""
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def photometric(images: Tensor) -> Tensor:
    """Random brightness, contrast, saturation, hue, gray and blur of each image, (N, 3, H, W) in 0 to 1."""
    from kornia.augmentation import AugmentationSequential, ColorJiggle, RandomGaussianBlur, RandomGrayscale

    change = AugmentationSequential(
        ColorJiggle(0.3, 0.3, 0.3, 0.1, p=0.8),
        RandomGrayscale(p=0.1),
        RandomGaussianBlur((5, 5), (0.1, 1.5), p=0.3),
    )
    return change(images)

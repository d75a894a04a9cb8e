"""One step of co-training: two networks learn reliable labels, and each other's predictions elsewhere.

The step is BECO's (Rong et al., "Boundary-Enhanced Co-Training for Weakly Supervised Semantic Segmentation",
CVPR 2023, and its published code) with the reliability map as its confidence mask. `cotraining_losses` is the
step. It calls the other functions, which have no side effects except that they use torch's random generator.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn2mask.training.config import TrainConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colors in 0 to 1
BLUR = (0.8, 1.1)  # standard deviations in pixels: those that BECO's kernels of 3 and 5 pixels have


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
    online: Callable[[Tensor], Tensor] | None,
    batch: dict[str, Tensor],
    config: TrainConfig,
    ignore: int,
    background: int | None,
) -> list[Tensor]:
    """The loss of each network on one batch.

    `forward` and `online` must each run in an autocast context of its own. PyTorch's autocast may keep the
    weights that it cast in a pass without gradients, and a later pass in the same context would then lose
    their gradients (PyTorch issues 65766 and 105211).

    Args:
        forward: images -> logits of each network, with gradients.
        online: images -> probabilities of the pair, without gradients; None in the warm-up, in which mixed
            images keep the labels of the dataset.
        batch: pixels (N, 3, H, W) uint8; label (N, H, W) int64 with `ignore`; trusted (N, H, W) bool.
        config: says which parts are on, and holds their constants.
        ignore: the label that is not learned where it is trusted.
        background: id of the background, which mixing never pastes; None for tables without background.
    """
    images, label, trusted = batch["pixels"].float() / 255, batch["label"], batch["trusted"]
    weight = torch.ones_like(label, dtype=torch.float32)
    if config.mixing:
        images, label, trusted, weight = mix(
            images, label, trusted, online, config, ignore=ignore, background=background
        )
    logits = forward(normalize(photometric(images, config)))
    predictions = [each.detach().max(1).indices for each in reversed(logits)]  # B's for A, and A's for B
    if len(logits) == 1:
        predictions = [torch.full_like(label, ignore)]
    return [
        two_term_loss(own, label, trusted, prediction, weight, ignore)
        for own, prediction in zip(logits, predictions, strict=True)
    ]


def two_term_loss(
    logits: Tensor, label: Tensor, trusted: Tensor, prediction: Tensor, weight: Tensor, ignore: int
) -> Tensor:
    """The cross-entropy with trusted labels, weighted, plus that with the other network's prediction
    elsewhere. Both are means over all pixels of the batch; a pixel of `ignore` counts with a loss of 0.
    """
    # No pixel is in both terms, so that one cross-entropy computes their sum.
    target = torch.where(trusted, label, prediction)
    loss = F.cross_entropy(logits, target, ignore_index=ignore, reduction="none")
    return torch.where(trusted, weight * loss, loss).mean()


def mix(
    images: Tensor,
    label: Tensor,
    trusted: Tensor,
    online: Callable[[Tensor], Tensor] | None,
    config: TrainConfig,
    ignore: int,
    background: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ClassMix (Olsson et al., WACV 2021) as BECO uses it: with `mix_probability`, the pixels of half of the
    classes of another image, at random and never the background, are pasted on an image.

    A mixed image has online labels everywhere, which are trusted where their probability is above
    `confidence`, and only confident pixels are pasted. In the warm-up (`online` is None) it has the labels of
    the dataset. Images that are not mixed keep their labels.

    Returns the images, label and trusted, and the weight (N, H, W) of the labels: `boundary_weight` along
    pasted outlines (a 3 x 3 dilation minus the erosion), and 1 elsewhere and in the warm-up.
    """
    weight = torch.ones_like(label, dtype=torch.float32)
    count = len(images)
    mixed = (torch.rand(count) < config.mix_probability).nonzero()[:, 0].to(label.device)
    if not len(mixed):
        return images, label, trusted, weight
    partner = (mixed + count // 2) % count
    known, certain, source = label, trusted, label
    if online is not None:
        used = torch.cat([mixed, partner]).unique()
        probability, prediction = online(normalize(images[used])).max(1)
        known = label.index_copy(0, used, prediction)
        certain = trusted.index_copy(0, used, probability > config.confidence)
        source = torch.where(certain, known, ignore)
    pasted = torch.stack([half_of_classes(source[k], ignore, background) for k in partner])
    if online is not None:
        area = pasted[:, None].float()
        outline = F.max_pool2d(area, 3, 1, 1) + F.max_pool2d(-area, 3, 1, 1)  # dilation - erosion: 0 or 1
        weight[mixed] += (config.boundary_weight - 1) * outline[:, 0]
    return (
        images.index_copy(0, mixed, torch.where(pasted[:, None], images[partner], images[mixed])),
        label.index_copy(0, mixed, torch.where(pasted, known[partner], known[mixed])),
        trusted.index_copy(0, mixed, torch.where(pasted, certain[partner], certain[mixed])),
        weight,
    )


def half_of_classes(label: Tensor, ignore: int, background: int | None) -> Tensor:
    """Where (H, W) bool the labels (H, W) are one of half of their classes, which are chosen at random. Of an
    odd number of classes, the larger half is chosen; `ignore` and the background never are.
    """
    classes = label.unique()
    classes = classes[(classes != ignore) & (classes != (-1 if background is None else background))]
    chosen = torch.randperm(len(classes))[: (len(classes) + 1) // 2].to(label.device)
    return torch.isin(label, classes[chosen])


def normalize(images: Tensor) -> Tensor:
    """(N, 3, H, W) in 0 to 1 -> normalized by ImageNet's mean and standard deviation."""
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def photometric(images: Tensor, config: TrainConfig) -> Tensor:
    """Random brightness, contrast, saturation, hue, gray and blur of each image, (N, 3, H, W) in 0 to 1."""
    from kornia.augmentation import AugmentationSequential, ColorJiggle, RandomGaussianBlur, RandomGrayscale

    strengths = (config.brightness, config.contrast, config.saturation, config.hue)
    change = AugmentationSequential(
        ColorJiggle(*strengths, p=config.color_probability),
        RandomGrayscale(p=config.gray_probability),
        RandomGaussianBlur((5, 5), BLUR, p=config.blur_probability),
    )
    return change(images)

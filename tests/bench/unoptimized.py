"""An unoptimized co-training step: what `cotraining_losses` is timed against.

It computes the same losses in float32, image by image, without channels-last tensors and shared work.
"""

import torch
import torch.nn.functional as F
from kornia.augmentation import ColorJiggle, RandomGaussianBlur, RandomGrayscale
from torch import Tensor, nn

from attn2mask.training.config import TrainConfig
from attn2mask.training.cotraining import MEAN, STD


def unoptimized_loss(
    a: nn.Module, b: nn.Module, batch: dict[str, Tensor], config: TrainConfig, ignore: int
) -> Tensor:
    """The sum of both networks' losses on a batch as `cotraining_losses` takes it; background is 0."""
    images, label, trusted = batch["pixels"].float() / 255, batch["label"], batch["trusted"]
    with torch.no_grad():
        logits = (upsampled(a, images) + upsampled(b, images)) / 2
        confidence, predicted = logits.softmax(1).max(1)
    added = ~trusted & (confidence > config.confidence)
    label, trusted = torch.where(added, predicted, label), trusted | added

    mixed, labels, kept, weights = [], [], [], []
    for i in range(len(images)):
        j = (i + 1) % len(images)
        classes = [int(k) for k in label[j].unique() if int(k) not in (0, ignore)]
        order = torch.randperm(len(classes)).tolist()
        pasted = torch.zeros_like(trusted[i])
        for k in order[: (len(classes) + 1) // 2]:
            pasted |= label[j] == classes[k]
        area = pasted[None, None].float()
        dilated, eroded = F.max_pool2d(area, 3, 1, 1), -F.max_pool2d(-area, 3, 1, 1)
        weights.append(1 + (config.boundary_weight - 1) * (dilated - eroded)[0, 0])
        mixed.append(photometric(torch.where(pasted, images[j], images[i])[None]))
        labels.append(torch.where(pasted, label[j], label[i]))
        kept.append(torch.where(pasted, trusted[j], trusted[i]))
    images, label, trusted, weight = (
        torch.cat(mixed),
        torch.stack(labels),
        torch.stack(kept),
        torch.stack(weights),
    )

    first, second = upsampled(a, images), upsampled(b, images)
    total = 0
    for own, other in ((first, second), (second, first)):
        predicted = other.detach().argmax(1)
        known, unknown = torch.where(trusted, label, ignore), torch.where(trusted, ignore, predicted)
        loss = sum(
            F.cross_entropy(own, target, ignore_index=ignore, reduction="none") for target in (known, unknown)
        )
        total = total + (loss * weight).mean()
    return total


def upsampled(network: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, C, H, W) of images in 0 to 1."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return network(pixel_values=(images - mean) / std).logits


def photometric(image: Tensor) -> Tensor:
    """One image (1, 3, H, W) with changed colors. Changes and probabilities are those of our step."""
    for change in (
        ColorJiggle(0.3, 0.3, 0.3, 0.1, p=0.8),
        RandomGrayscale(p=0.1),
        RandomGaussianBlur((5, 5), (0.1, 1.5), p=0.3),
    ):
        image = change(image)
    return image

"""A plain implementation of BECO's step: what `cotraining_losses` is timed against.

It follows the order of BECO's code: online labels of all images, then mixing and colors image by image, then
four losses. It has no channels-last tensors and no shared work. Background is 0.
"""

import torch
import torch.nn.functional as F
from kornia.augmentation import ColorJiggle, RandomGaussianBlur, RandomGrayscale
from torch import Tensor, nn

from attn2mask.training.config import TrainConfig
from attn2mask.training.cotraining import BLUR, MEAN, STD


def plain_step_loss(
    a: nn.Module, b: nn.Module, batch: dict[str, Tensor], config: TrainConfig, ignore: int, half: bool = False
) -> Tensor:
    """The sum of both networks' losses on a batch as `cotraining_losses` takes it, after the warm-up. With
    `half`, the networks run in bfloat16, each pass in an autocast context of its own.
    """
    images, label, trusted = batch["pixels"].float() / 255, batch["label"], batch["trusted"]
    a.eval(), b.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = (upsampled(a, images) + upsampled(b, images)) / 2
    confidence, predicted = logits.float().softmax(1).max(1)
    certain = confidence > config.confidence
    a.train(), b.train()

    made, labels, masks, outlines = [], [], [], []
    for i in range(len(images)):
        j = (i + len(images) // 2) % len(images)
        image, target, mask, outline = images[i], label[i], trusted[i], torch.zeros_like(label[i])
        if float(torch.rand(())) < config.mix_probability:
            seen = torch.where(certain[j], predicted[j], ignore)
            classes = [int(k) for k in seen.unique() if int(k) not in (0, ignore)]
            pasted = torch.zeros_like(mask)
            for k in torch.randperm(len(classes)).tolist()[: (len(classes) + 1) // 2]:
                pasted |= seen == classes[k]
            image = torch.where(pasted, images[j], image)
            target = torch.where(pasted, predicted[j], predicted[i])
            mask = torch.where(pasted, certain[j], certain[i])
            area = pasted[None, None].float()
            dilated, eroded = F.max_pool2d(area, 3, 1, 1), -F.max_pool2d(-area, 3, 1, 1)
            outline = (dilated - eroded)[0, 0]
        made.append(photometric(image[None], config))
        labels.append(target)
        masks.append(mask)
        outlines.append(outline)
    label, mask, outline = torch.stack(labels), torch.stack(masks).float(), torch.stack(outlines)

    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        first, second = upsampled(a, torch.cat(made)), upsampled(b, torch.cat(made))
    first, second = first.float(), second.float()
    total = torch.zeros(())
    for own, other in ((first, second), (second, first)):
        known = F.cross_entropy(own, label, ignore_index=ignore, reduction="none") * mask
        total = total + (known * (1 + (config.boundary_weight - 1) * outline)).mean()
        unknown = F.cross_entropy(own, other.detach().argmax(1), reduction="none") * (1 - mask)
        total = total + unknown.mean()
    return total


def upsampled(network: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, C, H, W) of images in 0 to 1."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return network(pixel_values=(images - mean) / std).logits


def photometric(image: Tensor, config: TrainConfig) -> Tensor:
    """One image (1, 3, H, W) with changed colors. Changes and probabilities are those of our step."""
    strengths = (config.brightness, config.contrast, config.saturation, config.hue)
    for change in (
        ColorJiggle(*strengths, p=config.color_probability),
        RandomGrayscale(p=config.gray_probability),
        RandomGaussianBlur((5, 5), BLUR, p=config.blur_probability),
    ):
        image = change(image)
    return image

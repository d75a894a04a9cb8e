"""What networks predict for an image, at its own size.

    ids = segment([network, peer], processor, image)

An image goes through the checkpoint's image processor. The logits are resized bilinearly to the size of the
image. `evaluation.py` compares the predictions with masks.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from attn2mask.builders.crf import DenseCRF
from attn2mask.builders.images import LARGE, at_most_large
from attn2mask.builders.rules import CRF

LONGEST = 4096  # pixels of a side to which the image processor may enlarge a narrow image
STRIPE = 1 << 25  # logits of a large image that are resized at once: 128 MB
SHORTEST = 32  # the shortest side in pixels that networks take
OVERLAP = 1 / 3  # of two neighboring windows


@dataclass(frozen=True)
class Augmentation:
    """Test-time augmentation: the maximum of the logits of several views of an image, as BECO takes it. The
    image is resized by each of `scales`, also mirrored with `flip`, and predicted in windows of at most
    `window` pixels, of which the fraction `overlap` lies in the next one. With `crf`, BECO's dense CRF
    refines the prediction.

    The logits of the whole image alone are resized straight to the size of the image, as a pipeline of
    transformers does. With `via_pixels`, they get the size of the pixels before, as the code of zero-shot
    methods does.
    """

    scales: Sequence[float] = (1.0,)
    flip: bool = False
    window: int | None = None
    crf: bool = False
    overlap: float = OVERLAP
    via_pixels: bool = False

    @property
    def is_direct(self) -> bool:
        """Whether logits keep the size that the network gives them."""
        is_plain = tuple(self.scales) == (1.0,) and not self.flip and self.window is None
        return is_plain and not self.via_pixels


PLAIN = Augmentation()
# BECO's constants at test time (utils/crf.py of its code). Its widths are in pixels of images of any size.
BECO_CRF = CRF(
    gt_prob=0.7,  # for masks; probabilities do not use it
    gaussian_sxy=1,
    gaussian_compat=3,
    bilateral_sxy=67,
    bilateral_srgb=3,
    bilateral_compat=4,
    iterations=10,
)


class Decide(Protocol):
    """How logits (1, Q, h, w) of an image (H, W, 3) uint8 become ids."""

    def __call__(
        self, logits: Tensor, image: np.ndarray, choices: Sequence[Tensor | None] = (None,)
    ) -> list[Tensor]:
        """Ids (H, W) int32 by each choice. It holds the ids that may be predicted, or is None for all."""

    def probabilities(self, logits: Tensor, image: np.ndarray) -> Tensor:
        """The probability (C, H, W) of each id."""


class LargestLogit:
    """A pixel gets the id of its largest logit."""

    def __call__(
        self, logits: Tensor, image: np.ndarray, choices: Sequence[Tensor | None] = (None,)
    ) -> list[Tensor]:
        size = image.shape[:2]
        return [
            _ids(logits, size) if choice is None else choice[_ids(logits[:, choice], size)].int()
            for choice in choices
        ]

    def probabilities(self, logits: Tensor, image: np.ndarray) -> Tensor:
        return resize(logits, image.shape[:2])[0].softmax(0)


LARGEST = LargestLogit()


@torch.no_grad()
def segment(
    networks: Sequence[nn.Module],
    processor: Any,
    image: np.ndarray,
    augmentation: Augmentation = PLAIN,
    decide: Decide = LARGEST,
) -> np.ndarray:
    """Ids (H, W) int32 by the mean of the networks' logits for an image (H, W, 3) uint8.

    Args:
        networks: called with `pixel_values` (1, 3, h, w), they return an object with `logits` (1, C, ., .).
        processor: an image processor of transformers.
    """
    with evaluating(networks):
        logits = logits_of(networks, pixels_of(processor, image), augmentation)[-1]
    if augmentation.crf:
        return refined_ids(decide.probabilities(logits, image), image).numpy()
    return decide(logits, image)[0].cpu().numpy()


def pixels_of(processor: Any, image: np.ndarray) -> Tensor:
    """The pixels (1, 3, h, w) that an image processor makes of an image (H, W, 3) uint8. Images of more than
    `images.LARGE` pixels are reduced to so many before.
    """
    return processor(images=_bounded(image, processor), return_tensors="pt")["pixel_values"]


def logits_of(networks: Sequence[nn.Module], pixels: Tensor, augmentation: Augmentation) -> list[Tensor]:
    """The logits (N, C, h, w) of each network and, of two, of their mean, for the pixels (N, 3, h, w) of N
    images: their maximum over all views. They have the size of the pixels, unless `is_direct`.
    """
    size = pixels.shape[-2:]
    views = [
        (resize(pixels, [max(SHORTEST, round(side * scale)) for side in size], antialias=True), mirrored)
        for scale in augmentation.scales
        for mirrored in ((False, True) if augmentation.flip else (False,))
    ]
    best: list[Tensor] = []
    for view, mirrored in views:
        found = []
        for network in networks:
            given = view.to(next(network.parameters(), pixels))
            if augmentation.is_direct:
                found.append(network(pixel_values=given).logits.float())
                continue
            logits = _windowed(network, given.flip(-1) if mirrored else given, augmentation)
            found.append(resize(logits.flip(-1) if mirrored else logits, size))
        if len(found) > 1:
            found.append(sum(found[1:], start=found[0]) / len(found))
        pairs = zip(best, found, strict=True)
        best = [torch.maximum(old, new) for old, new in pairs] if best else found
    return best


def _bounded(image: np.ndarray, processor: Any) -> Image.Image:
    """The image (H, W, 3) uint8 for the processor. If it is so narrow that the processor, which resizes its
    shorter side, would make the longer one larger than `LONGEST`, it is stretched to these sides.
    """
    given = Image.fromarray(image)
    if (size := at_most_large(*given.size)) != given.size:
        given = given.resize(size, Image.Resampling.BILINEAR, reducing_gap=2)
    edge, sides = _shorter_side(processor), sorted(given.size)
    if edge is None or sides[1] * edge <= LONGEST * sides[0]:
        return given
    return given.resize((LONGEST, edge) if given.width > given.height else (edge, LONGEST))


def _shorter_side(processor: Any) -> int | None:
    """The pixels to which a processor resizes the shorter side, if nothing bounds the longer one."""
    if not getattr(processor, "do_resize", False) or processor.size.get("longest_edge"):
        return None
    return processor.size.get("shortest_edge")


def refined_ids(probabilities: Tensor, image: np.ndarray) -> Tensor:
    """Ids (H, W) int32 for the probabilities (C, H, W) of the classes of an image (H, W, 3) uint8, after
    BECO's dense CRF. Its unary term comes from these probabilities.
    """
    height, width = image.shape[:2]
    scale = (height * width) ** 0.5 / 512
    crf = replace(BECO_CRF, gaussian_sxy=BECO_CRF.gaussian_sxy / scale)
    crf = replace(crf, bilateral_sxy=BECO_CRF.bilateral_sxy / scale)
    refined = DenseCRF(image, crf).refine_probabilities(probabilities.cpu().numpy())
    return torch.from_numpy(refined.argmax(0).astype(np.int32))


def _windowed(network: nn.Module, pixels: Tensor, augmentation: Augmentation) -> Tensor:
    """Logits (N, C, h, w) float32 for pixels (N, 3, h, w), in windows if they are larger than a window."""
    size = pixels.shape[-2:]
    height, width = (min(side, augmentation.window or side) for side in size)
    total, seen = None, pixels.new_zeros(size, dtype=torch.float32)
    starts = (
        window_starts(*sides, augmentation.overlap) for sides in zip(size, (height, width), strict=True)
    )
    for top, left in itertools.product(*starts):
        place = (..., slice(top, top + height), slice(left, left + width))
        logits = resize(network(pixel_values=pixels[place]).logits.float(), (height, width))
        if (height, width) == size:
            return logits
        if total is None:
            total = logits.new_zeros(*logits.shape[:2], *size)
        total[place] += logits
        seen[place] += 1
    return total / seen


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along a side: at multiples of the stride, and the last one where it ends with the
    side.
    """
    stride = max(1, round(window * (1 - overlap)))
    return [*range(0, length - window, stride), length - window]


def resize(values: Tensor, size: Sequence[int], antialias: bool = False) -> Tensor:
    """(N, C, h, w) at another height and width, bilinearly."""
    if values.shape[-2:] == tuple(size):
        return values
    return F.interpolate(values, tuple(size), mode="bilinear", align_corners=False, antialias=antialias)


def resized_rows(values: Tensor, size: Sequence[int], top: int, bottom: int) -> Tensor:
    """The rows from `top` to `bottom` of values (Q, h, w) that are resized bilinearly to `size` (H, W)."""
    height = values.shape[1]
    place = (torch.arange(top, bottom, device=values.device) + 0.5) * (height / size[0]) - 0.5
    place = place.clamp(0, height - 1)
    above = place.floor().long()
    share = (place - above)[:, None]
    lines = torch.lerp(values[:, above], values[:, (above + 1).clamp(max=height - 1)], share)
    return resize(lines[None], (bottom - top, size[1]))[0]


def _ids(logits: Tensor, size: Sequence[int], at_once: int = 64) -> Tensor:
    """Ids (H, W) int32 of the largest of the logits (1, C, h, w) after they are resized to H x W.

    Classes are resized in groups, and large images in stripes: 920 classes at the size of a large photograph
    would not fit into memory.
    """
    height, width = size
    if height * width > LARGE and width > height:
        return _ids(logits.mT, (width, height), at_once).mT
    if height * width > LARGE:
        rows = max(1, STRIPE // (logits.shape[1] * width))
        stripes = (
            resized_rows(logits[0], size, top, min(top + rows, height)) for top in range(0, height, rows)
        )
        return torch.cat([stripe.max(0).indices.int() for stripe in stripes])
    best = ids = None
    for start in range(0, logits.shape[1], at_once):
        # max, not argmax: over the first axis it is three times as fast on CPUs.
        top, of_group = resize(logits[:, start : start + at_once], size)[0].max(0)
        of_group = of_group.int() + start
        if best is None:
            best, ids = top, of_group
        else:
            ids, best = torch.where(top > best, of_group, ids), torch.maximum(top, best)
    return ids


@contextmanager
def evaluating(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Networks in evaluation mode. Afterwards each part has its former mode."""
    before = [(part, part.training) for network in networks for part in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training

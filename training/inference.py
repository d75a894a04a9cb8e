"""How well networks segment: one confusion matrix over all pictures at their original size, and what follows
from it.

    pictures = open_pictures("VOCdevkit/VOC2012", "val", load_table("voc"))
    report(score([network, peer], processor, pictures, load_table("voc")), load_table("voc"))

A picture goes through the checkpoint's image processor; the logits come back, bilinearly, to the size of the
picture's own ground truth, which is never resized. `attn2mask evaluate` (scoring.py) is this with files
around it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from attn2mask.builders.classes import ClassTable
from attn2mask.training.benchmarks import Example
from attn2mask.training.miou import count_pixels, mean_iou, metrics_of, number_or_none

LEAST = 32  # pixels: the shortest side that networks take
OVERLAP = 1 / 3  # of a sliding window with the next, at least


@torch.no_grad()
def predict(
    networks: Sequence[nn.Module],
    processor: Any,
    image: np.ndarray,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: int | None = None,
) -> list[Tensor]:
    """Each network's logits (C, H, W) float32 for a picture (H, W, 3) uint8, at the picture's own size.

    Args:
        networks: called with `pixel_values` (1, 3, h, w), they return an object with `logits` (1, C, ., .).
        processor: an image processor of transformers.
        scales: the processed picture is resized by each factor; the mean of the logits is the answer.
        flip: each scale is seen mirrored too.
        window: at most so many pixels of height and width at once; larger pictures are seen through
            overlapping windows, whose logits are averaged.
    """
    with _evaluating(networks):
        answers = _answers(networks, processor, image, scales, flip, window)
    return [_resize(logits, image.shape[:2])[0] for logits in answers]


@torch.no_grad()
def segment(
    networks: Sequence[nn.Module],
    processor: Any,
    image: np.ndarray,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: int | None = None,
) -> np.ndarray:
    """Ids (H, W) int32 by the mean of the networks' logits; the arguments are those of `predict`."""
    with _evaluating(networks):
        answers = _answers(networks, processor, image, scales, flip, window)
    return _labels(sum(answers) / len(answers), image.shape[:2]).cpu().numpy()


@dataclass
class Scores:
    """What `score` counted. `matrices` holds an (n, n + 1) int64 `confusion_matrix` for network "a", "b"
    (where there are two) and the mean of their logits, "both"; `told` that of "both" when it chooses among
    the background and the classes of the picture's own mask, as attention masks do, which are told them;
    `pictures` the mean IoU of "both" on each picture, by its index (NaN where all of it is ignored).
    Scores of disjoint pictures can be added.
    """

    matrices: dict[str, np.ndarray]
    told: np.ndarray
    pictures: dict[int, float] = field(default_factory=dict)

    def __add__(self, other: Scores) -> Scores:
        matrices = {name: matrix + other.matrices[name] for name, matrix in self.matrices.items()}
        return Scores(matrices, self.told + other.told, self.pictures | other.pictures)


def score(
    networks: Sequence[nn.Module],
    processor: Any,
    pictures: Sequence[Example],
    table: ClassTable,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    picked: Iterable[int] | None = None,
) -> Scores:
    """Hold one or two networks against the pictures' masks, each at its original size.

    Args:
        scales, flip, window: as for `predict`.
        device: moves the networks; without one they stay where they are.
        progress: show a progress bar.
        picked: the pictures' indices, all by default; a process of several takes
            `range(rank, len(pictures), processes)`, and the sum of the scores is that of all pictures.
    """
    names = ("a", "b")[: len(networks)]
    classes, ignore = len(table.names), table.ignore_index
    matrices = {name: np.zeros((classes, classes + 1), np.int64) for name in (*names, "both")}
    scores = Scores(matrices, np.zeros((classes, classes + 1), np.int64))
    picked = range(len(pictures)) if picked is None else list(picked)
    for network in networks if device is not None else ():
        network.to(device)
    with _evaluating(networks), torch.no_grad():
        for index in tqdm(picked, "evaluating", unit="picture", disable=not progress):
            example = pictures[index]
            answers = _answers(networks, processor, example.image, scales, flip, window)
            if len(answers) > 1:
                answers.append(sum(answers) / len(answers))
            found = torch.stack([_labels(logits, example.target.shape) for logits in answers])
            target = torch.from_numpy(example.target).to(found)
            counts = count_pixels(found, target, classes, ignore).cpu().numpy()
            # One network is its own mean.
            for matrix, count in zip(matrices.values(), [*counts, counts[-1]], strict=False):
                matrix += count
            scores.pictures[index] = mean_iou(counts[-1])
            shown = counts[-1].sum(1) > 0
            shown[: table.first_id] = True
            among = torch.from_numpy(shown.nonzero()[0]).to(found.device)
            if len(among):
                chosen = among[_labels(answers[-1][:, among], example.target.shape)]
                scores.told += count_pixels(chosen[None], target, classes, ignore)[0].cpu().numpy()
    return scores


def report(scores: Scores, table: ClassTable) -> dict[str, Any]:
    """`figures` and `num_images` of the mean of the networks' logits; `mean_iou_given_labels`, theirs where each
    picture's classes are known; and `figures` of each network under `networks.a` and `networks.b`.
    """
    each = {
        name: {**metrics_of(matrix, table.names), "num_images": len(scores.pictures)}
        for name, matrix in scores.matrices.items()
    }
    told = number_or_none(mean_iou(scores.told))
    return {**each.pop("both"), "mean_iou_given_labels": told, "networks": each}


def _answers(
    networks: Sequence[nn.Module],
    processor: Any,
    image: np.ndarray,
    scales: Sequence[float],
    flip: bool,
    window: int | None,
) -> list[Tensor]:
    """Each network's mean logits (1, C, h, w), at the size that the processor gives to the picture."""
    pixels = processor(images=Image.fromarray(image), return_tensors="pt")["pixel_values"]
    size = pixels.shape[-2:]
    views = [
        (_resize(pixels, [max(LEAST, round(side * scale)) for side in size], antialias=True), mirrored)
        for scale in scales
        for mirrored in ((False, True) if flip else (False,))
    ]
    answers = []
    for network in networks:
        weight = next(network.parameters(), pixels)
        total = 0
        for view, mirrored in views:
            view = view.to(weight)
            logits = _slide(network, view.flip(-1) if mirrored else view, window)
            total = total + _resize(logits.flip(-1) if mirrored else logits, size)
        answers.append(total / len(views))
    return answers


def _slide(network: nn.Module, pixels: Tensor, window: int | None) -> Tensor:
    """Logits (1, C, h, w) float32 for pixels (1, 3, h, w), seen through windows where they are larger."""
    size = pixels.shape[-2:]
    height, width = (min(side, window or side) for side in size)
    total, seen = None, pixels.new_zeros(size, dtype=torch.float32)
    for top, left in itertools.product(_starts(size[0], height), _starts(size[1], width)):
        place = (..., slice(top, top + height), slice(left, left + width))
        logits = _resize(network(pixel_values=pixels[place]).logits.float(), (height, width))
        if (height, width) == size:
            return logits
        if total is None:
            total = logits.new_zeros(*logits.shape[:2], *size)
        total[place] += logits
        seen[place] += 1
    return total / seen


def _starts(length: int, window: int) -> list[int]:
    """Where windows begin along a side: evenly spread, from its start to its end."""
    steps = math.ceil((length - window) / ((1 - OVERLAP) * window))
    return [round(i * (length - window) / steps) for i in range(steps + 1)] if steps else [0]


def _resize(values: Tensor, size: Sequence[int], antialias: bool = False) -> Tensor:
    """(N, C, h, w) at another height and width, bilinearly."""
    if values.shape[-2:] == tuple(size):
        return values
    return F.interpolate(values, tuple(size), mode="bilinear", align_corners=False, antialias=antialias)


def _labels(logits: Tensor, size: Sequence[int], at_once: int = 64) -> Tensor:
    """Ids (H, W) int32 of the largest of the logits (1, C, h, w) after they are resized to H x W.

    Classes come in groups: 920 of them at the size of a large photograph would not fit into memory.
    """
    best = labels = None
    for start in range(0, logits.shape[1], at_once):
        # max, not argmax: over the first axis it is three times as fast on CPUs.
        top, ids = _resize(logits[:, start : start + at_once], size)[0].max(0)
        ids = ids.int() + start
        if best is None:
            best, labels = top, ids
        else:
            labels, best = torch.where(top > best, ids, labels), torch.maximum(top, best)
    return labels


@contextmanager
def _evaluating(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Networks in evaluation mode, afterwards as they were, part by part (frozen parts stay frozen)."""
    before = [(part, part.training) for network in networks for part in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training

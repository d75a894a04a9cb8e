"""What networks predict for images, and how well: one confusion matrix over all images at their original
size.

    images = open_images("VOCdevkit/VOC2012", "val", load_table("voc"))
    report(evaluate([network, peer], processor, images, load_table("voc")))

An image goes through the checkpoint's image processor. The logits are resized bilinearly to the size of the
image's ground truth, which is never resized. `attn2mask evaluate` adds files around this.
"""

import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.crf import DenseCRF
from attn2mask.builders.mask_ids import binary_warning
from attn2mask.builders.rules import CRF
from attn2mask.training.benchmarks import Example
from attn2mask.training.miou import MeanIoU, count_pixels, mean_iou

if TYPE_CHECKING:
    from attn2mask.training.charts import SheetRow

logger = logging.getLogger(__name__)

LONGEST = 4096  # pixels of a side to which the image processor may enlarge a narrow image
SHORTEST = 32  # the shortest side in pixels that networks take
OVERLAP = 1 / 3  # of two neighboring windows, at least
EXTREMES = 2  # images on a sheet: so many of the best, of the median and of the worst


@dataclass(frozen=True)
class Augmentation:
    """Test-time augmentation: the maximum of the logits of several views of an image, as BECO takes it. The
    image is resized by each of `scales`, also mirrored with `flip`, and predicted in overlapping windows of
    at most `window` pixels. With `crf`, BECO's dense CRF refines the prediction.
    """

    scales: Sequence[float] = (1.0,)
    flip: bool = False
    window: int | None = None
    crf: bool = False


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


@torch.no_grad()
def segment(
    networks: Sequence[nn.Module], processor: Any, image: np.ndarray, augmentation: Augmentation = PLAIN
) -> np.ndarray:
    """Ids (H, W) int32 by the mean of the networks' logits for an image (H, W, 3) uint8.

    Args:
        networks: called with `pixel_values` (1, 3, h, w), they return an object with `logits` (1, C, ., .).
        processor: an image processor of transformers.
    """
    with _evaluating(networks):
        logits = _logits(networks, processor, image, augmentation)[-1]
    return (refined_ids(logits, image) if augmentation.crf else _ids(logits, image.shape[:2])).cpu().numpy()


@dataclass
class Evaluation:
    """What `evaluate` counted.

    Attributes:
        metrics: a `MeanIoU` for network "a", for "b" where there are two, for the mean of their logits
            ("both"), and for "given_labels": the mean prediction restricted to the background and the classes
            in the ground truth, an oracle that matches what attention masks know. With a CRF, also for "crf":
            the mean prediction after it.
        image_iou: the mean IoU of "both" on each image, by its index; NaN if all of it is ignored.
    """

    metrics: dict[str, MeanIoU]
    image_iou: dict[int, float]


def evaluate(
    networks: Sequence[nn.Module],
    processor: Any,
    images: Sequence[Example],
    table: ClassTable,
    augmentation: Augmentation = PLAIN,
    device: torch.device | str | None = None,
    progress: bool = True,
    indices: Iterable[int] | None = None,
) -> Evaluation:
    """Compare what one or two networks predict with the masks of the images, each at its original size.

    Args:
        device: moves the networks; by default they stay where they are.
        progress: show a progress bar.
        indices: the images that are evaluated; by default all. A process of several takes
            `range(rank, len(images), processes)`, and the matrices are summed over the processes.
    """
    classes, ignore = len(table.names), table.ignore_index
    names = (*("a", "b")[: len(networks)], "both", "given_labels", *(("crf",) if augmentation.crf else ()))
    metrics = {name: MeanIoU(classes, ignore, table.names) for name in names}
    image_iou: dict[int, float] = {}
    ids: set[int] = set()  # in all masks
    for network in networks if device is not None else ():
        network.to(device)
    indices = range(len(images)) if indices is None else list(indices)
    with _evaluating(networks), torch.no_grad():
        for index in tqdm(indices, "evaluating", unit="image", disable=not progress):
            example = images[index]
            logits = _logits(networks, processor, example.image, augmentation)
            predicted = torch.stack([_ids(each, example.target.shape) for each in logits])
            target = torch.from_numpy(example.target).to(predicted)
            ids |= {ignore} if (example.target == ignore).any() else set()
            counts = count_pixels(predicted, target, classes, ignore).cpu().numpy()
            for name, matrix in zip("ab", counts, strict=False):
                metrics[name].add_counts(matrix)
            metrics["both"].add_counts(counts[-1])  # one network is its own mean
            image_iou[index] = mean_iou(counts[-1])
            present = counts[-1].sum(1) > 0
            ids.update(present.nonzero()[0].tolist())
            present[: table.first_id] = True
            labels = torch.from_numpy(present.nonzero()[0]).to(predicted.device)
            if len(labels):
                chosen = labels[_ids(logits[-1][:, labels], example.target.shape)]
                matrix = count_pixels(chosen[None], target, classes, ignore)[0].cpu().numpy()
                metrics["given_labels"].add_counts(matrix)
            if augmentation.crf:
                refined = refined_ids(logits[-1], example.image).to(predicted)
                metrics["crf"].add_counts(
                    count_pixels(refined[None], target, classes, ignore)[0].cpu().numpy()
                )
    if warning := binary_warning(ids, table):
        logger.warning(warning)
    return Evaluation(metrics, image_iou)


def report(evaluation: Evaluation) -> dict[str, Any]:
    """What metrics.json holds: the metrics of "both"; `mean_iou_given_labels`; with a CRF, the metrics after
    it as `crf_mean_iou`, `crf_per_class_iou` and `crf_pixel_accuracy`; and the metrics of each network under
    `networks.a` and `networks.b`. The counts start again.
    """
    computed = {name: metric.compute() for name, metric in evaluation.metrics.items()}
    given_labels = computed.pop("given_labels")["mean_iou"]
    both, refined = computed.pop("both"), computed.pop("crf", {})
    refined = {f"crf_{name}": value for name, value in refined.items() if name != "num_images"}
    return {**both, "mean_iou_given_labels": given_labels, **refined, "networks": computed}


def best_and_worst(
    evaluation: Evaluation,
    networks: Sequence[nn.Module],
    processor: Any,
    images: Sequence[Example],
    augmentation: Augmentation = PLAIN,
) -> "list[SheetRow]":
    """Rows of a sheet with the best, the median and the worst images by mean IoU."""
    from attn2mask.training.charts import SheetRow

    ranked = sorted(
        ((iou, index) for index, iou in evaluation.image_iou.items() if not math.isnan(iou)), reverse=True
    )
    middle = max(0, (len(ranked) - EXTREMES) // 2)
    parts = {
        "best": ranked[:EXTREMES],
        "median": ranked[middle : middle + EXTREMES],
        "worst": ranked[-EXTREMES:],
    }
    titles: dict[int, str] = {}
    for kind, part in parts.items():
        for iou, index in part:
            titles.setdefault(index, f"{kind}: mean IoU {100 * iou:.1f} %")
    rows = []
    for index, title in titles.items():
        example = images[index]
        predicted = segment(networks, processor, example.image, augmentation)
        rows.append(SheetRow(f"{title}\n{example.name}", example.image, example.target, predicted))
    return rows


def _logits(
    networks: Sequence[nn.Module], processor: Any, image: np.ndarray, augmentation: Augmentation
) -> list[Tensor]:
    """The logits (1, C, h, w) of each network and, of two, of their mean, at the size that the processor
    gives to the image: their maximum over all views.
    """
    pixels = processor(images=_bounded(image, processor), return_tensors="pt")["pixel_values"]
    size = pixels.shape[-2:]
    views = [
        (_resize(pixels, [max(SHORTEST, round(side * scale)) for side in size], antialias=True), mirrored)
        for scale in augmentation.scales
        for mirrored in ((False, True) if augmentation.flip else (False,))
    ]
    best: list[Tensor] = []
    for view, mirrored in views:
        found = []
        for network in networks:
            given = view.to(next(network.parameters(), pixels))
            logits = _windowed(network, given.flip(-1) if mirrored else given, augmentation.window)
            found.append(_resize(logits.flip(-1) if mirrored else logits, size))
        if len(found) > 1:
            found.append(sum(found[1:], start=found[0]) / len(found))
        pairs = zip(best, found, strict=True)
        best = [torch.maximum(old, new) for old, new in pairs] if best else found
    return best


def _bounded(image: np.ndarray, processor: Any) -> Image.Image:
    """The image (H, W, 3) uint8 for the processor. If it is so narrow that the processor, which resizes its
    shorter side, would make the longer one larger than `LONGEST`, it is stretched to these sides.
    """
    given, sides = Image.fromarray(image), sorted(image.shape[:2])
    size = processor.size if getattr(processor, "do_resize", False) else {}
    edge = None if size.get("longest_edge") else size.get("shortest_edge")
    if edge is None or sides[1] * edge <= LONGEST * sides[0]:
        return given
    return given.resize((LONGEST, edge) if given.width > given.height else (edge, LONGEST))


def refined_ids(logits: Tensor, image: np.ndarray) -> Tensor:
    """Ids (H, W) int32 for logits (1, C, h, w) of an image (H, W, 3) uint8, after BECO's dense CRF: its unary
    term comes from the probabilities of all classes at the size of the image.
    """
    height, width = image.shape[:2]
    probabilities = _resize(logits, (height, width))[0].softmax(0).cpu().numpy()
    scale = (height * width) ** 0.5 / 512
    crf = replace(BECO_CRF, gaussian_sxy=BECO_CRF.gaussian_sxy / scale)
    crf = replace(crf, bilateral_sxy=BECO_CRF.bilateral_sxy / scale)
    refined = DenseCRF(image, crf).refine_probabilities(probabilities)
    return torch.from_numpy(refined.argmax(0).astype(np.int32))


def _windowed(network: nn.Module, pixels: Tensor, window: int | None) -> Tensor:
    """Logits (1, C, h, w) float32 for pixels (1, 3, h, w), in windows if they are larger than `window`."""
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


def _ids(logits: Tensor, size: Sequence[int], at_once: int = 64) -> Tensor:
    """Ids (H, W) int32 of the largest of the logits (1, C, h, w) after they are resized to H x W.

    Classes are resized in groups: 920 of them at the size of a large photograph would not fit into memory.
    """
    best = ids = None
    for start in range(0, logits.shape[1], at_once):
        # max, not argmax: over the first axis it is three times as fast on CPUs.
        top, of_group = _resize(logits[:, start : start + at_once], size)[0].max(0)
        of_group = of_group.int() + start
        if best is None:
            best, ids = top, of_group
        else:
            ids, best = torch.where(top > best, of_group, ids), torch.maximum(top, best)
    return ids


@contextmanager
def _evaluating(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Networks in evaluation mode. Afterwards each part has its former mode."""
    before = [(part, part.training) for network in networks for part in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training

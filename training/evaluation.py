"""How well networks segment images: one confusion matrix over all images at their original size.

    images = open_images("VOCdevkit/VOC2012", "val", load_table("voc"))
    report(evaluate([network, peer], processor, images, load_table("voc")))

The ground truth is never resized. `attn2mask evaluate` adds files around this.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.images import LARGE, thinned
from attn2mask.builders.mask_ids import binary_warning
from attn2mask.training.benchmarks import Example
from attn2mask.training.boundary import boundary_counts, mean_boundary_iou
from attn2mask.training.inference import (
    LARGEST,
    PLAIN,
    Augmentation,
    Decide,
    evaluating,
    logits_of,
    pixels_of,
    refined_ids,
    segment,
)
from attn2mask.training.miou import MeanIoU, count_pixels, mean_iou

if TYPE_CHECKING:
    from attn2mask.training.charts import SheetRow

logger = logging.getLogger(__name__)

WITHOUT = "plain_"  # begins the names of predictions without test-time augmentation
EXTREMES = 2  # images on a sheet: so many of the best, of the median and of the worst
LOOK_AHEAD = 8  # batches whose images are read at once, to find images of equal size
MOST_HELD = 8 * LARGE  # pixels of these images; of more, smaller batches are predicted


@dataclass(frozen=True)
class ImageCounts:
    """What was counted of one image. It holds plain values, so that it can be a line of JSON.

    Attributes:
        name: that of the image.
        confusion: by prediction, as `Evaluation.metrics` names them: lists of a target's id, a predicted id
            (the number of classes for a prediction that is no class) and the number of their pixels.
        boundary: by prediction, lists of an id and its counts as `boundary_counts` returns them. It is empty
            if boundaries were not measured.
        has_ignored: whether the ground truth has ignored pixels.
    """

    name: str
    confusion: dict[str, list[list[int]]]
    boundary: dict[str, list[list[int]]] = field(default_factory=dict)
    has_ignored: bool = False


@dataclass
class Evaluation:
    """What `evaluate` counted.

    Attributes:
        metrics: a `MeanIoU` for network "a", for "b" where there are two, for the mean of their logits
            ("both"), and for "given_labels": the mean prediction restricted to the background and the classes
            in the ground truth, an oracle that matches what attention masks know. With a CRF, also for "crf"
            and "crf_given_labels": the last two after it. Beside test-time augmentation, also for "plain_a",
            "plain_b", "plain_both" and "plain_given_labels": the first four without it.
        image_iou: the mean IoU of "both" on each image, by its index; NaN if all of it is ignored.
        boundary: the boundary counts (classes, 2) of these, but for single networks, if they were measured.
    """

    metrics: dict[str, MeanIoU]
    image_iou: dict[int, float]
    boundary: dict[str, np.ndarray]


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
    indices = range(len(images)) if indices is None else list(indices)
    counted = count_images(networks, processor, images, table, indices, augmentation, device)
    bar = tqdm(counted, "evaluating", len(indices), unit="image", disable=not progress)
    return summarize(dict(bar), table, metric_names(len(networks), augmentation))


def metric_names(networks: int, augmentation: Augmentation, plain: Augmentation | None = None) -> list[str]:
    """The names of what is counted for so many networks, as `Evaluation.metrics` has them."""
    after_crf = ("crf", "crf_given_labels") if augmentation.crf else ()
    without = () if plain is None else (f"{WITHOUT}{name}" for name in metric_names(networks, plain))
    return [*("a", "b")[:networks], "both", "given_labels", *after_crf, *without]


@torch.no_grad()
def count_images(
    networks: Sequence[nn.Module],
    processor: Any,
    images: Sequence[Example],
    table: ClassTable,
    indices: Sequence[int],
    augmentation: Augmentation = PLAIN,
    device: torch.device | str | None = None,
    decide: Decide = LARGEST,
    boundaries: bool = False,
    batch_size: int = 1,
    plain: Augmentation | None = None,
) -> Iterator[tuple[int, ImageCounts]]:
    """The index of each image and what was counted of it, in the order in which the batches are predicted.

    Args:
        device: moves the networks; by default they stay where they are.
        decide: makes ids of the logits.
        boundaries: measure boundaries, too.
        batch_size: images whose pixels have equal sizes are predicted together, at most so many.
        plain: also predict in this way, without test-time augmentation.
    """
    for network in networks if device is not None else ():
        network.to(device)
    names = metric_names(len(networks), augmentation, plain)
    ways = [augmentation] if plain is None else [augmentation, plain]
    for batch in _batches(images, processor, indices, batch_size):
        pixels = torch.cat([pixels for _, _, pixels in batch])
        with evaluating(networks):
            logits = [logits_of(networks, pixels, way) for way in ways]
        for place, (index, example, _) in enumerate(batch):
            predicted = [
                ids
                for way, by_network in zip(ways, logits, strict=True)
                for own in [[each[place : place + 1] for each in by_network]]
                for ids in _predictions(own, example, table, way, decide)
            ]
            yield index, counts_of(dict(zip(names, predicted, strict=True)), example, table, boundaries)


def summarize(counts: Mapping[int, ImageCounts], table: ClassTable, names: Iterable[str]) -> Evaluation:
    """The sums over all images. `names` are those of what was counted."""
    classes, ignore = len(table.names), table.ignore_index
    metrics = {name: MeanIoU(classes, ignore, table.names) for name in names}
    boundary: dict[str, np.ndarray] = {}
    image_iou: dict[int, float] = {}
    ids: set[int] = set()  # in all masks
    for index, of_image in sorted(counts.items()):
        for name, entries in of_image.confusion.items():
            matrix = _matrix(entries, classes)
            metrics[name].add_counts(matrix)
            if name == "both":
                image_iou[index] = mean_iou(matrix)
                ids.update(np.flatnonzero(matrix.any(1)).tolist())
        for name, entries in of_image.boundary.items():
            total = boundary.setdefault(name, np.zeros((classes, 2), np.int64))
            for k, *values in entries:
                total[k] += values
        ids |= {ignore} if of_image.has_ignored else set()
    if warning := binary_warning(ids, table):
        logger.warning(warning)
    return Evaluation(metrics, image_iou, boundary)


def report(evaluation: Evaluation) -> dict[str, Any]:
    """What metrics.json holds: the metrics of "both"; `mean_iou_given_labels`; with a CRF, the metrics after
    it, whose names begin with `crf_`; if boundaries were measured, `boundary_iou` and the like; the metrics
    of each network under `networks.a` and `networks.b`; and beside test-time augmentation, all of this
    without it under `plain`. The counts start again.
    """
    computed = {name: metric.compute() for name, metric in evaluation.metrics.items()}
    scores = _scores(_named(computed, False), _named(evaluation.boundary, False))
    plain = _named(computed, True)
    return scores | {"plain": _scores(plain, _named(evaluation.boundary, True))} if plain else scores


def _named(values: Mapping[str, Any], is_plain: bool) -> dict[str, Any]:
    """The values of predictions without test-time augmentation, or of the others, by their common names."""
    return {
        name.removeprefix(WITHOUT): value
        for name, value in values.items()
        if name.startswith(WITHOUT) == is_plain
    }


def _scores(computed: Mapping[str, dict[str, Any]], boundary: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The metrics and boundary counts of one way to predict, as `report` names them."""
    scores: dict[str, Any] = {}
    networks: dict[str, Any] = {}
    for name, metrics in computed.items():
        if name in ("a", "b"):
            networks[name] = metrics
        elif name == "both":
            scores |= metrics
        elif name == "crf":
            scores |= {f"crf_{key}": value for key, value in metrics.items() if key != "num_images"}
        else:
            scores[key_of("mean_iou", name)] = metrics["mean_iou"]
    for name, counts in boundary.items():
        value = mean_boundary_iou(counts)
        scores[key_of("boundary_iou", name)] = None if math.isnan(value) else value
    return {**scores, "networks": networks}


def key_of(measure: str, name: str) -> str:
    """The key in metrics.json of a measure of a prediction, as `metric_names` names it."""
    crf, given_labels = name.startswith("crf"), name.endswith("given_labels")
    return f"{'crf_' if crf else ''}{measure}{'_given_labels' if given_labels else ''}"


def best_and_worst(
    evaluation: Evaluation,
    networks: Sequence[nn.Module],
    processor: Any,
    images: Sequence[Example],
    augmentation: Augmentation = PLAIN,
    decide: Decide = LARGEST,
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
        predicted = segment(networks, processor, example.image, augmentation, decide)
        pictures = (thinned(pixels) for pixels in (example.image, example.target, predicted))
        rows.append(SheetRow(f"{title}\n{example.name}", *pictures))
    return rows


class WithoutBackground(Sequence[Example]):
    """Examples whose background is ignored, for methods that have none."""

    def __init__(self, images: Sequence[Example], table: ClassTable) -> None:
        self.images, self.table = images, table

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
        example = self.images[index]
        target = np.where(example.target < self.table.first_id, self.table.ignore_index, example.target)
        return replace(example, target=target.astype(np.int32))


def _batches(
    images: Sequence[Example], processor: Any, indices: Sequence[int], size: int
) -> Iterator[list[tuple[int, Example, Tensor]]]:
    """Batches of at most `size` images with their indices and pixels, which have equal sizes in a batch."""
    for start in range(0, len(indices), size * LOOK_AHEAD):
        waiting: dict[torch.Size, list[tuple[int, Example, Tensor]]] = {}
        held = 0  # pixels of the images that wait
        for index in indices[start : start + size * LOOK_AHEAD]:
            example = images[index]
            pixels = pixels_of(processor, example.image)
            batch = waiting.setdefault(pixels.shape, [])
            batch.append((index, example, pixels))
            held += example.target.size
            if len(batch) == size:
                held -= sum(waited.target.size for _, waited, _ in batch)
                yield waiting.pop(pixels.shape)
            if held > MOST_HELD:
                yield from waiting.values()
                waiting, held = {}, 0
        yield from waiting.values()


def _predictions(
    logits: Sequence[Tensor],
    example: Example,
    table: ClassTable,
    augmentation: Augmentation,
    decide: Decide,
) -> Iterator[Tensor]:
    """Ids (H, W) int32 of what `metric_names` names, in this order, for the logits (1, Q, h, w) of each
    network and, of two, of their mean.
    """
    *networks, mean = logits
    for each in networks:
        yield decide(each, example.image)[0]
    present = np.unique(example.target)
    labels = {*present[present != table.ignore_index].tolist(), *range(table.first_id)}
    # An image whose pixels are all ignored has no labels; nothing is counted of it.
    choice = torch.tensor(sorted(labels), device=mean.device) if labels else None
    predicted, restricted = decide(mean, example.image, (None, choice))
    if len(logits) == 1:  # one network is its own mean
        yield predicted
    yield from (predicted, restricted)
    if augmentation.crf:
        probabilities = decide.probabilities(mean, example.image)
        yield refined_ids(probabilities, example.image).to(predicted)
        if choice is None or len(choice) == 1:  # nothing competes
            yield restricted
        else:
            yield choice[refined_ids(probabilities[choice], example.image).to(choice)].int()


def counts_of(
    predictions: Mapping[str, Tensor], example: Example, table: ClassTable, boundaries: bool
) -> ImageCounts:
    """What is counted of the predictions (H, W) int32 of an image, by their names (see `metric_names`)."""
    classes, ignore = len(table.names), table.ignore_index
    maps = [*predictions.values(), torch.from_numpy(example.target)]
    matrices = np.zeros((len(predictions), classes, classes + 1), np.int64)
    for *predicted, target in zip(*(ids.flatten().split(LARGE) for ids in maps), strict=True):
        stacked = torch.stack(predicted)
        matrices += count_pixels(stacked, target.to(stacked), classes, ignore).cpu().numpy()
    confusion = {}
    for name, matrix in zip(predictions, matrices, strict=True):
        rows, columns = matrix.nonzero()
        entries = zip(rows.tolist(), columns.tolist(), matrix[rows, columns].tolist(), strict=True)
        confusion[name] = [list(entry) for entry in entries]
    boundary = {}
    for name, ids in predictions.items() if boundaries else ():
        if name.removeprefix(WITHOUT) not in ("a", "b"):
            counts = boundary_counts(ids.cpu().numpy(), example.target, classes, ignore)
            boundary[name] = [[int(k), *counts[k].tolist()] for k in np.flatnonzero(counts.any(1))]
    return ImageCounts(example.name, confusion, boundary, bool((example.target == ignore).any()))


def _matrix(entries: Iterable[Sequence[int]], classes: int) -> np.ndarray:
    """The confusion matrix (classes, classes + 1) int64 with these entries."""
    matrix = np.zeros((classes, classes + 1), np.int64)
    for target, predicted, pixels in entries:
        matrix[target, predicted] = pixels
    return matrix

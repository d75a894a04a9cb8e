"""How good the labels are that rules make of attention maps: counts of each image, and figures of many.

A labeling process judges an image under all rules, so that a dense CRF is prepared once for all its masks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.crf import DenseCRF
from attn2mask.builders.label import Labels, label_image, to_ids
from attn2mask.builders.reliability import RELIABLE
from attn2mask.builders.rules import CRF, Rules
from attn2mask.builders.scores import class_scores, quantize
from attn2mask.training.rule_evaluation.simulation import LEVELS, PIXELS_PER_LATENT, simulate

SMALL = 0.03  # a thing that covers less than this share of its image is small
LEAST_SHARE = 0.003  # a class that covers at most this share of its image is ignored

# The attention maps, by (h, w), of each class that is named.
Maps = Sequence[Mapping[tuple[int, int], Tensor]]


@dataclass(frozen=True)
class Case:
    """An image to judge rules on.

    Attributes:
        index: its position in the dataset.
        image: (H, W, 3) uint8.
        target: (H, W) int32: 0 is background, 1 + k is class k of the image, and -1 is ignored.
        classes: the mask ids of the K >= 1 classes of the image.
        absent: the mask id of a class that the image does not hold.
    """

    index: int
    image: np.ndarray
    target: np.ndarray
    classes: tuple[int, ...]
    absent: int


@dataclass(frozen=True)
class Judged:
    """What was counted on one image.

    Attributes:
        ids: the mask ids of the L local labels: those of background, of the classes of the image, and of
            absent classes.
        coarse, refined: pixels (L, L + 1) by target (row) and label (column), before and after the CRF. The
            last column is no label.
        small: the IoU of each small thing after the CRF.
        lost: the number of classes of the image that have no pixel after the CRF.
        classes: the number of classes of the image.
        reliable, right: the number of reliable pixels, and of those of them that have the target's label.
        absent: the share of the image that has the label of an absent class after the CRF.
        mask: the ids (H, W) after the CRF, or None.
    """

    ids: tuple[int, ...]
    coarse: np.ndarray
    refined: np.ndarray
    small: tuple[float, ...]
    lost: int
    classes: int
    reliable: int
    right: int
    absent: float
    mask: np.ndarray | None


def make_case(
    index: int, image: np.ndarray, ids: np.ndarray, table: ClassTable, side: int, seed: int
) -> Case | None:
    """An image (H, W, 3) uint8 and its mask ids (H, W), cropped to the square in the middle and resized to
    `side` pixels. None if the square shows no class of the table, or all of them.

    Classes that cover at most `LEAST_SHARE` of the square are ignored. The absent class is drawn by (seed,
    index).
    """
    height, width = ids.shape
    length = min(height, width)
    top, left = (height - length) // 2, (width - length) // 2
    square = np.s_[top : top + length, left : left + length]
    resized = Image.fromarray(image[square]).resize((side, side), Image.Resampling.BICUBIC)
    mask = np.asarray(Image.fromarray(ids[square]).resize((side, side), Image.Resampling.NEAREST))
    areas = np.bincount(mask[mask != table.ignore_index], minlength=len(table.names))
    candidates = np.arange(table.first_id, len(table.names))
    classes = candidates[areas[candidates] > LEAST_SHARE * mask.size]
    others = candidates[areas[candidates] == 0]
    if not (classes.size and others.size):
        return None
    target = np.full(mask.shape, -1, np.int32)
    for label, k in enumerate(([0] if table.background is not None else [-1]) + classes.tolist()):
        target[mask == k] = label
    absent = np.random.default_rng([seed, index]).choice(others)
    return Case(index, np.array(resized), target, tuple(classes.tolist()), int(absent))


def judge_simulated(
    case: Case, rules: Mapping[str, Rules], table: ClassTable, seed: int, shown: str | None = None
) -> dict[str, dict[str, Judged]]:
    """Judge an image on simulated attention, by the names of the rules and of the levels. The random numbers
    are functions of the seed, the index of the image and the number of the level. See `judge` for `shown`.
    """
    masks = np.stack([case.target == 1 + k for k in range(len(case.classes))])
    maps = {
        name: simulate(masks, level, np.random.default_rng([seed, case.index, number]))
        for number, (name, level) in enumerate(LEVELS.items())
    }
    latent_side = len(case.target) // PIXELS_PER_LATENT
    return judge(case, scores_of(maps, rules, latent_side), rules, table, shown)


def scores_of(
    maps: Mapping[str, Maps], rules: Mapping[str, Rules], latent_side: int
) -> dict[str, dict[str, np.ndarray]]:
    """The quantized scores (K, h, w) of attention maps, by the names of the rules and of the maps."""
    return {
        preset: {name: quantize(class_scores(of, rule, latent_side)[0]) for name, of in maps.items()}
        for preset, rule in rules.items()
    }


def judge(
    case: Case,
    scores: Mapping[str, Mapping[str, np.ndarray]],
    rules: Mapping[str, Rules],
    table: ClassTable,
    shown: str | None = None,
) -> dict[str, dict[str, Judged]]:
    """Judge an image by its quantized scores, which have the names of the rules and of the attention maps.

    The scores are those of the classes of the image, possibly followed by those of its absent class. The
    masks made of the maps `shown` are kept.
    """
    fields: dict[CRF, DenseCRF] = {}
    judged: dict[str, dict[str, Judged]] = {}
    for preset, by_name in scores.items():
        rule = rules[preset]
        field = fields.setdefault(rule.dense_crf, DenseCRF(case.image, rule.dense_crf))
        judged[preset] = {}
        for name, of_class in by_name.items():
            labels = label_image(case.image, of_class, rule, table.background is not None, field)
            judged[preset][name] = _compare(case, labels, len(of_class), table, name == shown)
    return judged


def _compare(case: Case, labels: Labels, named: int, table: ClassTable, keep: bool) -> Judged:
    ids = (*case.classes, case.absent)[:named]
    shown = len(case.classes)
    coarse, refined = (_counts(case.target, mask, named + 1) for mask in (labels.coarse, labels.mask))
    areas = refined.sum(1)[1 : shown + 1]
    hits = np.diagonal(refined)[1 : shown + 1]
    ious = hits / (areas + refined.sum(0)[1 : shown + 1] - hits)
    owned = np.bincount(labels.mask.ravel() + 1, minlength=named + 2)[2:]
    reliable = (labels.reliability >= RELIABLE) & (case.target >= 0)
    return Judged(
        (0, *ids),
        coarse,
        refined,
        tuple(ious[areas < SMALL * case.target.size].tolist()),
        lost=int(np.count_nonzero(owned[:shown] == 0)),
        classes=shown,
        reliable=int(np.count_nonzero(reliable)),
        right=int(np.count_nonzero(reliable & (labels.mask == case.target))),
        absent=float(owned[shown:].sum() / case.target.size),
        mask=to_ids(labels.mask, ids, table) if keep else None,
    )


def _counts(target: np.ndarray, labels: np.ndarray, number: int) -> np.ndarray:
    """Pixels (number, number + 1) by target and label, without those of an ignored target."""
    known = target >= 0
    columns = np.where(labels < 0, number, labels)[known]
    bins = target[known] * (number + 1) + columns
    return np.bincount(bins, minlength=number * (number + 1)).reshape(number, number + 1)


def figures(images: Iterable[Mapping[str, Judged]], table: ClassTable) -> dict[str, Any]:
    """The figures of many images under one preset, each with what was judged by level.

    Returns `coarse` and `refined` (mean IoU before and after the CRF), `small_refined` (mean IoU of the small
    things after the CRF), `classes_lost` (classes without a pixel after the CRF) of `classes`, `reliable`
    (share of the pixels), `precision` (share of the reliable pixels with the right label) and `absent` (share
    of the pixels with the label of an absent class; over the levels that name one). Scores and shares are in
    0 to 1, or None if there is nothing to measure. `levels` has the same for each level. Scores and shares
    are the means of the levels, and counts their sums.
    """
    by_level: dict[str, list[Judged]] = {}
    for image in images:
        for name, judged in image.items():
            by_level.setdefault(name, []).append(judged)
    levels = {name: _figures(judged, table) for name, judged in by_level.items()}
    total = {}
    for key in next(iter(levels.values()), {}):
        values = [level[key] for level in levels.values() if level[key] is not None]
        summed = key in ("classes_lost", "classes")
        total[key] = sum(values) if summed else sum(values) / len(values) if values else None
    return {**total, "levels": levels}


def _figures(images: Sequence[Judged], table: ClassTable) -> dict[str, Any]:
    from attn2mask.training.miou import mean_iou

    counts = np.zeros((2, len(table.names), len(table.names) + 1), np.int64)
    for image in images:
        ids = [*image.ids, len(table.names)]
        for total, own in zip(counts, (image.coarse, image.refined), strict=True):
            np.add.at(total, np.ix_(ids[:-1], ids), own)
    small = [iou for image in images for iou in image.small]
    pixels, reliable = int(counts[1].sum()), sum(image.reliable for image in images)
    absent = [image.absent for image in images if len(image.ids) > 1 + image.classes]
    return {
        "coarse": mean_iou(counts[0]),
        "refined": mean_iou(counts[1]),
        "small_refined": _mean(small),
        "classes_lost": sum(image.lost for image in images),
        "classes": sum(image.classes for image in images),
        "reliable": reliable / pixels,
        "precision": sum(image.right for image in images) / reliable if reliable else None,
        "absent": _mean(absent),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

"""From an image and its scores to labels.

Labels depend only on the rules, the lossless image and the quantized scores. A row stores the last two, so
that the same rules give the same labels bit for bit. An image is labeled in one thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from attn2mask.builders import reliability
from attn2mask.builders.classes import ClassTable
from attn2mask.builders.crf import DenseCRF
from attn2mask.builders.images import decode_png, encode_jpeg, encode_mask, encode_png, overlay
from attn2mask.builders.masks import agreement_threshold, coarse_mask, fixed_threshold, otsu
from attn2mask.builders.rules import Rules
from attn2mask.builders.sample import PARALLEL, Sample, image_columns
from attn2mask.builders.scores import (
    dequantize,
    quantized_scores,
    unpack_maps,
    unpack_self_attention,
    upsample,
)

MIN_AREA = 0.001  # the least share of the image's pixels that a class must have after the CRF


@dataclass(frozen=True)
class Labels:
    """The labels of one image.

    In `mask` and `coarse` 0 is background, 1 + k is class k of the image, and -1 is ignore: no class is above
    its threshold, and the table has no background, or a class is in the uncertain band below its threshold.

    Attributes:
        mask: (H, W) int32, after the CRF.
        coarse: (H, W) int32, before the CRF.
        reliability: (H, W) uint8, 0 to 255.
    """

    mask: np.ndarray
    coarse: np.ndarray
    reliability: np.ndarray

    def without(self, untrusted: np.ndarray) -> "Labels":
        """The labels with ignore and reliability 0 where `untrusted` (H, W) bool is true."""
        mask, reliability = np.where(untrusted, -1, self.mask), np.where(untrusted, 0, self.reliability)
        return Labels(mask, self.coarse, reliability.astype(np.uint8))


def label_image(
    image: np.ndarray, scores: np.ndarray, rules: Rules, background: bool, field: DenseCRF | None = None
) -> Labels:
    """Label an `image` (H, W, 3) uint8 by its quantized `scores` (K, h, w) uint8; K may be 0.

    `background` says whether the class table has a background. `field` is the CRF of the image under the
    rules, if there is one already: most of its time is spent once for all masks of an image.
    """
    field = field or DenseCRF(image, rules.dense_crf)
    small = dequantize(scores)
    large = upsample(small, image.shape[:2])
    adaptive = otsu(small).clamp(min=rules.least_threshold)
    if rules.threshold == "agreement":
        thresholds, coarse, refined = agreement_threshold(
            field, large, adaptive, background, rules.uncertain_band
        )
    else:
        fixed = torch.full((len(scores),), fixed_threshold(rules.beta))
        thresholds = adaptive if rules.threshold == "otsu" else fixed
        coarse = coarse_mask(large, thresholds, background, rules.uncertain_band).numpy()
        refined = field.refine(coarse)
    # What the coarse mask ignores stays ignored.
    refined = replace(refined, labels=np.where(coarse < 0, -1, refined.labels))

    if rules.reliability == "agreement":
        trust = reliability.agreement(coarse, refined, rules.graded)
    elif rules.reliability == "two-threshold":
        trust = reliability.two_threshold(field, large, thresholds, refined, background, rules.graded)
    else:
        trust = reliability.margin(refined, rules.graded)
    return Labels(refined.labels, coarse.astype(np.int32), trust)


def to_ids(local: np.ndarray, classes: Sequence[int], table: ClassTable) -> np.ndarray:
    """Local labels (H, W) as ids of the class table: uint8, or uint16 if the table's ignore value needs it.

    `classes` are the mask ids of the classes of the image, in the order of its scores.
    """
    background = 0 if table.background is not None else table.ignore_index
    dtype = np.uint8 if table.ignore_index <= 255 else np.uint16
    return np.array([table.ignore_index, background, *classes], dtype)[local + 1]


def faults(labels: Labels, peaks: Sequence[float], words: Sequence[str]) -> dict[int, str]:
    """The gate: the classes of the image whose labels cannot be used, by position, with the reason.

    `peaks` are the raw maxima of the class maps, and `words` the words of the classes in the prompt.
    """
    reasons = {}
    for position, (peak, word) in enumerate(zip(peaks, words, strict=True)):
        owned = np.count_nonzero(labels.mask == 1 + position)
        if np.isnan(peak):
            reasons[position] = f"{word}: its attention is not finite (the painter overflowed)"
        elif peak <= 0:
            reasons[position] = f"{word}: its map is empty"
        elif not np.any(labels.coarse == 1 + position):
            reasons[position] = f"{word}: its map is flat, or below another class everywhere"
        elif owned < MIN_AREA * labels.mask.size:
            reasons[position] = f"{word}: it owns {owned} of {labels.mask.size} pixels after the CRF"
    return reasons


def taken(labels: Labels, scores: np.ndarray, position: int) -> np.ndarray:
    """The pixels (H, W) bool that the attention of the class at `position` takes, before or after the CRF.

    `scores` are (K, h, w). A class whose scores are all 0 may be anywhere, and takes all pixels.
    """
    if not scores[position].any():
        return np.ones(labels.mask.shape, bool)
    return (labels.coarse == 1 + position) | (labels.mask == 1 + position)


@dataclass(frozen=True)
class Labeled:
    """The labels of one image as the row stores them.

    Attributes:
        image, mask, label, reliability: PNG files.
        overlay: a JPEG file; None if it was not asked for.
        kept: the positions of the classes that passed the gate.
        dropped: the reasons of the others.
        foreground: the share of pixels that are one of the classes, 0 to 1.
        reliable: the mean reliability, 0 to 1.
    """

    image: bytes
    mask: bytes
    label: bytes
    reliability: bytes
    overlay: bytes | None
    kept: tuple[int, ...]
    dropped: tuple[str, ...]
    foreground: float
    reliable: float

    def sample(self, row: dict[str, Any], dropped: Sequence[str], rejected: Sequence[str] = ()) -> Sample:
        """The sample of `row`, which has all columns except for those that hold images. Its columns in
        `PARALLEL` become those of the kept classes. See `Sample` for `dropped` and `rejected`.
        """
        parallel = {name: [row[name][k] for k in self.kept] for name in PARALLEL if name in row}
        images = image_columns(self.image, self.mask, self.label, self.reliability, self.overlay)
        return Sample({**row, **images, **parallel}, dropped, rejected, self.foreground, self.reliable)


def label(
    image: np.ndarray | bytes,
    scores: np.ndarray,
    peaks: Sequence[float],
    classes: Sequence[int],
    words: Sequence[str],
    rules: Rules,
    table: ClassTable,
    untrusted: np.ndarray | None = None,
    with_overlay: bool = False,
) -> Labeled:
    """Label an image (H, W, 3) uint8, or its PNG file, by its scores (K, h, w) uint8. `with_overlay` says
    whether the mask is also drawn over the image.

    A class that fails the gate is dropped, and the image is labeled again without it. The pixels that its
    attention takes hold neither background nor another class for certain: there, and where `untrusted` (H, W)
    bool is true, the mask is ignore and the reliability 0. So the scores of a row and the pixels that its
    mask ignores always give its mask. If no class is left, the mask is ignore everywhere.
    """
    png = image if isinstance(image, bytes) else encode_png(image)
    image = decode_png(image) if isinstance(image, bytes) else image
    kept = list(range(len(classes)))
    dropped: list[str] = []
    mask, trust = np.full(image.shape[:2], -1), np.zeros(image.shape[:2], np.uint8)
    untrusted = np.zeros(image.shape[:2], bool) if untrusted is None else untrusted
    while kept:
        whole = label_image(image, scores[kept], rules, table.background is not None)
        labels = whole.without(untrusted)
        bad = faults(labels, [peaks[k] for k in kept], [words[k] for k in kept])
        if not bad:
            mask, trust = labels.mask, labels.reliability
            break
        dropped += bad.values()
        untrusted = np.logical_or.reduce([untrusted, *(taken(whole, scores[kept], k) for k in bad)])
        kept = [k for position, k in enumerate(kept) if position not in bad]
    ids = to_ids(mask, [classes[k] for k in kept], table)
    return Labeled(
        png,
        encode_mask(ids, table),
        encode_mask(reliability.reliable_ids(ids, trust, table.ignore_index), table),
        encode_png(trust),
        encode_jpeg(overlay(image, ids, table)) if with_overlay else None,
        tuple(kept),
        tuple(dropped),
        foreground=float((mask > 0).mean()),
        reliable=float(trust.mean()) / 255,
    )


def rescored(row: dict[str, Any], rules: Rules, latent_side: int) -> dict[str, Any]:
    """The scores and the peaks that the stored maps of a row, and its self-attention if the rules need it,
    have under other rules. `latent_side` is the shorter side of the latents.
    """
    maps = [unpack_maps(of_class) for of_class in row["maps"]]
    stored = row["self_attention"] if rules.propagation_power else None
    self_attention = unpack_self_attention(stored) if stored else None
    scores, peaks = quantized_scores(maps, rules, latent_side, self_attention)
    return {"scores": scores.tolist(), "peaks": peaks}


def relabel(
    row: dict[str, Any],
    rules: Rules,
    table: ClassTable,
    dropped: Sequence[str],
    with_overlay: bool = False,
) -> Labeled:
    """Label a stored row again from its scores. `dropped` are the reasons why classes are not in the row: if
    there are any, the pixels that its mask ignores stay ignored. `with_overlay` is that of `label`.
    """
    ignored = decode_png(row["mask"]["bytes"]) == table.ignore_index if dropped else None
    scores = np.asarray(row["scores"], np.uint8)
    return label(
        row["image"]["bytes"],
        scores,
        row["peaks"],
        row["classes"],
        row["words"],
        rules,
        table,
        ignored,
        with_overlay,
    )

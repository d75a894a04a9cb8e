"""From the values of a zero-shot segmenter's queries to the ids of a mask."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from attn2mask.builders.classes import ClassTable
from attn2mask.training.inference import resize, resized_rows
from attn2mask.training.zeroshot.pamr import refine
from attn2mask.training.zeroshot.protocol import Protocol

Activation = Literal["softmax", "sigmoid", "none"]
_AT_ONCE = 2**25  # values that are resized at once: 128 MB


@dataclass(frozen=True)
class Decision:
    """How values of Q queries become ids. All of it happens at the size of the image.

    Attributes:
        table: the class table.
        protocol: its queries, and its rule for the background.
        activation: what makes probabilities of the values; "none" if they lie in 0 to 1 already.
        scale: the factor before the activation.
        channels: whether the values are not of the queries, but of the ids of the table, background first.
    """

    table: ClassTable
    protocol: Protocol
    activation: Activation = "softmax"
    scale: float = 1.0
    channels: bool = False

    def __call__(
        self, logits: Tensor, image: np.ndarray, choices: Sequence[Tensor | None] = (None,)
    ) -> list[Tensor]:
        """Ids (H, W) int32 by each choice for the values `logits` (1, Q, h, w) of an image (H, W, 3) uint8.

        A choice holds the ids that may be predicted, or is None for all of them.
        """
        if self.protocol.area or self.protocol.refinement:
            probabilities = self.probabilities(logits, image)
            return [_best(probabilities, choice) for choice in choices]
        stripes = (
            [_best(self._with_threshold(stripe), choice) for choice in choices]
            for stripe in self._stripes(logits, image.shape[:2])
        )
        return [torch.cat(parts) for parts in zip(*stripes, strict=True)]

    def probabilities(self, logits: Tensor, image: np.ndarray) -> Tensor:
        """The probability (C, H, W) of each id of the table, for logits as `__call__` takes them. They need
        not have the sum 1: a class has the probability of its most probable name, and the background that of
        its most probable word, or the threshold, whichever is higher.
        """
        if self.protocol.refinement:
            logits = refine(resize(logits, image.shape[:2]), image)
        found = torch.cat(list(self._stripes(logits, image.shape[:2])), 1)
        if self.protocol.area:
            found = _without_small_classes(found, self.protocol.area)
        return self._with_threshold(found)

    def _stripes(self, values: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
        """The probabilities (C, rows, W) of all ids before the threshold, in stripes from top to bottom: the
        queries of a large table at the size of a large photograph would not fit into memory.
        """
        values = values[0].float()
        rows = max(1, _AT_ONCE // (len(values) * size[1]))
        for top in range(0, size[0], rows):
            yield self._merged(resized_rows(values, size, top, min(top + rows, size[0])))

    def _merged(self, values: Tensor) -> Tensor:
        """The probabilities (C, h, w) of the ids before the threshold, for values (Q, h, w)."""
        values = values * self.scale
        if self.activation == "softmax":
            values = values.softmax(0)
        elif self.activation == "sigmoid":
            values = values.sigmoid()
        if self.channels:
            return values
        counts = [len(names) for names in self.protocol.names]
        *classes, words = values.split([*counts, len(self.protocol.words)])
        merged = [part.amax(0) for part in classes]
        if self.table.background is not None:
            merged.insert(0, words.amax(0) if len(words) else torch.full_like(merged[0], -1.0))
        return torch.stack(merged)

    def _with_threshold(self, probabilities: Tensor) -> Tensor:
        """Probabilities (C, h, w), where the background has at least the threshold."""
        if self.protocol.threshold is None or self.channels or self.table.background is None:
            return probabilities
        background, classes = probabilities.split([1, len(probabilities) - 1])
        return torch.cat([background.clamp(min=self.protocol.threshold), classes])


def _best(probabilities: Tensor, allowed: Tensor | None) -> Tensor:
    """The ids (h, w) int32 of the largest of (C, h, w), among the `allowed` ids. At a draw, the first."""
    if allowed is None:
        return probabilities.max(0).indices.int()
    return allowed[probabilities[allowed].max(0).indices].int()


def _without_small_classes(probabilities: Tensor, share: float) -> Tensor:
    """SCLIP's rule: classes that cover at most `share` of the foreground get the probability 0."""
    areas = torch.bincount(probabilities.argmax(0).flatten(), minlength=len(probabilities))
    areas[0] = 0
    small = areas <= share * areas.sum()
    small[0] = False
    return torch.where(small[:, None, None], 0.0, probabilities)

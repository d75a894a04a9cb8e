"""The quality of rows: measures of each, and classes that a model does not find in the image.

Rows are labeled first and measured then, so that a build, `attn2mask filter` and `attn2mask remask` do it
alike. Nothing that is measured changes an image or a mask.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from attn2mask.builders.image_hash import image_hash
from attn2mask.builders.images import decode_png, encode_mask, encode_png
from attn2mask.builders.sample import Sample

if TYPE_CHECKING:
    from attn2mask.builders.classes import ClassTable
    from attn2mask.builders.score_model import RowScorer

_BATCH = 32  # rows that are scored together


@dataclass(frozen=True)
class Quality:
    """Measures samples.

    Attributes:
        table: the class table of the rows.
        stored: the columns of `sample.OPTIONAL` that the rows get.
        scorer: what makes `clip_score` and `presence`; None if the rows have them, or need none.
        min_presence: classes of a lower presence become untrusted; None if none do.
    """

    table: "ClassTable"
    stored: Collection[str]
    scorer: "RowScorer | None" = None
    min_presence: float | None = None

    def measure(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples with all columns of `stored`. Classes that are not present are untrusted."""
        samples = iter(samples)
        while batch := list(islice(samples, _BATCH)):
            if self.scorer is not None:
                scores = self.scorer.scores([sample.row for sample in batch])
                batch = [
                    replace(sample, row={**sample.row, **columns})
                    for sample, columns in zip(batch, scores, strict=True)
                ]
            yield from map(self._measured, batch)

    def _measured(self, sample: Sample) -> Sample:
        sample = without_trust(sample, self.min_presence, self.table)
        columns: dict[str, Any] = {}
        if "reliable" in self.stored:
            columns["reliable"] = share_of_reliable(decode_png(sample.row["reliability"]["bytes"]))
        if "image_hash" in self.stored and "image_hash" not in sample.row:
            columns["image_hash"] = image_hash(decode_png(sample.row["image"]["bytes"]))
        return replace(sample, row={**sample.row, **columns})


def share_of_reliable(reliability: np.ndarray) -> float:
    """The share of pixels, 0 to 1, that count as reliable in a map (H, W) uint8."""
    from attn2mask.builders.reliability import RELIABLE

    return float(np.mean(reliability >= RELIABLE))


def absent(row: Mapping[str, Any], min_presence: float | None) -> list[int]:
    """The positions of the classes of a row whose presence is below `min_presence`."""
    if min_presence is None:
        return []
    return [k for k, presence in enumerate(row["presence"]) if presence < min_presence]


def without_trust(sample: Sample, min_presence: float | None, table: "ClassTable") -> Sample:
    """The sample with reliability 0 at the pixels whose id is a class of a presence below `min_presence`. The
    column `label` ignores these pixels.

    Its mask and its classes stay, so that other rules make the mask again, and so that the row still says
    what its prompt names.
    """
    row = sample.row
    positions = absent(row, min_presence)
    if not positions:
        return sample
    from attn2mask.builders.reliability import reliable_ids

    mask, reliability = (decode_png(row[name]["bytes"]) for name in ("mask", "reliability"))
    reliability[np.isin(mask, [row["classes"][k] for k in positions])] = 0
    label = reliable_ids(mask, reliability, table.ignore_index)
    images = {
        "label": {"bytes": encode_mask(label, table), "path": None},
        "reliability": {"bytes": encode_png(reliability), "path": None},
    }
    reasons = [
        f"{row['words'][k]}: its presence {row['presence'][k]:.3f} is below {min_presence:g}"
        for k in positions
    ]
    return replace(sample, row={**row, **images}, untrusted=reasons, reliable=float(reliability.mean()) / 255)

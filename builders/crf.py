"""The dense CRF: a coarse mask and the picture's colours become a mask that follows edges.

The model is Kraehenbuehl and Koltun's (2011), the solver pydensecrf's. It is the slowest part of a label (its
time grows with the number of labels), so only labels that the picture holds take part. It is deterministic
and keeps the interpreter's lock: more pictures at once need more processes.
"""

from dataclasses import dataclass

import numpy as np

from attn2mask.builders.errors import UserError
from attn2mask.builders.rules import CRF


@dataclass(frozen=True)
class Refined:
    """A mask after the CRF: `labels` (H, W) int32, -1 where there is no opinion.

    `probabilities` (L, H, W) float32 are those of the L labels that took part, `present` in ascending order.
    """

    labels: np.ndarray
    present: np.ndarray
    probabilities: np.ndarray

    def probability_of(self, labels: np.ndarray) -> np.ndarray:
        """The probability (H, W) of the given labels (H, W); 0 for labels that took no part, as -1."""
        return np.where(self.present[:, None, None] == labels, self.probabilities, 0).sum(axis=0)


def refine(image: np.ndarray, labels: np.ndarray, crf: CRF) -> Refined:
    """Refine a mask by the picture's colours.

    `image` is (H, W, 3) uint8, `labels` (H, W) int with -1 for pixels without an opinion: their unary term is
    uniform. With fewer than two labels there is nothing to decide, and the mask returns as it is (with its
    -1). Raises UserError where pydensecrf is not installed.
    """
    present = np.flatnonzero(np.bincount(labels.ravel() + 1)[1:])
    if len(present) < 2:
        return Refined(labels.astype(np.int32), present, np.ones((len(present), *labels.shape), np.float32))
    try:
        from pydensecrf.densecrf import DenseCRF2D
    except ImportError as error:
        raise UserError(
            "the dense CRF is not installed: install a C++ compiler, then `pip install pydensecrf2`"
        ) from error

    height, width = labels.shape
    scale = (height * width) ** 0.5 / 512
    field = DenseCRF2D(width, height, len(present))
    field.setUnaryEnergy(_unary(labels, present, crf.gt_prob))
    field.addPairwiseGaussian(sxy=crf.gaussian_sxy * scale, compat=crf.gaussian_compat)
    field.addPairwiseBilateral(
        sxy=crf.bilateral_sxy * scale,
        srgb=crf.bilateral_srgb,
        rgbim=np.array(image, order="C"),
        compat=crf.bilateral_compat,
    )
    probabilities = np.array(field.inference(crf.iterations), np.float32).reshape(-1, height, width)
    return Refined(present[probabilities.argmax(axis=0)].astype(np.int32), present, probabilities)


def _unary(labels: np.ndarray, present: np.ndarray, gt_prob: float) -> np.ndarray:
    """Energies (L, H * W) float32: the label itself has probability `gt_prob`, the others share the rest."""
    count, flat = len(present), labels.ravel()
    own, other, none = -np.log([gt_prob, (1 - gt_prob) / (count - 1), 1 / count]).astype(np.float32)
    return np.where(flat < 0, none, np.where(present[:, None] == flat, own, other))

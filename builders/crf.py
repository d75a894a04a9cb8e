"""The dense CRF: makes a coarse mask follow the edges of its image.

The model is that of Kraehenbuehl and Koltun (2011): Potts, one Gaussian kernel over positions and one over
positions and colors, mean-field inference. Only labels in the coarse mask take part. There are two
implementations: `lattice` of this project, and pydensecrf, which wraps the authors' code. The first gives the
masks of the second in a fraction of the time and needs no compiler, because of L labels only the L - 1
differences to the last are filtered. Both are deterministic and run in one thread.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from attn2mask.builders.lattice import Lattice
from attn2mask.builders.rules import CRF, check_installed


@dataclass(frozen=True)
class Refined:
    """A mask after the CRF: `labels` (H, W) int32; -1 is ignore.

    `present` are the L labels that took part, in ascending order, and `probabilities` (L, H, W) float32 are
    theirs.
    """

    labels: np.ndarray
    present: np.ndarray
    probabilities: np.ndarray

    def probability_of(self, labels: np.ndarray) -> np.ndarray:
        """The probability (H, W) of the given labels (H, W); 0 for labels that took no part, such as -1."""
        return np.where(self.present[:, None, None] == labels, self.probabilities, 0).sum(axis=0)


class DenseCRF:
    """The CRF of one image (H, W, 3) uint8. It refines masks of this image."""

    def __init__(self, image: np.ndarray, crf: CRF) -> None:
        self._image, self._crf = image, crf

    def refine(self, labels: np.ndarray) -> Refined:
        """Refine a mask by the colors of the image.

        `labels` is (H, W) int. Pixels of -1 have a uniform unary term. Without iterations, and with fewer
        than two labels, the mask is returned unchanged, with its -1, and its labels have the probability 1.
        Raises UserError if pydensecrf is to be used and is not installed.
        """
        present = np.flatnonzero(np.bincount(labels.ravel() + 1)[1:])
        if len(present) < 2 or self._crf.iterations == 0:
            sure = (present[:, None, None] == labels).astype(np.float32)
            return Refined(labels.astype(np.int32), present, sure)
        probabilities = self._infer(_unary(labels, present, self._crf.gt_prob))
        probabilities = probabilities.reshape(len(present), *labels.shape)
        return Refined(present[probabilities.argmax(axis=0)].astype(np.int32), present, probabilities)

    def refine_probabilities(self, probabilities: np.ndarray) -> np.ndarray:
        """Refine the probabilities (L, H, W) float of all labels by the colors of the image; the unary term
        is their negative logarithm, of at least 1e-5 as in pydensecrf. Returns (L, H, W) float32.
        """
        logarithms = np.log(probabilities.clip(1e-5, 1).astype(np.float32)).reshape(len(probabilities), -1)
        refined = self._infer(logarithms[:-1] - logarithms[-1])
        return refined.reshape(probabilities.shape)

    def _infer(self, unary: np.ndarray) -> np.ndarray:
        return self._pydensecrf(unary) if self._crf.implementation == "pydensecrf" else self._lattice(unary)

    def _lattice(self, unary: np.ndarray) -> np.ndarray:
        """Probabilities (L, H * W) from log odds (L - 1, H * W) against the last label."""
        probabilities = _softmax(unary)
        for _ in range(self._crf.iterations):
            beliefs = probabilities[:-1] - probabilities[-1]
            messages = sum(weight * kernel(beliefs) for weight, kernel in self._kernels)
            probabilities = _softmax(unary + messages)
        return probabilities

    def _pydensecrf(self, unary: np.ndarray) -> np.ndarray:
        """The same as `_lattice`, by pydensecrf."""
        check_installed("pydensecrf")
        from pydensecrf.densecrf import DenseCRF2D

        crf, (height, width, _) = self._crf, self._image.shape
        field = DenseCRF2D(width, height, len(unary) + 1)
        field.setUnaryEnergy(-np.concatenate([unary, np.zeros_like(unary[:1])]))
        field.addPairwiseGaussian(sxy=crf.gaussian_sxy * self._scale, compat=crf.gaussian_compat)
        field.addPairwiseBilateral(
            sxy=crf.bilateral_sxy * self._scale,
            srgb=crf.bilateral_srgb,
            rgbim=np.array(self._image, order="C"),  # it takes no read-only array
            compat=crf.bilateral_compat,
        )
        return np.array(field.inference(crf.iterations))

    @property
    def _scale(self) -> float:
        """The factor of the spatial widths, which are given for 512 x 512 pixels."""
        height, width, _ = self._image.shape
        return (height * width) ** 0.5 / 512

    @cached_property
    def _kernels(self) -> list[tuple[np.float32, Lattice]]:
        crf, (height, width, _), scale = self._crf, self._image.shape, self._scale
        places = _places(height, width, crf.bilateral_sxy * scale)
        colors = self._image.reshape(-1, 3).T / np.float32(crf.bilateral_srgb)
        return [
            (np.float32(crf.gaussian_compat), _gaussian(height, width, crf.gaussian_sxy * scale)),
            (np.float32(crf.bilateral_compat), Lattice(np.concatenate([places, colors]))),
        ]


@lru_cache(maxsize=1)
def _gaussian(height: int, width: int, sxy: float) -> Lattice:
    return Lattice(_places(height, width, sxy))


def _places(height: int, width: int, sxy: float) -> np.ndarray:
    """x and y of each pixel, (2, H * W) float32, in units of `sxy` pixels."""
    y, x = np.indices((height, width), np.float32).reshape(2, -1) / np.float32(sxy)
    return np.stack([x, y])


def _unary(labels: np.ndarray, present: np.ndarray, gt_prob: float) -> np.ndarray:
    """Log odds (L - 1, H * W) float32 of each label but the last against the last.

    The label of a pixel in the coarse mask has the probability `gt_prob`; the other labels share the rest.
    """
    lead = np.float32(np.log(gt_prob * (len(present) - 1) / (1 - gt_prob)))
    own = present[:, None] == labels.ravel()
    return lead * (own[:-1].astype(np.float32) - own[-1])


def _softmax(odds: np.ndarray) -> np.ndarray:
    """Probabilities (L, N) from log odds (L - 1, N) against the last label."""
    top = odds.max(axis=0).clip(min=0)
    likelihoods = np.exp(np.concatenate([odds - top, -top[None]]))
    return likelihoods / likelihoods.sum(axis=0)

"""Reference implementations by other people, which tests and benchmarks compare against."""

import numpy as np

from attn2mask.builders.rules import CRF

ABSENT = 1e-10  # probability of a class that is not in the image


def pydensecrf(image: np.ndarray, labels: np.ndarray, num_classes: int, crf: CRF) -> np.ndarray:
    """The dense CRF of pydensecrf with all classes of the table.

    Takes an image (H, W, 3) uint8 and labels (H, W), -1 where there is none; returns probabilities
    (num_classes, H, W). Classes that are not in the image have almost no probability. The others have the
    probabilities of `DenseCRF.refine`.
    """
    from pydensecrf.densecrf import DenseCRF2D

    height, width = labels.shape
    scale = (height * width) ** 0.5 / 512
    present = np.unique(labels[labels >= 0])
    others = (1 - crf.gt_prob) / max(len(present) - 1, 1)
    flat = labels.ravel()
    probability = np.where(np.arange(num_classes)[:, None] == flat, crf.gt_prob, others).astype(np.float32)
    probability[:, flat < 0] = 1 / len(present)
    probability[np.setdiff1d(np.arange(num_classes), present)] = ABSENT
    field = DenseCRF2D(width, height, num_classes)
    field.setUnaryEnergy(-np.log(probability))
    field.addPairwiseGaussian(sxy=crf.gaussian_sxy * scale, compat=crf.gaussian_compat)
    field.addPairwiseBilateral(
        sxy=crf.bilateral_sxy * scale, srgb=crf.bilateral_srgb, rgbim=image, compat=crf.bilateral_compat
    )
    return np.array(field.inference(crf.iterations)).reshape(num_classes, height, width)

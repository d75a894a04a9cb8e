"""Boundary IoU (Cheng et al. 2021): intersection over union of the pixels near the contours of the classes.

    counts = sum(boundary_counts(prediction, target, 21, 255) for prediction, target in masks)
    mean_boundary_iou(counts)

Mean IoU hardly changes with the contours of large regions. Boundary IoU counts only the pixels of a class
that lie within a distance d of the contour of its region, in the prediction and in the target. The counts of
all images are summed, as those of mean IoU.
"""

import math

import numpy as np
from scipy import ndimage

from attn2mask.builders.images import LARGE

DISTANCE = 0.02  # d as a share of the image's diagonal, as in the paper


def boundary_counts(prediction: np.ndarray, target: np.ndarray, classes: int, ignore: int) -> np.ndarray:
    """Pixel counts (classes, 2) int64 of one image: the intersection and the union of the boundary pixels of
    each class in the prediction and in the target.

    Args:
        prediction: ids (H, W). An id that is no class is the region of no class.
        target: ids (H, W). Pixels that are `ignore` are not counted. They end the regions that they touch.

    Raises ValueError for shapes that differ, and for other target ids that are no class.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"a prediction of {[*prediction.shape]} for a target of {[*target.shape]}")
    counted = target != ignore
    if ((target < 0) | (target >= classes))[counted].any():
        raise ValueError(f"the target holds ids that are neither one of {classes} classes nor {ignore}")
    distance = boundary_distance(*target.shape)
    in_target = near_contour(target, distance) & counted
    in_prediction = near_contour(prediction, distance) & counted & (prediction >= 0) & (prediction < classes)
    in_both = in_target & in_prediction & (target == prediction)
    of_target, of_prediction, of_both = (
        np.bincount(ids[part], minlength=classes)
        for ids, part in ((target, in_target), (prediction, in_prediction), (target, in_both))
    )
    return np.stack([of_both, of_target + of_prediction - of_both], axis=1)


def boundary_distance(height: int, width: int) -> int:
    """The distance d in pixels for an image: 2 % of its diagonal, rounded, and at least 1."""
    return max(1, round(DISTANCE * math.hypot(height, width)))


def near_contour(ids: np.ndarray, distance: int) -> np.ndarray:
    """Whether each pixel of ids (H, W) is within `distance` pixels of the contour of its region, (H, W) bool.

    It is if the square of 2 * distance + 1 pixels around it holds another id, or a place outside the image.
    These are the pixels that an erosion of their own class with this square removes.
    """
    near, rows = np.empty(ids.shape, bool), max(LARGE // ids.shape[1], 1)
    outside = {"mode": "constant", "cval": np.iinfo(np.int32).min}
    for top in range(0, len(ids), rows):  # large images in stripes, each with what the squares reach
        first = max(top - distance, 0)
        values = ids[first : top + rows + distance].astype(np.int32)
        most, least = (
            extreme(values, 2 * distance + 1, **outside)
            for extreme in (ndimage.maximum_filter, ndimage.minimum_filter)
        )
        near[top : top + rows] = (most != least)[top - first : top - first + rows]
    return near


def mean_boundary_iou(counts: np.ndarray) -> float:
    """Mean over the classes with a union, 0 to 1, of counts (classes, 2) that are summed over images; NaN if
    there is none.
    """
    measured = counts[counts[:, 1] > 0]
    return float((measured[:, 0] / measured[:, 1]).mean()) if len(measured) else float("nan")

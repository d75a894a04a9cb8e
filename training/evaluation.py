"""Scores of masks against masks: one confusion matrix over all pictures, and what follows from it."""

from __future__ import annotations

import numpy as np


def confusion_matrix(
    prediction: np.ndarray, target: np.ndarray, classes: int, ignore: int = 255
) -> np.ndarray:
    """Pixel counts (classes, classes) int64, rows are the target's ids and columns the prediction's.

    Args:
        prediction: ids, any shape; ids of ``classes`` or more count as a miss (they add to no column but to
            the row).
        target: ids of the same shape; pixels that are ``ignore`` are left out.

    Returns: A (classes, classes + 1) matrix; its last column holds misses outside the classes.
    """
    target, prediction = np.asarray(target).ravel(), np.asarray(prediction).ravel()
    kept = target != ignore
    columns = np.minimum(prediction[kept].astype(np.int64), classes)
    rows = target[kept].astype(np.int64)
    return np.bincount(rows * (classes + 1) + columns, minlength=classes * (classes + 1)).reshape(
        classes, classes + 1
    )


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union by class, (classes,) in 0 to 1; NaN where a class is in neither mask."""
    hit = np.diagonal(matrix).astype(np.float64)
    union = matrix.sum(1) + matrix[:, : len(matrix)].sum(0) - hit
    return np.divide(hit, union, out=np.full(len(matrix), np.nan), where=union > 0)


def mean_iou(matrix: np.ndarray) -> float:
    """Mean IoU over the classes that are in either mask, 0 to 1; NaN where there is none."""
    iou = class_iou(matrix)
    return float(iou[~np.isnan(iou)].mean()) if (~np.isnan(iou)).any() else float("nan")

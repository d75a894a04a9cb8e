"""Intervals of the mean IoU by the bootstrap over images (Efron and Tibshirani 1993, chapter 13)."""

import numpy as np

RESAMPLES, SEED = 1000, 0
LEVEL = 0.95


def mean_iou_interval(
    counts: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float] | None:
    """The percentile interval of `LEVEL` of the mean IoU, 0 to 1; None if there is no pixel.

    As many images as there are are drawn with replacement, `resamples` times. The counts of the drawn images
    are summed, and the mean IoU is over the classes that have a union.

    Args:
        counts: (N, classes, 3) pixels of N images: those of a class that are right, those of the target, and
            those of the prediction.
        seed: of numpy's default generator, which draws the images (resamples, N) at once.
    """
    if not len(counts):
        return None
    images = len(counts)
    drawn = np.random.default_rng(seed).integers(0, images, (resamples, images))
    places = drawn + images * np.arange(resamples)[:, None]
    times = np.bincount(places.ravel(), minlength=resamples * images).reshape(resamples, images)
    # Sums of pixels are far below 2 ** 53, so that float64 holds them exactly.
    totals = times.astype(np.float64) @ counts.reshape(images, -1).astype(np.float64)
    hit, target, predicted = np.moveaxis(totals.reshape(resamples, -1, 3), 2, 0)
    union = target + predicted - hit
    measured = (union > 0).sum(1)
    total = np.divide(hit, union, out=np.zeros_like(hit), where=union > 0).sum(1)
    means = total[measured > 0] / measured[measured > 0]
    if not len(means):
        return None
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)

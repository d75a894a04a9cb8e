"""How near images are to others: the kernel distance (KID) between pooled features of the referee."""

import numpy as np
import torch
from torch import Tensor

from attn2mask.training.referee import load_referee, to_tensor


@torch.no_grad()
def pooled_features(images: np.ndarray) -> Tensor:
    """Images (N, H, W, 3) uint8, H and W multiples of 32, to (N, D): the means of the referee's features of
    the lowest level.

    The referee learned to disregard the blur of the painter's autoencoder, which would otherwise outweigh all
    other differences.
    """
    referee = load_referee()
    return torch.cat([referee.encode(part)[-1].mean((2, 3)) for part in to_tensor(images).split(32)])


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """KID of features (N, D) and (M, D), times 1,000: the unbiased squared maximum mean discrepancy under the
    kernel (x y / D + 1) ** 3 (Bińkowski et al., "Demystifying MMD GANs", ICLR 2018).

    The features are not divided by their deviations: frames of one drive hardly differ in some features, and
    these alone would decide.
    """
    # torchmetrics' `poly_mmd` takes only sets of equal size.
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    return float(1000 * (within(a) + within(b) - 2 * kernel(a, b).mean()))

"""The kernel distance is that of its formula, and the referee's pooled features tell images apart."""

import numpy as np
import pytest
import torch

from attn2mask.training.experiments.fidelity import kernel_distance, pooled_features


def test_kernel_distance_is_its_formula_and_unbiased():
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 7, generator=rng) + shift for n, shift in ((5, 0.0), (6, 1.0)))
    x, y = a.double(), b.double()

    def k(u, v):
        return (float(u @ v) / 7 + 1) ** 3

    def pairs(z):
        values = [k(u, v) for i, u in enumerate(z) for j, v in enumerate(z) if i != j]
        return sum(values) / len(values)

    across = sum(k(u, v) for u in x for v in y) / (len(x) * len(y))
    assert kernel_distance(a, b) == pytest.approx(1000 * (pairs(x) + pairs(y) - 2 * across))
    same = [kernel_distance(*torch.randn(2, 40, 7, generator=rng).unbind()) for _ in range(200)]
    assert abs(np.mean(same)) < 4 * np.std(same) / 200**0.5  # of one distribution: 0 in the mean


def test_kernel_distance_is_not_ruled_by_a_feature_that_hardly_varies():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 40, 7, generator=rng).unbind()
    still = [torch.cat([x, 1e-4 * x[:, :1] + 1e-3 * k], dim=1) for k, x in enumerate((a, b))]
    assert kernel_distance(*still) == pytest.approx(kernel_distance(a, b), rel=0.5, abs=5)


def test_features_tell_images_apart():
    images = np.full((3, 64, 96, 3), (200, 30, 30), np.uint8)
    images[2] = (30, 30, 200)
    found = pooled_features(images)
    assert found.shape[0] == 3
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[0], found[1], atol=2e-3, rtol=0)  # norms divide by next to nothing
    assert (found[0] - found[2]).abs().max() > 0.01

"""PAMR against a loop over pixels."""

import itertools
import statistics

import numpy as np
import torch

from attn2mask.training.zeroshot.pamr import DILATIONS, STEPS, refine


def refined_by_a_loop(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Values (H, W) after all steps: each pixel gets a weighted mean of its neighbors at each dilation."""
    height, width = values.shape
    colors = image / 255
    offsets = [
        (y * dilation, x * dilation)
        for dilation in (8, 16)
        for y, x in itertools.product((-1, 0, 1), repeat=2)
    ]

    def at(y: int, x: int, offset: tuple[int, int]) -> tuple[int, int]:
        return min(max(y + offset[0], 0), height - 1), min(max(x + offset[1], 0), width - 1)

    neighbors = [offset for offset in offsets if offset != (0, 0)]
    shares = {}
    for y, x in np.ndindex(height, width):
        similar = np.zeros(len(neighbors))
        for channel in range(3):
            around = [colors[(*at(y, x, offset), channel)] for offset in offsets]
            width_of_kernel = 1e-8 + 0.1 * statistics.stdev(around)
            for i, offset in enumerate(neighbors):
                difference = abs(colors[(*at(y, x, offset), channel)] - colors[y, x, channel])
                similar[i] -= difference / width_of_kernel / 3
        weights = np.exp(similar - similar.max())
        shares[y, x] = weights / weights.sum()
    for _ in range(10):
        values = np.array(
            [
                [
                    sum(
                        share * values[at(y, x, offset)]
                        for share, offset in zip(shares[y, x], neighbors, strict=True)
                    )
                    for x in range(width)
                ]
                for y in range(height)
            ]
        )
    return values


def test_values_flow_as_in_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (19, 11, 3), np.uint8)  # some neighbors are beyond both borders
    image[5:, :4] = image[5, 0]  # a part of one color
    values = rng.normal(size=(1, 2, 19, 11))
    found = refine(torch.from_numpy(values), image)
    assert found.dtype == torch.float32
    assert (STEPS, DILATIONS) == (10, (8, 16))
    for query in range(2):
        wanted = refined_by_a_loop(values[0, query], image)
        np.testing.assert_allclose(found[0, query].numpy(), wanted, atol=1e-4)


def test_an_edge_of_the_image_becomes_an_edge_of_the_values():
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 20:] = 255
    values = torch.zeros(1, 1, 40, 40)
    values[..., 22:] = 1.0  # beside the edge, by two pixels
    found = refine(values, image)[0, 0]
    assert found[:, :20].max() < 0.01
    assert found[20, 20] > 0.5

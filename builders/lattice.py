"""Gaussian filters in many dimensions: the permutohedral lattice (Adams, Baek and Davis 2010).

Each of N points gives its value to the d + 1 corners of the simplex that contains it (splat). The corners are
blurred with their neighbors along d + 1 axes (blur). Each point then interpolates the values of its corners
(slice). Splat and slice are a sparse matrix and its transpose. The constants and the order of operations are
those of Kraehenbuehl and Koltun's code, which pydensecrf wraps, so that values differ only by rounding.
"""

from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

# The product of a corner, an integer vector, with these odd numbers modulo 2 ** 64 identifies it. A collision
# is extremely unlikely, and a step along an axis is the addition of a number.
HASH = np.random.default_rng(0).integers(1, 2**62, 16) * 2 + 1


class Lattice:
    """A Gaussian W of unit width over points, normalized on both sides: D^-1/2 W D^-1/2 with D = diag(W 1).

    `features` (d, N) float32 are at most seven dimensions of N points, in units of the standard deviations.
    """

    def __init__(self, features: np.ndarray) -> None:
        dimensions, count = features.shape
        corner, inside, rank = _simplices(features)
        # Many points share a simplex, and many simplices share a corner. Each is looked up once.
        simplex, _ = pd.factorize(_hashes(np.concatenate([corner, rank]), HASH[: 2 * dimensions + 2]))
        member = np.empty(simplex.max() + 1, np.int64)
        member[simplex] = np.arange(count)

        # The last coordinate has weight 0, because it follows from the others: all coordinates sum to 0.
        weights = np.append(HASH[:dimensions], 0)
        steps = (dimensions + 1) * weights - weights.sum()
        corners = _corners(corner[:, member], rank[:, member], weights, steps)
        of_simplex, keys = pd.factorize(corners.ravel())
        of_point = of_simplex.reshape(corners.shape).astype(np.int32)[simplex]
        ends = np.arange(0, of_point.size + 1, dimensions + 1, dtype=np.int32)
        self._slice = csr_array((_barycentric(inside).ravel(), of_point.ravel(), ends), (count, len(keys)))
        self._splat = self._slice.T
        index = pd.Index(keys)
        self._neighbors = [_neighbors(index, keys + step) for step in steps]
        self._gain = np.float32(1 / (1 + 2.0**-dimensions))
        self._norm = 1 / np.sqrt(self._filter(np.ones((1, count), np.float32))[0] + np.float32(1e-20))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The filtered `values`, (C, N) float32: C channels."""
        return self._norm * self._filter(self._norm * values)

    def _filter(self, values: np.ndarray) -> np.ndarray:
        held = self._splat @ np.ascontiguousarray(values.T)
        # The last row stands for corners that no point uses.
        held = np.concatenate([held, np.zeros_like(held[:1])])
        for forward, backward in self._neighbors:
            held[:-1] += np.float32(0.5) * (held.take(forward, axis=0) + held.take(backward, axis=0))
        return np.ascontiguousarray((self._slice @ held[:-1]).T) * self._gain


def _hashes(vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The products (N,) of integer vectors (D, N) with weights (D,), modulo 2 ** 64."""
    return sum(row.astype(np.int64) * weight for row, weight in zip(vectors, weights, strict=True))


def _simplices(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The simplex of each point, as three arrays (d + 1, N).

    They are the corner of remainder 0, in units of d + 1; the position of the point relative to this corner,
    also in units of d + 1; and the rank of each coordinate of this position, 0 (the largest) to d. Corner and
    ranks identify the simplex.
    """
    dimensions, count = features.shape
    unit = np.float32(dimensions + 1)
    elevated = np.empty((dimensions + 1, count), np.float32)
    total = np.zeros(count, np.float32)
    for axis in range(dimensions, 0, -1):
        scale = np.sqrt(2 / 3) * (dimensions + 1) / np.sqrt(axis * (axis + 1))
        scaled = features[axis - 1] * np.float32(scale)
        elevated[axis] = total - axis * scaled
        total += scaled
    elevated[0] = total

    corner = np.rint(elevated * (1 / unit))
    inside = elevated - corner * unit
    rank = np.zeros(inside.shape, np.int8)
    for axis in range(dimensions):
        smaller = inside[axis] < inside[axis + 1 :]
        rank[axis] += smaller.sum(axis=0, dtype=np.int8)
        rank[axis + 1 :] += ~smaller
    # Rounding may leave the plane where coordinates sum to 0. Those that were rounded most lead back to it.
    rank += corner.sum(axis=0).astype(np.int8)
    back = (rank < 0).astype(np.int8) - (rank > dimensions)
    rank += back * np.int8(dimensions + 1)
    corner += back
    return corner, (elevated - corner * unit) * (1 / unit), rank


def _corners(corner: np.ndarray, rank: np.ndarray, weights: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The numbers (S, d + 1) of the corners of S simplices: the first, then one step along each axis."""
    dimensions, count = len(corner) - 1, corner.shape[1]
    ordered = np.empty(corner.shape, np.int64)
    for axis in range(dimensions + 1):
        ordered[rank[axis], np.arange(count)] = steps[axis]
    numbers = np.empty((count, dimensions + 1), np.int64)
    numbers[:, 0] = (dimensions + 1) * _hashes(corner, weights)
    for index in range(1, dimensions + 1):
        numbers[:, index] = numbers[:, index - 1] - ordered[dimensions + 1 - index]
    return numbers


def _barycentric(inside: np.ndarray) -> np.ndarray:
    """The weights (N, d + 1) of the corners of a simplex at positions (d + 1, N) inside it. They sum to 1."""
    falling = list(inside)
    for end in range(len(falling) - 1, 0, -1):  # a sorting network, which compares whole rows
        for at in range(end):
            first, second = falling[at], falling[at + 1]
            falling[at], falling[at + 1] = np.maximum(first, second), np.minimum(first, second)
    rising = falling[::-1]
    gaps = [high - low for low, high in pairwise(rising)]
    return np.stack([1 + rising[0] - rising[-1], *gaps], axis=1)


def _neighbors(index: pd.Index, next_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The indices (M,) of the two neighbors of each corner along an axis; M if there is none."""
    count = len(index)
    forward = index.get_indexer(next_keys)
    there = forward >= 0
    forward[~there] = count
    backward = np.full(count, count)
    backward[forward[there]] = np.flatnonzero(there)
    return forward, backward

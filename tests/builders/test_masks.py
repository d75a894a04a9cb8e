from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from attn2mask.builders.crf import DenseCRF
from attn2mask.builders.masks import CANDIDATES, agreement_threshold, coarse_mask, fixed_threshold, otsu
from attn2mask.builders.rules import load_rules
from attn2mask.builders.scores import upsample

LEVELS = arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)))
UNIT = st.floats(0, 1, width=32)


@st.composite
def problems(draw):
    """Scores (K, H, W) and thresholds (K,)."""
    scores = draw(arrays(np.float32, st.tuples(st.integers(1, 4), *[st.integers(1, 5)] * 2), elements=UNIT))
    thresholds = draw(arrays(np.float32, len(scores), elements=UNIT))
    return torch.from_numpy(scores), torch.from_numpy(thresholds)


def brute_force_otsu(levels: np.ndarray) -> float:
    """The textbook's: try every threshold, keep the first gap with the largest between-class variance."""
    levels = levels.astype(object)  # Python's integers
    best, first, last = 0, None, None
    for threshold in range(255):
        low, high = levels[levels <= threshold], levels[levels > threshold]
        if not len(low) or not len(high):
            continue
        # n0 * n1 * (mean0 - mean1)^2 * n0 * n1, compared as fractions of n0 * n1.
        gap, parts = low.sum() * len(high) - high.sum() * len(low), len(low) * len(high)
        value = np.float64(gap * gap) / np.float64(parts)
        if value > best:
            best, first, last = value, threshold, threshold
        elif value == best and last == threshold - 1:
            last = threshold
    return 1.0 if first is None else (first + last + 1) / 2 / 255


@given(LEVELS)
def test_otsu_equals_brute_force(levels):
    thresholds = otsu(torch.from_numpy(levels).float() / 255)
    assert thresholds.dtype == torch.float32
    for one, own in zip(levels, thresholds.tolist(), strict=True):
        assert own == pytest.approx(brute_force_otsu(one.ravel()), abs=1e-6)


def test_otsu_of_two_heaps():
    """The middle of the gap between the heaps."""
    scores = torch.tensor([20, 22, 25, 200, 210] * 10).view(1, 5, 10) / 255
    assert otsu(scores).item() == pytest.approx((25 + 200) / 2 / 255)


@given(st.integers(0, 255), st.sampled_from([(3, 5), (64, 48)]))
def test_a_flat_map_has_no_candidate(level, size):
    scores = torch.full((1, 4, 4), level / 255)
    thresholds = otsu(scores)
    assert thresholds.isfinite().all()
    assert not coarse_mask(upsample(scores, size), thresholds, background=True).any()


def test_fixed_threshold():
    assert fixed_threshold(0.2) == pytest.approx(0.4)


@given(LEVELS, st.integers(1, 20), st.integers(1, 20))
def test_upsampled_scores_stay_in_their_range(levels, height, width):
    scores = torch.from_numpy(levels).float() / 255
    large = upsample(scores, (height, width))
    assert large.shape == (len(scores), height, width)
    assert (large >= scores.amin((1, 2), keepdim=True) - 1e-6).all()
    assert (large <= scores.amax((1, 2), keepdim=True) + 1e-6).all()
    assert large.max() <= 1


@given(problems(), st.booleans())
def test_the_winner_exceeds_its_threshold_by_most(problem, background):
    scores, thresholds = problem
    labels = coarse_mask(scores, thresholds, background)
    for row, column in np.ndindex(*labels.shape):
        excess = (scores[:, row, column] - thresholds).tolist()
        if max(excess) > 0:
            assert excess[labels[row, column] - 1] == max(excess)
        else:
            assert labels[row, column] == (0 if background else -1)


@given(problems(), st.booleans(), st.randoms())
def test_order_of_classes_does_not_matter(problem, background, random):
    scores, thresholds = problem
    excess = (scores - thresholds[:, None, None]).sort(0).values
    assume((excess.diff(dim=0) > 0).all())  # of equals the first class wins
    order = list(range(len(scores)))
    random.shuffle(order)
    labels = coarse_mask(scores, thresholds, background)
    shuffled = coarse_mask(scores[order], thresholds[order], background)
    renamed = torch.tensor([0, *(1 + k for k in order), -1])[shuffled]
    assert torch.equal(renamed, labels)


@given(problems(), st.floats(0, 1, width=32))
def test_a_class_shrinks_as_its_threshold_rises(problem, rise):
    scores, thresholds = problem
    raised = thresholds.clone()
    raised[0] += rise
    before, after = (coarse_mask(scores, t, background=True) for t in (thresholds, raised))
    assert not ((after == 1) & (before != 1)).any()
    assert not ((after == 0) & (before > 1)).any()


@pytest.mark.parametrize("classes", [0, 1, 3])
def test_without_a_score_all_is_background(classes):
    scores, thresholds = torch.zeros(classes, 4, 6), torch.zeros(classes)
    assert torch.equal(coarse_mask(scores, thresholds, True), torch.zeros(4, 6, dtype=torch.int64))
    assert torch.equal(coarse_mask(scores, thresholds, False), torch.full((4, 6), -1))


def test_a_band_below_the_thresholds_is_ignored():
    scores = torch.tensor([[[0.7, 0.6, 0.55, 0.5, 0.1]], [[0.0, 0.0, 0.0, 0.0, 0.85]]])
    thresholds = torch.tensor([0.6, 0.9])
    assert coarse_mask(scores, thresholds, True, 0.08).tolist() == [[1, -1, -1, 0, -1]]
    assert coarse_mask(scores, thresholds, True, 0.0).tolist() == [[1, 0, 0, 0, 0]]
    assert coarse_mask(scores, thresholds, False, 0.08).tolist() == [[1, -1, -1, -1, -1]]
    assert torch.equal(
        coarse_mask(scores[:0], thresholds[:0], True, 0.5), torch.zeros(1, 5, dtype=torch.int64)
    )


def square(side=48, inner=16):
    """A red square on blue: its image, and where it is."""
    inside = np.zeros((side, side), bool)
    inside[inner:-inner, inner:-inner] = True
    return np.where(inside[..., None], [220, 30, 30], [30, 30, 220]).astype(np.uint8), inside


def test_agreement_takes_the_threshold_that_the_crf_confirms():
    """A ring about the square scores 0.55: a threshold below it lets it in, and the CRF throws it out."""
    image, inside = square()
    ring = np.zeros_like(inside)
    ring[8:-8, 8:-8] = True
    scores = torch.from_numpy(np.where(inside, 0.9, np.where(ring, 0.55, 0.0))).float()[None]
    field = DenseCRF(image, load_rules("embedded").dense_crf)
    thresholds, coarse, refined = agreement_threshold(field, scores, torch.tensor([0.2]), True)
    assert thresholds.tolist() == pytest.approx([0.6])
    assert np.array_equal(coarse, inside)
    assert np.array_equal(refined.labels, coarse)


def test_agreement_ignores_the_band_below_the_threshold_that_it_takes():
    image, inside = square()
    ring = np.zeros_like(inside)
    ring[8:-8, 8:-8] = True
    scores = torch.from_numpy(np.where(inside, 0.9, np.where(ring, 0.55, 0.0))).float()[None]
    field = DenseCRF(image, replace(load_rules("embedded").dense_crf, iterations=0))
    thresholds, coarse, refined = agreement_threshold(field, scores, torch.tensor([0.7]), True, 0.2)
    assert thresholds.tolist() == pytest.approx([0.7])
    assert np.array_equal(coarse, np.where(inside, 1, np.where(ring, -1, 0)))
    assert np.array_equal(refined.labels, coarse)


def test_agreement_keeps_otsu_among_equals_and_never_an_empty_mask():
    image, inside = square()
    scores = torch.from_numpy(np.where(inside, 0.55, 0.0)).float()[None]
    field = DenseCRF(image, load_rules("embedded").dense_crf)
    thresholds, coarse, _ = agreement_threshold(field, scores, torch.tensor([0.25]), True)
    assert thresholds.tolist() == [0.25]
    assert not coarse_mask(scores, torch.tensor([max(CANDIDATES)]), True).any()
    thresholds, coarse, _ = agreement_threshold(field, scores, torch.tensor([1.0]), True)
    assert np.array_equal(coarse, inside)

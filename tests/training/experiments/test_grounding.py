"""Grounding: areas under the curve and IoU of attention maps against known masks."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from attn2mask.training.experiments.grounding import area_under_curve, grounding
from attn2mask.training.mask_quality import RecordedImage

TARGET = np.zeros((32, 32), np.uint8)
TARGET[8:16, 16:32] = 3


def image(*maps: torch.Tensor, classes: tuple[int, ...] = (3,)) -> RecordedImage:
    by_size = {(len(attention), len(attention[0])): attention for attention in maps}
    return RecordedImage(np.zeros((32, 32, 3), np.uint8), classes, [by_size] * len(classes), 8)


def at(size: int) -> torch.Tensor:
    """The target as a map of `size` x `size`."""
    return torch.from_numpy(TARGET[:: 32 // size, :: 32 // size] == 3).float()


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_the_area_is_the_share_of_ordered_pairs(pairs):
    scores, inside = np.array([s for s, _ in pairs], float), np.array([i for _, i in pairs])
    assume(inside.any() and not inside.all())
    difference = scores[inside][:, None] - scores[~inside][None]
    expected = ((difference > 0) + 0.5 * (difference == 0)).mean()
    assert area_under_curve(scores, inside) == pytest.approx(expected)


def test_a_map_on_its_thing_is_grounded():
    found = grounding([image(at(32), at(16))], [TARGET])
    assert list(found) == ["32x32", "16x16"]
    assert found["32x32"] == pytest.approx({"auc": 1, "below_chance": 0, "iou": 1, "threshold": 0.05})
    assert found["16x16"]["auc"] > 0.98
    assert found["16x16"]["iou"] > 0.9


def test_a_map_beside_its_thing_is_below_chance():
    found = grounding([image(1 - at(32)), image(at(32))], [TARGET, TARGET])["32x32"]
    assert found["auc"] == pytest.approx(0.5), "0 and 1"
    assert found["below_chance"] == 0.5


def test_a_constant_map_says_nothing():
    found = grounding([image(torch.full((8, 8), 0.3))], [TARGET])["8x8"]
    assert (found["auc"], found["below_chance"], found["iou"]) == (0.5, 0, 0)


def test_classes_without_a_pixel_are_left_out():
    alone = grounding([image(at(16))], [TARGET])
    assert grounding([image(at(16), classes=(3, 7))], [TARGET]) == alone
    assert grounding([image(at(16), classes=(7,))], [TARGET]) == {}


def test_one_threshold_serves_all_words():
    low = torch.where(at(32) > 0, 1.0, 0.0)
    low[0, 0] = 2.0  # the thing is at 0.5 of the scaled map
    found = grounding([image(low), image(at(32))], [TARGET, TARGET])["32x32"]
    assert found["threshold"] < 0.5
    assert found["iou"] > 0.98

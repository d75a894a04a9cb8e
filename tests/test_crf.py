import builtins

import numpy as np
import pytest
from pydensecrf import densecrf

from attn2mask.builders.crf import refine
from attn2mask.builders.errors import UserError
from attn2mask.builders.rules import CRF, PRESETS

DEFAULT = PRESETS["default"].crf


def two_colours(height=60, width=80):
    """Left red, right blue, with a little noise; the mask's edge lies 6 pixels beside the picture's."""
    rng = np.random.default_rng(0)
    image = np.where(np.arange(width)[None, :, None] < width // 2, [200, 40, 40], [40, 40, 200])
    image = (image + rng.integers(-8, 9, (height, width, 3))).astype(np.uint8)
    truth = np.tile(np.arange(width) < width // 2, (height, 1)).astype(np.int64)
    return image, truth, np.roll(truth, 6, axis=1) * (np.arange(width) >= 6)


def test_the_mask_moves_to_the_picture_s_edge():
    image, truth, shifted = two_colours()
    refined = refine(image, shifted, DEFAULT)
    assert refined.labels.dtype == np.int32
    assert (shifted != truth).mean() > 0.1
    assert (refined.labels != truth).mean() < 0.01


def test_probabilities_belong_to_the_labels():
    image, _, shifted = two_colours()
    shifted[:10] *= 7  # labels need not be consecutive
    refined = refine(image, shifted, DEFAULT)
    assert refined.present.tolist() == [0, 1, 7]
    assert refined.probabilities.shape == (3, 60, 80)
    np.testing.assert_allclose(refined.probabilities.sum(0), 1, atol=1e-5)
    assert np.array_equal(refined.present[refined.probabilities.argmax(0)], refined.labels)
    np.testing.assert_array_equal(refined.probability_of(refined.labels), refined.probabilities.max(0))
    assert not refined.probability_of(np.full((60, 80), 3)).any()
    assert not refined.probability_of(np.full((60, 80), -1)).any()


def test_pixels_without_an_opinion_take_that_of_their_colour():
    image, truth, _ = two_colours()
    seeds = np.full_like(truth, -1)
    seeds[20:40, 10:20], seeds[20:40, 60:70] = 1, 0
    assert (refine(image, seeds, DEFAULT).labels == truth).mean() > 0.99


@pytest.mark.parametrize("label", [0, 3, -1])
def test_one_label_is_left_alone(label):
    image, truth, _ = two_colours()
    labels = np.full_like(truth, label)
    labels[:5] = -1
    refined = refine(image, labels, DEFAULT)
    assert np.array_equal(refined.labels, labels)
    np.testing.assert_array_equal(refined.probability_of(labels), labels >= 0)


def test_it_is_deterministic():
    image, _, shifted = two_colours()
    first, second = refine(image, shifted, DEFAULT), refine(image, shifted, DEFAULT)
    assert np.array_equal(first.probabilities, second.probabilities)


def test_widths_scale_with_the_picture(monkeypatch):
    """They are given for 512 x 512: at 128 x 32, an eighth."""
    real, calls = densecrf.DenseCRF2D, {}

    class Field:
        def __init__(self, *size):
            self.field = real(*size)

        def __getattr__(self, name):
            def call(*args, **options):
                calls[name] = options
                return getattr(self.field, name)(*args, **options)

            return call

    monkeypatch.setattr(densecrf, "DenseCRF2D", Field)
    labels = np.eye(128, 32, dtype=np.int64)
    refine(np.zeros((128, 32, 3), np.uint8), labels, CRF(0.7, 12, 3, 80, 13, 10, 1))
    assert calls["addPairwiseGaussian"] == {"sxy": 1.5, "compat": 3}
    bilateral = calls["addPairwiseBilateral"]
    assert (bilateral["sxy"], bilateral["srgb"], bilateral["compat"]) == (10, 13, 10)


def test_a_missing_crf_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pydensecrf"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    image, _, shifted = two_colours()
    with pytest.raises(UserError, match=r"C\+\+ compiler.*pydensecrf2") as caught:
        refine(image, shifted, DEFAULT)
    assert "\n" not in str(caught.value)

import sys
from dataclasses import replace

import numpy as np
import pytest
from references import pydensecrf

from attn2mask.builders.crf import DenseCRF
from attn2mask.builders.errors import UserError
from attn2mask.builders.lattice import Lattice
from attn2mask.builders.options import preset_names
from attn2mask.builders.rules import CRF, PRESETS, load_rules

PRESET_NAMES = [name for name in preset_names(PRESETS) if load_rules(name).crf_iterations]
DEFAULT = load_rules("embedded").dense_crf


def refine(image, labels, crf=DEFAULT):
    return DenseCRF(image, crf).refine(labels)


def two_colors(height=60, width=80):
    """Left red, right blue, with a little noise; the mask's edge lies 6 pixels beside the image's."""
    rng = np.random.default_rng(0)
    image = np.where(np.arange(width)[None, :, None] < width // 2, [200, 40, 40], [40, 40, 200])
    image = (image + rng.integers(-8, 9, (height, width, 3))).astype(np.uint8)
    truth = np.tile(np.arange(width) < width // 2, (height, 1)).astype(np.int64)
    return image, truth, np.roll(truth, 6, axis=1) * (np.arange(width) >= 6)


def test_the_mask_moves_to_the_edge_of_the_image():
    image, truth, shifted = two_colors()
    refined = refine(image, shifted)
    assert refined.labels.dtype == np.int32
    assert (shifted != truth).mean() > 0.1
    assert (refined.labels != truth).mean() < 0.01


def test_probabilities_belong_to_the_labels():
    image, _, shifted = two_colors()
    shifted[:10] *= 7  # labels need not be consecutive
    refined = refine(image, shifted)
    assert refined.present.tolist() == [0, 1, 7]
    assert refined.probabilities.shape == (3, 60, 80)
    np.testing.assert_allclose(refined.probabilities.sum(0), 1, atol=1e-5)
    assert np.array_equal(refined.present[refined.probabilities.argmax(0)], refined.labels)
    np.testing.assert_array_equal(refined.probability_of(refined.labels), refined.probabilities.max(0))
    assert not refined.probability_of(np.full((60, 80), 3)).any()
    assert not refined.probability_of(np.full((60, 80), -1)).any()


def test_pixels_without_an_opinion_take_that_of_their_color():
    image, truth, _ = two_colors()
    seeds = np.full_like(truth, -1)
    seeds[20:40, 10:20], seeds[20:40, 60:70] = 1, 0
    assert (refine(image, seeds).labels == truth).mean() > 0.99


@pytest.mark.parametrize("label", [0, 3, -1])
def test_one_label_is_left_alone(label):
    image, truth, _ = two_colors()
    labels = np.full_like(truth, label)
    labels[:5] = -1
    refined = refine(image, labels)
    assert np.array_equal(refined.labels, labels)
    np.testing.assert_array_equal(refined.probability_of(labels), labels >= 0)


@pytest.mark.parametrize("implementation", ["lattice", "pydensecrf"])
def test_without_iterations_the_mask_stays_as_it_is(implementation):
    """Also where the trust in a label is too low to outweigh the others, and where there is no label."""
    image, _, labels = two_colors()
    labels[:10], labels[10:20] = -1, 7
    crf = replace(DEFAULT, iterations=0, gt_prob=0.2, implementation=implementation)
    refined = refine(image, labels, crf)
    assert refined.labels.dtype == np.int32
    assert np.array_equal(refined.labels, labels)
    assert refined.present.tolist() == [0, 1, 7]
    np.testing.assert_array_equal(refined.probability_of(labels), labels >= 0)


def test_it_is_deterministic():
    image, _, shifted = two_colors()
    first, second = refine(image, shifted), refine(image, shifted)
    assert np.array_equal(first.probabilities, second.probabilities)


def test_many_masks_of_one_image():
    """Kernels are kept from mask to mask: the same answers as from a new field."""
    image, truth, shifted = two_colors()
    field = DenseCRF(image, DEFAULT)
    for labels in (shifted, truth, shifted * 3 - 1, shifted):
        refined = field.refine(labels)
        assert np.array_equal(refined.probabilities, refine(image, labels).probabilities)


def blots(height, width, labels, seed=0):
    """A smooth image with noise, and patches of labels that know nothing of it, a strip without opinion."""
    rng = np.random.default_rng(seed)
    ramps = np.indices((height, width)).T.swapaxes(0, 1) @ rng.normal(0, 2, (2, 3))
    image = 128 + 120 * np.sin(ramps / 20 + rng.uniform(0, 6, 3)) + rng.normal(0, 4, ramps.shape)
    patches = rng.integers(0, labels, (5, 6)).repeat(-(-height // 5), axis=0).repeat(-(-width // 6), axis=1)
    coarse = patches[:height, :width].copy()
    coarse[:7] = -1
    return image.clip(0, 255).astype(np.uint8), coarse


@pytest.mark.parametrize("crf", [load_rules(name).dense_crf for name in PRESET_NAMES], ids=PRESET_NAMES)
@pytest.mark.parametrize(
    ("height", "width", "labels"), [(90, 130, 2), (64, 64, 3), (128, 96, 8), (33, 20, 21)]
)
def test_masks_are_those_of_pydensecrf(height, width, labels, crf):
    """Also with all 21 labels there; probabilities differ by rounding, which a few points tip into another
    simplex.
    """
    pytest.importorskip("pydensecrf", reason="pydensecrf2 does not build on Python 3.13")
    image, coarse = blots(height, width, labels)
    refined = refine(image, coarse, crf)
    reference = pydensecrf(image, coarse, 21, crf)
    assert (refined.labels == reference.argmax(axis=0)).mean() > 0.995
    off = np.abs(refined.probabilities - reference[refined.present])
    assert np.quantile(off, 0.95) < 1e-3
    assert (refined.labels != coarse).mean() > 0.02  # there was something to decide


@pytest.mark.parametrize("preset", PRESET_NAMES)
@pytest.mark.parametrize(("height", "width", "labels"), [(128, 128, 2), (96, 160, 3), (200, 200, 5)])
def test_both_implementations_give_the_same_masks(height, width, labels, preset):
    """They differ in at most 0.1 % of the pixels, also for a mask without opinion in places."""
    pytest.importorskip("pydensecrf", reason="pydensecrf2 does not build on Python 3.13")
    image, coarse = blots(height, width, labels)
    image.flags.writeable = False  # as images of Pillow are
    crf = load_rules(preset).dense_crf
    own = refine(image, coarse, crf)
    other = refine(image, coarse, replace(crf, implementation="pydensecrf"))
    assert (own.labels != other.labels).mean() <= 0.001
    assert (own.labels != coarse).mean() > 0.02
    assert np.array_equal(own.present, other.present)
    assert (other.labels.dtype, other.probabilities.dtype) == (np.int32, np.float32)
    assert np.quantile(np.abs(own.probabilities - other.probabilities), 0.95) < 1e-3


def test_an_implementation_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)  # Python then finds no such package
    image, _, shifted = two_colors()
    with pytest.raises(UserError, match=r"pip install 'attn2mask\[pydensecrf\]'.*or use --crf lattice"):
        refine(image, shifted, replace(DEFAULT, implementation="pydensecrf"))


@pytest.mark.parametrize(("dimensions", "off"), [(1, 0.04), (2, 0.05), (5, 0.12)])
def test_the_lattice_filters_as_a_gaussian_does(dimensions, off):
    """Against the sum over all pairs of points, whose weights are those of the lattice's normalization."""
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 3, (dimensions, 1500)).astype(np.float32)
    values = np.stack([np.sin(points[0]), np.cos(points[-1])]).astype(np.float32)
    weights = np.exp(-((points[:, :, None] - points[:, None]) ** 2).sum(axis=0) / 2)
    norm = weights.sum(axis=1) ** -0.5
    expected = norm * ((values * norm) @ weights)
    filtered = Lattice(points)(values)
    assert filtered.dtype == np.float32
    assert np.abs(filtered - expected).mean() < off * np.abs(expected).mean()


def test_every_channel_is_filtered_alone():
    rng = np.random.default_rng(0)
    lattice = Lattice(rng.uniform(0, 9, (3, 400)).astype(np.float32))
    values = rng.normal(size=(5, 400)).astype(np.float32)
    alone = np.concatenate([lattice(row[None]) for row in values])
    np.testing.assert_allclose(lattice(values), alone, rtol=1e-5, atol=1e-6)


def test_widths_scale_with_the_image():
    """They are given for 512 x 512: an image made four times as large is refined alike."""

    def larger(array):
        return array.repeat(4, axis=0).repeat(4, axis=1)

    image, coarse = blots(64, 64, 2)
    crf = CRF(0.7, 3, 3, 80, 13, 10, 3)
    small, large = refine(image, coarse, crf), refine(larger(image), larger(coarse), crf)
    assert (larger(small.labels) == large.labels).mean() > 0.98

"""Boundary IoU by hand, and against an erosion of each class by itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from places import DATA
from scipy import ndimage

from attn2mask.training import boundary
from attn2mask.training.boundary import (
    boundary_counts,
    boundary_distance,
    mean_boundary_iou,
    near_contour,
)


def eroded_counts(prediction: np.ndarray, target: np.ndarray, classes: int, ignore: int) -> np.ndarray:
    """The counts, class by class: an erosion is repeated d times, with zeros outside the image."""
    distance = max(1, round(0.02 * (target.shape[0] ** 2 + target.shape[1] ** 2) ** 0.5))
    counts = np.zeros((classes, 2), np.int64)
    for k in range(classes):
        one, other = (
            region & ~ndimage.binary_erosion(region, np.ones((3, 3)), distance, border_value=0)
            for region in (target == k, prediction == k)
        )
        counted = target != ignore
        counts[k] = (one & other & counted).sum(), ((one | other) & counted).sum()
    return counts


def blobs(rng: np.random.Generator, shape: tuple[int, int], classes: int) -> np.ndarray:
    """Ids (H, W) in smooth regions."""
    noise = rng.normal(size=(classes, *shape))
    return ndimage.gaussian_filter(noise, (0, *(side / 12 for side in shape))).argmax(0)


def test_a_square_that_is_shifted_by_one_pixel():
    """d is 1 for an image of 10 x 10 pixels. The contour of a square of 4 x 4 has 12 pixels."""
    target, prediction = np.zeros((2, 10, 10), np.int32)
    target[3:7, 3:7] = 1
    prediction[3:7, 4:8] = 1
    # Both rings have columns 4 to 6 of rows 3 and 6. In rows 4 and 5 they share no column.
    both = 6
    counts = boundary_counts(prediction, target, 2, 255)
    assert counts[1].tolist() == [both, 12 + 12 - both]
    # The background's boundary is the border of the image, 36 pixels, and the 20 pixels around the square. Of
    # the 20, the two share 5 in each of the rows 2 and 7, and none in the rows 3 to 6.
    assert counts[0].tolist() == [36 + 10, 56 + 56 - 46]
    assert mean_boundary_iou(counts) == pytest.approx((6 / 18 + 46 / 66) / 2)


def test_only_the_border_of_an_image_of_one_class_is_a_boundary():
    target = np.zeros((60, 80), np.int32)  # d is 2
    assert boundary_distance(60, 80) == 2
    counts = boundary_counts(target, target, 2, 255)
    assert counts.tolist() == [[60 * 80 - 56 * 76] * 2, [0, 0]]
    assert mean_boundary_iou(counts) == 1


@pytest.mark.parametrize(
    ("shape", "distance"), [((1, 1), 1), ((30, 40), 1), ((375, 500), 12), ((1024, 2048), 46)]
)
def test_the_distance_is_two_percent_of_the_diagonal(shape, distance):
    assert boundary_distance(*shape) == distance


def test_distances_are_those_of_squares():
    ids = np.zeros((9, 9), np.int32)
    ids[4, 4] = 1
    inside = np.ones((9, 9), bool)
    inside[2:7, 2:7] = False
    assert np.array_equal(near_contour(ids, 2)[2:7, 2:7], ~inside[2:7, 2:7])
    assert near_contour(ids, 1).sum() == 9 + 32
    assert near_contour(ids, 50).all()


def test_ignored_pixels_are_not_counted_but_end_the_regions_of_the_target():
    target = np.zeros((9, 9), np.int32)
    target[:, 4] = 255
    prediction = np.zeros((9, 9), np.int32)
    counts = boundary_counts(prediction, target, 1, 255)
    border = 32 - 2  # the pixels of the border without the two that are ignored
    # The columns 3 and 5 are boundary in the target only: 7 pixels each without the border.
    assert counts.tolist() == [[border, border + 14]]


@pytest.mark.parametrize("nothing", [-1, 2, 255])
def test_predictions_of_no_class_are_a_region_of_no_class(nothing):
    target = np.zeros((5, 5), np.int32)
    prediction = np.full((5, 5), nothing)
    assert boundary_counts(prediction, target, 2, 255).tolist() == [[0, 16], [0, 0]]
    prediction[:, 3:] = 0
    # The region of id 0 is two columns wide. Both are boundary. 7 of their pixels are at the image's border.
    assert boundary_counts(prediction, target, 2, 255).tolist() == [[7, 16 + 10 - 7], [0, 0]]


def test_nothing_to_measure():
    counts = boundary_counts(np.zeros((4, 4), int), np.full((4, 4), 255), 3, 255)
    assert counts.dtype == np.int64
    assert not counts.any()
    assert np.isnan(mean_boundary_iou(counts))


@pytest.mark.parametrize("bad", [3, 254, -1, 300])
def test_targets_that_are_no_class_and_other_shapes_are_refused(bad):
    with pytest.raises(ValueError, match="neither one of 3 classes nor 255"):
        boundary_counts(np.zeros((2, 2), int), np.array([[0, 0], [0, bad]]), 3, 255)
    with pytest.raises(ValueError, match="a prediction of"):
        boundary_counts(np.zeros((2, 3), int), np.zeros((3, 2), int), 3, 255)


@given(st.data())
def test_against_an_erosion_of_each_class(data):
    classes, ignore = data.draw(st.sampled_from([(2, 255), (5, 255), (3, -1), (300, 65535)]))
    shape = data.draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    target, prediction = (blobs(rng, shape, min(classes, 5)) for _ in range(2))
    noisy = rng.random(shape) < data.draw(st.sampled_from([0.0, 0.001, 0.1]))
    prediction[noisy] = rng.integers(-1, classes + 2, shape)[noisy]
    target[rng.random(shape) < data.draw(st.sampled_from([0.0, 0.001, 0.2, 1.0]))] = ignore
    found = boundary_counts(prediction, target.astype(np.int32), classes, ignore)
    assert np.array_equal(found, eroded_counts(prediction, target, classes, ignore))


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the photographs in ../shared/data")
def test_real_masks_against_an_erosion_of_each_class():
    files = sorted((DATA / "photos_voc" / "VOC2012" / "SegmentationClass").glob("*.png"))[:4]
    masks = [np.asarray(Image.open(file)).astype(np.int32) for file in files]
    assert masks
    for mask in masks:
        # The ignored contours are filled with the nearest class and moved by 3 pixels.
        nearest = ndimage.distance_transform_edt(mask == 255, return_distances=False, return_indices=True)
        prediction = np.roll(mask[tuple(nearest)], 3, axis=1)
        found = boundary_counts(prediction, mask, 21, 255)
        assert np.array_equal(found, eroded_counts(prediction, mask, 21, 255))
        assert 0 < mean_boundary_iou(found) < 1


@pytest.mark.parametrize("large", [1, 40, 200])
def test_large_images_are_measured_in_stripes(large, monkeypatch):
    ids = np.random.default_rng(0).integers(0, 3, (6, 5)).repeat(7, 0).repeat(6, 1)
    whole = [boundary.near_contour(ids, distance) for distance in (1, 2, 9)]
    monkeypatch.setattr(boundary, "LARGE", large)
    for distance, expected in zip((1, 2, 9), whole, strict=True):
        assert np.array_equal(boundary.near_contour(ids, distance), expected)

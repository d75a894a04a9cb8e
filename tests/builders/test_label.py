from dataclasses import replace

import numpy as np
import pytest

from attn2mask.builders.images import decode_png
from attn2mask.builders.label import Labels, faults, label, label_image, relabel, taken, to_ids
from attn2mask.builders.masks import otsu
from attn2mask.builders.options import preset_names
from attn2mask.builders.rules import PRESETS, load_rules
from attn2mask.builders.scores import dequantize, upsample
from attn2mask.builders.table_reader import load_table

DEFAULT = load_rules("embedded")


def scene():
    """A red disc and a green one on blue, 64 x 96, and rough scores (2, 16, 24) of where they are."""
    rows, columns = np.mgrid[:64, :96]
    discs = [(rows - 32) ** 2 + (columns - middle) ** 2 < 14**2 for middle in (24, 72)]
    truth = discs[0] * 1 + discs[1] * 2
    image = np.array([[40, 40, 200], [210, 40, 40], [40, 190, 40]])[truth]
    image = (image + np.random.default_rng(0).integers(-6, 7, image.shape)).astype(np.uint8)
    small = np.mgrid[2:64:4, 2:96:4]
    scores = [np.exp(-(((small[0] - 32) ** 2 + (small[1] - middle) ** 2) / 300)) for middle in (24, 72)]
    return image, truth, np.rint(np.array(scores) * 255).astype(np.uint8)


@pytest.mark.parametrize("threshold", ["otsu", "agreement", "fixed"])
@pytest.mark.parametrize("reliability", ["agreement", "two-threshold", "margin"])
@pytest.mark.parametrize("graded", [False, True])
def test_every_rule_labels_the_scene(threshold, reliability, graded):
    image, truth, scores = scene()
    rules = replace(DEFAULT, threshold=threshold, reliability=reliability, graded=graded)
    labels = label_image(image, scores, rules, background=True)
    assert (labels.mask.dtype, labels.coarse.dtype) == (np.int32, np.int32)
    assert labels.mask.shape == labels.coarse.shape == labels.reliability.shape == truth.shape
    assert labels.reliability.dtype == np.uint8
    assert (labels.mask == truth).mean() > 0.97
    # Trust is worth having: what is wrong is less trusted.
    trust = labels.reliability / 255
    assert trust[labels.mask == truth].mean() > 0.75
    if not graded:
        assert set(np.unique(labels.reliability)) <= {0, 255}
    again = label_image(image.copy(), scores.copy(), rules, background=True)
    for name in ("mask", "coarse", "reliability"):
        assert np.array_equal(getattr(labels, name), getattr(again, name))


@pytest.mark.parametrize("preset", preset_names(PRESETS))
def test_every_preset_labels_the_scene(preset):
    image, truth, scores = scene()
    assert (label_image(image, scores, load_rules(preset), True).mask == truth).mean() > 0.9


def test_a_least_threshold_raises_otsus():
    image, _, scores = scene()
    small = dequantize(scores)
    assert otsu(small).max() < 0.5
    labels = label_image(image, scores, replace(DEFAULT, least_threshold=0.6), True)
    candidates = upsample(small, image.shape[:2]).numpy() > 0.6
    assert ((labels.coarse > 0) == candidates.any(axis=0)).all()
    lower = label_image(image, scores, replace(DEFAULT, least_threshold=0.1), True)
    assert np.array_equal(lower.coarse, label_image(image, scores, DEFAULT, True).coarse)


def test_fixed_threshold_follows_beta():
    image, _, scores = scene()
    labels = label_image(image, scores, replace(DEFAULT, threshold="fixed", beta=0.5), True)
    candidates = upsample(dequantize(scores), image.shape[:2]).numpy() > 0.25
    assert ((labels.coarse > 0) == candidates.any(axis=0)).all()


@pytest.mark.parametrize("reliability", ["agreement", "two-threshold", "margin"])
@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("iterations", [0, 5])
def test_an_uncertain_band_is_ignored_and_not_trusted(reliability, graded, iterations):
    image, _, scores = scene()
    rules = replace(
        load_rules("dataset-diffusion-like"),
        reliability=reliability,
        graded=graded,
        crf_iterations=iterations,
    )
    labels = label_image(image, scores, rules, True)
    best = upsample(dequantize(scores), image.shape[:2]).numpy().max(axis=0)
    ignored = (best > 0.5) & (best <= 0.6)
    assert ignored.any()
    assert np.array_equal(labels.mask == -1, ignored)
    assert not labels.reliability[ignored].any()
    assert labels.reliability[~ignored].mean() > 200
    if not iterations:
        assert np.array_equal(labels.mask > 0, best > 0.6)
        assert np.array_equal(labels.mask, labels.coarse)


@pytest.mark.parametrize("threshold", ["otsu", "agreement", "fixed"])
@pytest.mark.parametrize("reliability", ["agreement", "two-threshold", "margin"])
@pytest.mark.parametrize(("background", "label", "trust"), [(True, 0, 255), (False, -1, 0)])
def test_an_image_without_classes(threshold, reliability, background, label, trust):
    """All its classes were dropped: sure background, or nothing at all."""
    image, _, scores = scene()
    rules = replace(DEFAULT, threshold=threshold, reliability=reliability)
    for nothing in (scores[:0], np.zeros_like(scores)):
        labels = label_image(image, nothing, rules, background)
        assert (labels.mask == label).all()
        assert (labels.reliability == trust).all()


@pytest.mark.parametrize("threshold", ["otsu", "agreement", "fixed"])
@pytest.mark.parametrize("reliability", ["agreement", "two-threshold", "margin"])
def test_without_background_what_no_class_explains_is_ignored(threshold, reliability):
    image, truth, scores = scene()
    rules = replace(DEFAULT, threshold=threshold, reliability=reliability)
    labels = label_image(image, scores, rules, background=False)
    assert set(np.unique(labels.coarse)) == {-1, 1, 2}
    assert ((labels.mask == -1) == (labels.coarse == -1)).all()
    assert not labels.reliability[labels.mask == -1].any()
    explained = (truth > 0) & (labels.mask > 0)
    assert (labels.mask[explained] == truth[explained]).mean() > 0.97


def test_ids_of_tables():
    local = np.array([[0, 1], [2, -1]])
    voc = to_ids(local, [12, 7], load_table("voc"))
    assert voc.dtype == np.uint8
    assert voc.tolist() == [[0, 12], [7, 255]]
    streets = to_ids(local, [0, 18], load_table("cityscapes"))
    assert streets.tolist() == [[255, 0], [18, 255]]
    many = to_ids(local, [300, 919], load_table("imagenet_s_919"))
    assert many.dtype == np.uint16
    assert many.tolist() == [[0, 300], [919, 65535]]


def test_the_gate():
    mask = np.zeros((40, 40), np.int32)
    mask[:20, :20], mask[30, 30] = 1, 5
    coarse = mask.copy()
    coarse[39] = 4
    labels = Labels(mask, coarse, np.zeros((40, 40), np.uint8))
    reasons = faults(labels, [0.2, float("nan"), 0.0, 0.3, 0.3], ["dog", "cat", "cow", "bus", "tv"])
    assert list(reasons) == [1, 2, 3, 4]
    assert reasons[1] == "cat: its attention is not finite (the painter overflowed)"
    assert reasons[2] == "cow: its map is empty"
    assert reasons[3] == "bus: it owns 0 of 1600 pixels after the CRF"
    assert reasons[4] == "tv: it owns 1 of 1600 pixels after the CRF"


def test_the_gate_finds_flat_maps():
    image, _, scores = scene()
    scores[1] = 0
    labels = label_image(image, scores, DEFAULT, True)
    assert faults(labels, [0.2, 0.02], ["dog", "cat"]) == {
        1: "cat: its map is flat, or below another class everywhere"
    }
    assert faults(label_image(image, scores[:0], DEFAULT, True), [], []) == {}


def test_the_pixels_of_a_dropped_class_are_ignored():
    """The green disc is in the image, but its map peaks at 0: what its attention takes is not background."""
    image, truth, scores = scene()
    voc = load_table("voc")
    whole = label(image, scores, [0.2, 0.2], [12, 8], ["dog", "cat"], DEFAULT, voc)
    made = label(image, scores, [0.2, 0.0], [12, 8], ["dog", "cat"], DEFAULT, voc)
    assert (whole.kept, made.kept, made.dropped) == ((0, 1), (0,), ("cat: its map is empty",))
    mask, reliability = decode_png(made.mask), decode_png(made.reliability)
    assert (mask[truth == 2] == 255).mean() > 0.95
    assert (mask[truth == 1] == 12).mean() > 0.95
    assert (mask[truth == 0] == 0).mean() > 0.9
    assert not reliability[mask == 255].any()
    assert reliability[mask == 0].mean() > 200
    # The scores of the row and the ignored pixels of its mask give its mask again.
    again = label(image, scores[:1], [0.2], [12], ["dog"], DEFAULT, voc, mask == 255)
    assert (again.mask, again.reliability) == (made.mask, made.reliability)


def test_a_class_without_a_location_takes_all_pixels():
    image, _, scores = scene()
    scores[1] = 0
    labels = label_image(image, scores, DEFAULT, True)
    assert taken(labels, scores, 1).all()
    assert (taken(labels, scores, 0) == (labels.mask == 1) | (labels.coarse == 1)).all()
    made = label(image, scores, [0.2, 0.1], [12, 8], ["dog", "cat"], DEFAULT, load_table("voc"))
    assert (made.kept, made.foreground, made.reliable) == ((), 0.0, 0.0)
    assert (decode_png(made.mask) == 255).all()


@pytest.mark.parametrize("name", ["voc", "cityscapes"])
def test_a_row_with_a_dropped_class_is_labeled_again(name):
    image, _, scores = scene()
    table, reasons = load_table(name), ("b: its map is empty",)
    made = label(image, scores, [0.2, 0.0], [12, 8], ["a", "b"], DEFAULT, table)
    row = {"image": {"bytes": made.image}, "mask": {"bytes": made.mask}, "scores": scores[:1].tolist()}
    row |= {"peaks": [0.2], "classes": [12], "words": ["a"]}
    again = relabel(row, DEFAULT, table, reasons)
    assert (again.mask, again.reliability, again.dropped) == (made.mask, made.reliability, ())
    # A low threshold would give the class more pixels.
    low = replace(DEFAULT, threshold="fixed", beta=1.0)
    ignored = decode_png(made.mask) == table.ignore_index
    assert (decode_png(relabel(row, low, table, reasons).mask)[ignored] == table.ignore_index).all()
    assert (decode_png(relabel(row, low, table, ()).mask)[ignored] == 12).any()

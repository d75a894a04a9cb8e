import numpy as np
import pytest
import torch

from attn2mask.builders.crf import DenseCRF, Refined
from attn2mask.builders.masks import coarse_mask
from attn2mask.builders.reliability import agreement, margin, two_threshold
from attn2mask.builders.rules import load_rules

CRF = load_rules("embedded").dense_crf


def refined_of(probabilities, present) -> Refined:
    """Of probabilities (L, H, W)."""
    probabilities, present = np.array(probabilities, np.float32), np.array(present)
    return Refined(present[probabilities.argmax(0)].astype(np.int32), present, probabilities)


# One row of four pixels, labels 0 and 2.
ROW = refined_of([[[0.99, 0.40, 0.04, 0.52]], [[0.01, 0.60, 0.96, 0.48]]], [0, 2])


def test_agreement():
    coarse = np.array([[0, 0, 2, -1]])
    assert agreement(coarse, ROW, graded=False).tolist() == [[255, 0, 255, 0]]
    assert agreement(coarse, ROW, graded=True).tolist() == [[252, 102, 245, 0]]


def test_margin():
    assert margin(ROW, graded=False).tolist() == [[255, 0, 255, 0]]
    assert margin(ROW, graded=True).tolist() == [[250, 51, 235, 10]]


def test_the_margin_is_a_winner_of_95_percent():
    """The bound of CLIP-ES, if two labels take part."""
    winner = np.array([[0.949, 0.951]], np.float32)
    refined = Refined(np.zeros((1, 2), np.int32), np.array([0, 1]), np.stack([winner, 1 - winner]))
    assert margin(refined, graded=False).tolist() == [[0, 255]]


def test_margin_of_a_single_label():
    only = Refined(np.array([[0, 0]], np.int32), np.array([0]), np.ones((1, 1, 2), np.float32))
    assert margin(only, graded=False).tolist() == [[255, 255]]
    nothing = Refined(np.array([[-1, -1]], np.int32), np.array([], int), np.ones((0, 1, 2), np.float32))
    assert margin(nothing, graded=True).tolist() == [[0, 0]]
    assert agreement(nothing.labels, nothing, graded=True).tolist() == [[0, 0]]


def stripes():
    """Three stripes, and a class that is sure in the first, in doubt in the second, absent in the third."""
    colors = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220]], np.uint8)
    image = np.tile(colors.repeat(16, axis=0), (40, 1, 1))
    scores = torch.tensor([0.9, 0.5, 0.0]).repeat_interleave(16).expand(1, 40, 48).contiguous()
    return image, scores


@pytest.mark.parametrize("threshold", [0.45, 0.55])
def test_two_threshold_doubts_what_a_small_change_would_turn(threshold):
    """The stripe of 0.5 is foreground under one, background under the other, and reliable under none."""
    image, scores = stripes()
    thresholds = torch.tensor([threshold])
    field = DenseCRF(image, CRF)
    refined = field.refine(coarse_mask(scores, thresholds, True).numpy())
    assert refined.labels[20, [8, 24, 40]].tolist() == [1, int(threshold < 0.5), 0]
    trust = two_threshold(field, scores, thresholds, refined, True, graded=False)
    assert trust[20, [8, 24, 40]].tolist() == [255, 0, 255]
    graded = two_threshold(field, scores, thresholds, refined, True, graded=True)
    assert graded.dtype == np.uint8
    assert graded[20, 24] < 100 < 200 < min(graded[20, 8], graded[20, 40])


def test_two_threshold_without_background():
    """Two classes side by side, one of them too weak for the raised threshold."""
    image, _ = stripes()
    scores = torch.zeros(2, 40, 48)
    scores[0, :, :16], scores[1, :, 32:] = 0.9, 0.5
    thresholds = torch.tensor([0.45, 0.45])
    field = DenseCRF(image, CRF)
    refined = field.refine(coarse_mask(scores, thresholds, False).numpy())
    trust = two_threshold(field, scores, thresholds, refined, False, graded=False)
    assert trust[20, [8, 40]].tolist() == [255, 0]

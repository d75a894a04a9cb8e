"""Confusion matrices and mean IoU, against values worked out by hand."""

import numpy as np
import pytest

from attn2mask.training.evaluation import class_iou, confusion_matrix, mean_iou


def test_by_hand():
    target = np.array([[0, 0, 1, 1], [2, 2, 255, 255]])
    prediction = np.array([[0, 1, 1, 1], [0, 2, 2, 0]])
    matrix = confusion_matrix(prediction, target, 4)
    assert matrix.sum() == 6
    iou = class_iou(matrix)
    assert iou[:3] == pytest.approx([1 / 3, 2 / 3, 1 / 2])
    assert np.isnan(iou[3])
    assert mean_iou(matrix) == pytest.approx((1 / 3 + 2 / 3 + 1 / 2) / 3)


def test_predictions_that_are_no_class_are_misses():
    matrix = confusion_matrix(np.array([255, 1]), np.array([1, 1]), 2)
    assert class_iou(matrix)[1] == pytest.approx(0.5)


def test_nothing_to_score():
    assert np.isnan(mean_iou(confusion_matrix(np.zeros(4, int), np.full(4, 255), 3)))

"""The figures of rules are what counting pixels by hand gives."""

import numpy as np
import pytest

from attn2mask.builders.label import Labels
from attn2mask.builders.rules import load_rules
from attn2mask.builders.table_reader import load_table
from attn2mask.training.rule_evaluation import measurement
from attn2mask.training.rule_evaluation.measurement import Case, figures, judge, make_case

TABLE = load_table("voc")


def judged(monkeypatch, mask, coarse, reliability, target, classes, absent=20, named=None):
    """What `judge` counts if the rules give these labels."""
    labels = Labels(
        mask=np.array(mask, np.int32),
        coarse=np.array(coarse, np.int32),
        reliability=np.array(reliability, np.uint8),
    )
    monkeypatch.setattr(measurement, "label_image", lambda *given: labels)
    target = np.array(target, np.int32)
    case = Case(0, np.zeros((*target.shape, 3), np.uint8), target, classes, absent)
    scores = {"paper": {"level": np.zeros((named or len(classes), 1, 1), np.uint8)}}
    return judge(case, scores, {"paper": load_rules("paper")}, TABLE)["paper"]


def test_the_figures_are_those_of_counted_pixels(monkeypatch):
    # Local labels: 1 is the class of id 8, 2 that of id 3, 3 an absent one.
    one = judged(
        monkeypatch,
        mask=[[0, 1, 1, 3, 0]],
        coarse=[[0, 1, 2, 3, 0]],
        reliability=[[255, 255, 128, 127, 255]],
        target=[[0, 1, 2, 2, -1]],
        classes=(8, 3),
        named=3,
    )
    found = figures([one], TABLE)
    # Background 1 of 1; id 8 1 of 2; id 3 none of 2; the absent id 20 none of 1.
    assert found["refined"] == pytest.approx((1 + 1 / 2 + 0 + 0) / 4)
    assert found["coarse"] == pytest.approx((1 + 1 + 1 / 2 + 0) / 4)
    assert (found["classes_lost"], found["classes"]) == (1, 2)
    assert found["reliable"] == pytest.approx(3 / 4)
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["absent"] == pytest.approx(1 / 5)
    assert found["small_refined"] is None
    assert found["levels"]["level"]["refined"] == found["refined"]


def test_images_add_up_and_small_things_count_by_themselves(monkeypatch):
    target = np.zeros((1, 100), int)
    target[0, :2] = 1
    half = judged(monkeypatch, (target > 0) & (np.arange(100) < 1), target, target * 0, target, (4,))
    whole = judged(monkeypatch, target, target, target * 0, target, (4,))
    found = figures([half, whole], TABLE)
    assert found["small_refined"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["refined"] == pytest.approx((196 / 197 + 3 / 4) / 2)  # background, id 4
    assert found["reliable"] == 0
    assert found["precision"] is None
    assert found["absent"] is None


def test_scores_are_means_of_the_levels_and_counts_their_sums(monkeypatch):
    wrong = judged(monkeypatch, [[0, 0]], [[0, 0]], [[255, 0]], [[0, 1]], (4,))["level"]
    right = judged(monkeypatch, [[0, 1]], [[0, 1]], [[255, 255]], [[0, 1]], (4,))["level"]
    found = figures([{"a": wrong, "b": right}], TABLE)
    assert found["refined"] == pytest.approx((1 / 4 + 1) / 2)
    assert found["reliable"] == pytest.approx((1 / 2 + 1) / 2)
    assert (found["classes_lost"], found["classes"]) == (1, 2)


def test_a_case_is_the_square_in_the_middle_with_the_classes_that_it_shows():
    image = np.zeros((64, 128, 3), np.uint8)
    ids = np.zeros((64, 128), np.int32)
    ids[:, :40] = 7  # 8 of its columns lie in the square
    ids[10:20, 60:70] = 3
    ids[0, 50] = 9  # too small
    ids[30, 50:60] = 255
    case = make_case(5, image, ids, TABLE, 64, seed=0)
    assert case.image.shape == (64, 64, 3)
    assert case.classes == (3, 7)
    assert (case.target[:, :8] == 2).all()
    assert (case.target[10:20, 28:38] == 1).all()
    assert case.target[0, 18] == -1
    assert (case.target[30, 18:28] == -1).all()
    assert np.count_nonzero(case.target == 0) == 64 * 64 - 64 * 8 - 100 - 11
    assert case.absent not in (0, 3, 7, 9)
    assert make_case(5, image, ids, TABLE, 64, seed=0).absent == case.absent
    assert len({make_case(k, image, ids, TABLE, 64, seed=0).absent for k in range(9)}) > 1
    assert make_case(0, image, ids * 0, TABLE, 64, seed=0) is None


def test_without_a_background_there_is_no_label_zero():
    table = load_table("cityscapes")
    ids = np.full((32, 32), 255, np.int32)
    ids[:10] = 0
    ids[20:] = 13
    case = make_case(0, np.zeros((32, 32, 3), np.uint8), ids, table, 32, seed=0)
    assert case.classes == (0, 13)
    assert sorted(np.unique(case.target)) == [-1, 1, 2]
    scores = {"paper": {"level": np.zeros((2, 4, 4), np.uint8)}}
    scores["paper"]["level"][0, :1] = scores["paper"]["level"][1, 3:] = 255
    found = figures([judge(case, scores, {"paper": load_rules("paper")}, table)["paper"]], table)
    assert found["classes_lost"] == 0
    assert 0.3 < found["coarse"] <= 1

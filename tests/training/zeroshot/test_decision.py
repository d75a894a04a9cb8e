"""From values to ids, against the rules written out for single pixels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attn2mask.builders.table_reader import parse_table
from attn2mask.training.zeroshot import decision as module
from attn2mask.training.zeroshot.decision import Decision
from attn2mask.training.zeroshot.pamr import refine
from attn2mask.training.zeroshot.protocol import Protocol

FARM = {"name": "farm", "classes": [{"name": "cow"}, {"name": "horse"}]}
TABLE = parse_table(FARM | {"background": True}, "farm")
NO_BACKGROUND = parse_table(FARM | {"background": False}, "farm")


def protocol(**values) -> Protocol:
    """Two names of "cow", one of "horse", and the rule "none" unless `values` say otherwise."""
    return Protocol(
        "common", **({"names": (("cow", "calf"), ("horse",)), "background": "none", "size": 8} | values)
    )


def row(*queries: list[float]) -> Tensor:
    """Values (1, Q, 1, w): a list for each query."""
    return torch.tensor(queries)[None, :, None]


def ids(decision: Decision, values: Tensor, size: tuple[int, int], allowed: Tensor | None = None) -> list:
    """The ids of an image of one color."""
    found = decision(values, np.zeros((*size, 3), np.uint8), (allowed,))[0]
    assert found.dtype == torch.int32
    assert found.shape == size
    return found.tolist()


def test_probabilities_are_the_largest_after_the_softmax_at_the_size_of_the_image():
    values = torch.randn(1, 5, 3, 2, generator=torch.Generator().manual_seed(0))
    words = Decision(TABLE, protocol(background="words", words=("sky", "grass")), scale=3.0)
    found = words.probabilities(values, np.zeros((8, 7, 3), np.uint8))
    large = F.interpolate(values, (8, 7), mode="bilinear", align_corners=False)[0]
    for y, x in np.ndindex(8, 7):
        exponentials = [float(np.exp(3 * value)) for value in large[:, y, x].tolist()]
        cow, calf, horse, sky, grass = (value / sum(exponentials) for value in exponentials)
        wanted = [max(sky, grass), max(cow, calf), horse]
        np.testing.assert_allclose(found[:, y, x], wanted, atol=1e-6)


def test_synonyms_share_the_probability_of_their_class():
    # e^1.2 / (e^1.2 + 2 e) = 0.38, but without the second name of "cow" it would be 0.55.
    values = row([1.0], [1.0], [1.2])
    for threshold, expected in ((0.37, 2), (0.39, 0)):
        decision = Decision(TABLE, protocol(background="threshold", threshold=threshold))
        assert ids(decision, values, (1, 1)) == [[expected]]


def test_the_threshold_holds_at_the_size_of_the_image():
    # At four pixels, the values of "cow" are 0.9, 0.7, 0.3 and 0.1.
    decision = Decision(TABLE, protocol(background="threshold", threshold=0.75), activation="none")
    values = row([0.9, 0.1], [0.0, 0.0], [0.0, 0.0])
    assert ids(decision, values, (1, 4)) == [[1, 0, 0, 0]]
    small = ids(decision, values, (1, 2))
    assert np.repeat(small, 2, axis=1).tolist() == [[1, 1, 0, 0]]


def test_a_word_and_a_threshold_both_make_background():
    values = row([0.5, 0.2, 0.6], [0.0, 0.0, 0.0], [0.1, 0.1, 0.1], [0.4, 0.1, 0.7])
    rule = protocol(background="words", words=("sky",), threshold=0.3)
    assert ids(Decision(TABLE, rule, activation="none"), values, (1, 3)) == [[1, 0, 0]]


def test_without_a_rule_no_pixel_is_background():
    values = row([-5.0, 1.0], [-6.0, 0.0], [-5.5, 1.5])
    assert ids(Decision(TABLE, protocol()), values, (1, 2)) == [[1, 2]]
    assert ids(Decision(NO_BACKGROUND, protocol()), values, (1, 2)) == [[0, 1]]


def test_independent_probabilities():
    # sigmoid(0.2) = 0.55. A softmax over equal values would be below the threshold.
    decision = Decision(TABLE, protocol(background="threshold", threshold=0.5), activation="sigmoid")
    values = row([0.2, -0.2], [0.2, -0.2], [0.1, -0.3])
    assert ids(decision, values, (1, 2)) == [[1, 0]]
    found = decision.probabilities(values, np.zeros((1, 2, 3), np.uint8))
    np.testing.assert_allclose(found[1, 0], 1 / (1 + np.exp([-0.2, 0.2])), atol=1e-6)


def test_only_allowed_ids_are_predicted():
    values = row([3.0, 0.0], [0.0, 0.0], [2.0, 1.0], [1.0, 5.0])
    decision = Decision(TABLE, protocol(background="words", words=("sky",)))
    assert ids(decision, values, (1, 2)) == [[1, 0]]
    assert ids(decision, values, (1, 2), torch.tensor([0, 2])) == [[2, 0]]
    assert ids(decision, values, (1, 2), torch.tensor([2])) == [[2, 2]]


def test_values_of_ids_are_taken_as_they_are():
    values = row([0.2, 0.9], [0.1, 0.3], [0.7, 0.1])  # of the background, "cow" and "horse"
    rule = protocol(background="threshold", threshold=0.8)  # it is already in the values
    decision = Decision(TABLE, rule, activation="none", channels=True)
    assert ids(decision, values, (1, 2)) == [[2, 0]]


def test_classes_of_a_small_part_of_the_foreground_are_left_out():
    # Of ten pixels with a class, one is "horse": that is not more than a tenth.
    horse = [0.0] * 9 + [0.8, 0.0, 0.0]
    values = row([0.6] * 10 + [0.0, 0.0], [0.0] * 12, horse, [0.3] * 12)
    rule = {"background": "words", "words": ("sky",)}
    for area, last in ((0.1, 1), (0.09, 2)):
        decision = Decision(TABLE, protocol(area=area, **rule), activation="none")
        assert ids(decision, values, (1, 12)) == [[1] * 9 + [last, 0, 0]]


def test_the_areas_are_those_before_the_threshold():
    # Nine pixels of "horse" are below the threshold, but they count: "cow" has a tenth of the foreground.
    values = row([0.9] + [0.0] * 9, [0.0] * 10, [0.0] + [0.3] * 9, [0.0] * 10)
    rule = protocol(background="words", words=("sky",), threshold=0.5, area=0.1)
    assert ids(Decision(TABLE, rule, activation="none"), values, (1, 10)) == [[0] * 10]


def test_stripes_give_the_ids_of_the_whole(monkeypatch):
    values = torch.randn(1, 5, 4, 3, generator=torch.Generator().manual_seed(1))
    rule = protocol(background="words", words=("sky", "grass"), threshold=0.25)
    decision, size = Decision(TABLE, rule, scale=2.0), (23, 17)
    whole = ids(decision, values, size)
    large = F.interpolate(values, size, mode="bilinear", align_corners=False)
    assert whole == ids(decision, large, size)
    assert {id_ for line in whole for id_ in line} == {0, 1, 2}
    for rows in (1, 5):
        monkeypatch.setattr(module, "_AT_ONCE", rows * 5 * 17)
        assert len(list(decision._stripes(values, size))) == -(-23 // rows)
        assert ids(decision, values, size) == whole


@pytest.mark.parametrize("area", [0.0, 0.1])
def test_values_are_refined_at_the_size_of_the_image(area):
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    values = torch.randn(1, 4, 3, 4, generator=torch.Generator().manual_seed(2))
    rule = {"background": "words", "words": ("sky",), "area": area}
    found = Decision(TABLE, protocol(refinement="pamr", **rule), scale=9.0)(values, image)[0]
    large = F.interpolate(values, (20, 24), mode="bilinear", align_corners=False)
    plain = Decision(TABLE, protocol(**rule), scale=9.0)
    assert torch.equal(found, plain(refine(large, image), image)[0])
    assert not torch.equal(found, plain(values, image)[0])

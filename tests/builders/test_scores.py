from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from attn2mask.builders.rules import load_rules
from attn2mask.builders.scores import class_scores, dequantize, quantize

DEFAULT = load_rules("embedded")  # min-max


def maps_of(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {size: torch.rand(size, generator=generator) * 0.3 for size in sizes}


@pytest.mark.parametrize(
    ("recorded", "chosen"),
    [
        ([(64, 64), (32, 32), (16, 16), (8, 8)], [(32, 32), (16, 16)]),
        ([(96, 64), (48, 32), (24, 16), (12, 8)], [(48, 32), (24, 16)]),
        ([(8, 8), (4, 4)], [(8, 8)]),
        ([(128, 128), (64, 64)], [(64, 64)]),
        ([(52, 52), (12, 12)], [(52, 52)]),
    ],
)
def test_chosen_resolutions(recorded, chosen):
    """Maps outside the range make no difference; where none lies in it, the nearest is used."""
    maps, rules = maps_of(*recorded), replace(DEFAULT, map_side_min=16, map_side_max=48)
    scores, peaks = class_scores([maps], rules)
    expected, expected_peaks = class_scores([{size: maps[size] for size in chosen}], rules)
    assert scores.shape == (1, *max(chosen))
    assert torch.equal(scores, expected)
    assert torch.equal(peaks, expected_peaks)


def test_resolutions_have_equal_weight():
    small, large = torch.zeros(16, 16), torch.zeros(32, 32)
    small[:8] = 0.4
    large[:, :16] = 0.2
    scores, peaks = class_scores([{(16, 16): small, (32, 32): large}], load_rules("paper"))
    assert peaks.item() == pytest.approx(0.3)
    corners = scores[0, [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, torch.tensor([0.3, 0.2, 0.1, 0.0]) / 0.3)


def test_normalizing():
    """Each class by itself; the maximum leaves the floor where it is, min-max does not."""
    maps = [{(16, 16): torch.linspace(0.1, 0.2, 256).view(16, 16)}, maps_of((16, 16))]
    scores, peaks = class_scores(maps, load_rules("paper"))
    assert scores[0, 0, 0].item() == pytest.approx(0.5)
    scores, again = class_scores(maps, DEFAULT)
    assert torch.equal(peaks, again)
    assert peaks[0].item() == pytest.approx(0.2)
    assert scores.amin((1, 2)).tolist() == [0, 0]
    assert scores.amax((1, 2)).tolist() == [1, 1]


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_maps_that_say_nothing(preset):
    """Not a number, empty, flat and nearly flat maps score 0 and leave the others alone."""
    good = maps_of((16, 16), (32, 32))
    broken = {size: values.clone() for size, values in good.items()}
    broken[32, 32][3, 4] = torch.nan
    empty = {size: torch.zeros(size) for size in good}
    flat = {size: torch.full(size, 0.02) for size in good}
    noisy = {size: 0.02 + 0.01 * values for size, values in good.items()}
    scores, peaks = class_scores([broken, empty, flat, noisy, good], load_rules(preset))
    assert peaks[0].isnan()
    assert peaks[1] == 0
    assert peaks[2].item() == pytest.approx(0.02)
    assert not scores[:4].any()
    assert torch.equal(scores[4:], class_scores([good], load_rules(preset))[0])


@given(arrays(np.float32, (2, 5, 3), elements=st.floats(0, 1, width=32)))
def test_quantizing(scores):
    levels = quantize(torch.from_numpy(scores))
    assert levels.dtype == np.uint8
    back = dequantize(levels)
    assert back.dtype == torch.float32
    assert np.abs(back.numpy() - scores).max() <= 1 / 255
    assert np.array_equal(quantize(back), levels)

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from attn2mask.builders.rules import load_rules
from attn2mask.builders.scores import (
    chosen_sizes,
    class_scores,
    dequantize,
    pack,
    pack_maps,
    pack_self_attention,
    propagate,
    propagation_size,
    quantize,
    quantized_scores,
    unpack,
    unpack_maps,
    unpack_self_attention,
    word_odds,
)

DEFAULT = load_rules("embedded")  # min-max


def maps_of(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {size: torch.rand(size, generator=generator) * 0.3 for size in sizes}


@pytest.mark.parametrize(
    ("sides", "latent_side", "chosen"),
    [
        ([64, 32, 16, 8], 64, [32, 16]),  # Stable Diffusion 1.5 at 512 pixels
        ([96, 48, 24, 12], 96, [48, 24]),  # at 768 pixels
        ([64, 32], 128, [64, 32]),  # Stable Diffusion XL at 1,024 pixels
        ([91, 46, 23, 12], 91, [46, 23]),  # a UNet rounds up when it halves an odd side
        ([16, 8, 4], 16, [8, 4]),  # the embedded painter
        ([8], 8, [8]),  # none lies in the range: the nearest
        ([16, 2], 16, [2]),
        ([12, 6], 60, [12]),
    ],
)
def test_map_sizes_are_fractions_of_the_latents(sides, latent_side, chosen):
    """`paper` takes a quarter and a half of the latents' shorter side. Other maps make no difference."""
    maps, rules = maps_of(*((side, 2 * side) for side in sides)), load_rules("paper")
    assert [height for height, _ in chosen_sizes(list(maps), rules, latent_side)] == chosen
    scores, peaks = class_scores([maps], rules, latent_side)
    expected, expected_peaks = class_scores(
        [{(h, 2 * h): maps[h, 2 * h] for h in chosen}], rules, latent_side
    )
    assert scores.shape == (1, max(chosen), 2 * max(chosen))
    assert torch.equal(scores, expected)
    assert torch.equal(peaks, expected_peaks)


def test_the_preset_of_the_embedded_painter_takes_its_finest_maps_and_those_of_half_their_side():
    rules = load_rules("embedded")
    assert chosen_sizes([(16, 16), (8, 8), (4, 4)], rules, 16) == [(16, 16), (8, 8)]
    assert chosen_sizes([(16, 32), (8, 16), (4, 8)], rules, 16) == [(16, 32), (8, 16)]


def test_resolutions_have_equal_weight():
    small, large = torch.zeros(16, 16), torch.zeros(32, 32)
    small[:8] = 0.4
    large[:, :16] = 0.2
    scores, peaks = class_scores([{(16, 16): small, (32, 32): large}], load_rules("paper"), 64)
    assert peaks.item() == pytest.approx(0.3)
    corners = scores[0, [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, torch.tensor([0.3, 0.2, 0.1, 0.0]) / 0.3)


def test_normalizing():
    """Each class by itself; the maximum leaves the floor where it is, min-max does not."""
    maps = [{(16, 16): torch.linspace(0.1, 0.2, 256).view(16, 16)}, maps_of((16, 16))]
    scores, peaks = class_scores(maps, load_rules("paper"), 32)
    assert scores[0, 0, 0].item() == pytest.approx(0.5)
    scores, again = class_scores(maps, DEFAULT, 32)
    assert torch.equal(peaks, again)
    assert peaks[0].item() == pytest.approx(0.2)
    assert scores.amin((1, 2)).tolist() == [0, 0]
    assert scores.amax((1, 2)).tolist() == [1, 1]


@pytest.mark.parametrize("preset", ["paper", "embedded", "photo"])
def test_maps_that_say_nothing(preset):
    """Not a number, empty, flat and nearly flat maps score 0 and leave the others alone."""
    good = maps_of((16, 16), (32, 32))
    broken = {size: values.clone() for size, values in good.items()}
    broken[32, 32][3, 4] = torch.nan
    empty = {size: torch.zeros(size) for size in good}
    flat = {size: torch.full(size, 0.02) for size in good}
    noisy = {size: 0.02 + 0.01 * values for size, values in good.items()}
    scores, peaks = class_scores([broken, empty, flat, noisy, good], load_rules(preset), 64)
    assert peaks[0].isnan()
    assert peaks[1] == 0
    assert peaks[2].item() == pytest.approx(0.02)
    assert not scores[:4].any()
    assert torch.equal(scores[4:], class_scores([good], load_rules(preset), 64)[0])


def test_words_compete_at_each_pixel():
    attention = torch.tensor([[[0.2, 0.05, 0.0]], [[0.1, 0.05, 0.1]]])
    odds = word_odds(attention, 0.5)  # the largest attention is 0.2, so that the scale is 0.1
    expected = torch.tensor([[[1.0, 1.0, math.exp(-1)]], [[math.exp(-1), 1.0, 1.0]]])
    torch.testing.assert_close(odds, expected)
    probabilities = torch.softmax(attention / 0.1, dim=0)
    torch.testing.assert_close(odds, probabilities / probabilities.amax(0))
    torch.testing.assert_close(word_odds(3 * attention, 0.5), odds)
    assert torch.equal(word_odds(torch.zeros(2, 1, 3), 0.5), torch.ones(2, 1, 3))


def test_competition_lowers_scores_where_another_word_attends_more():
    rules = replace(load_rules("photo"), word_temperature=0.3)
    thing = torch.full((64, 64), 0.02)
    thing[10:30, 10:30] = 0.2
    absent = 0.02 + 0.3 * (thing - 0.02)  # a word for nothing in the image attends weakly to the thing
    maps = [{(64, 64): values} for values in (thing, absent)]
    without, peaks = class_scores(maps, replace(rules, word_temperature=0.0), 64)
    scores, again = class_scores(maps, rules, 64)
    assert torch.equal(peaks, again)
    assert torch.equal(scores[0], without[0])
    assert (without[1, 10:30, 10:30] == 1).all()
    assert scores[1].max() < 0.2
    assert torch.equal(class_scores(maps[:1], rules, 64)[0], without[:1])


# Background words


BEHIND = replace(load_rules("paper"), background_words=True)  # divided by the maximum


def test_background_words_lower_scores_where_one_of_them_attends_more_than_the_class():
    """The largest attention is 0.4, and that of the stronger background word is 0.0, 0.3, 0.2, 0.0."""
    dog, cat = torch.tensor([[0.4, 0.1, 0.2, 0.0]]), torch.tensor([[0.0, 0.1, 0.0, 0.2]])
    grass, sky = torch.tensor([[0.0, 0.3, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.2, 0.0]])
    maps, background = ([{(1, 4): one} for one in pair] for pair in ((dog, cat), (grass, sky)))
    scores, peaks = class_scores(maps, BEHIND, 1, None, background)
    odds = torch.tensor([[[1.0, math.exp(-0.5), 1.0, 1.0]], [[1.0, math.exp(-0.5), 1.0, 1.0]]])
    plain = torch.tensor([[[1.0, 0.25, 0.5, 0.0]], [[0.0, 0.5, 0.0, 1.0]]])
    torch.testing.assert_close(scores, plain * odds, atol=1e-3, rtol=0)
    torch.testing.assert_close(peaks, torch.tensor([0.4, 0.2]))
    # A background word that attends more than all classes sets the scale of the temperature.
    grass[0, 0] = 0.8
    (only,), _ = class_scores(maps[:1], BEHIND, 1, None, background)
    odds = torch.tensor([[math.exp(-0.5), math.exp(-0.25), 1.0, 1.0]])
    torch.testing.assert_close(only, plain[0] * odds, atol=1e-3, rtol=0)


def test_background_words_change_nothing_where_they_are_off_or_there_are_none():
    maps, behind = ([maps_of((4, 4), (8, 8), seed=seed)] for seed in range(2))
    for preset in ("embedded", "photo", "mosaicfusion-like"):
        rules = load_rules(preset)
        scores, peaks = class_scores(maps, rules, 16)
        competing = replace(rules, background_words=True)
        for given_rules, background in ((rules, behind), (competing, ())):
            again, same_peaks = class_scores(maps, given_rules, 16, None, background)
            assert torch.equal(scores, again)
            assert torch.equal(peaks, same_peaks)
        assert not torch.equal(scores, class_scores(maps, competing, 16, None, behind)[0])


@pytest.mark.parametrize(
    "values", [torch.full((8, 8), 0.9), torch.full((8, 8), torch.nan), torch.zeros(8, 8)]
)
def test_background_words_that_are_found_nowhere_do_not_compete(values):
    maps = [maps_of((8, 8))]
    expected, peaks = class_scores(maps, DEFAULT, 8)
    scores, again = class_scores(maps, replace(DEFAULT, background_words=True), 8, None, [{(8, 8): values}])
    assert torch.equal(scores, expected)
    assert torch.equal(peaks, again)


def test_maps_of_background_words_are_propagated_and_do_not_compete_with_each_other():
    """The attention of the background word moves to the mirrored pixel, away from that of the class."""
    thing = [{(1, 2): torch.tensor([[0.4, 0.1]])}]
    behind = [{(1, 2): torch.tensor([[0.0, 0.4]])}]
    swap = {(1, 2): torch.tensor([[0.0, 1.0], [1.0, 0.0]])}
    rules = replace(BEHIND, propagation_power=1, word_temperature=1.0)
    scores, _ = class_scores(thing, rules, 2, swap, behind)
    expected = torch.tensor([[[0.25 * 1.0, 1.0]]])  # of the class: 0.1, 0.4; of the background: 0.4, 0.0
    expected[0, 0, 0] *= math.exp(-0.3 / 0.4)
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=0)
    assert torch.equal(scores, class_scores(thing, rules, 2, swap, behind * 2)[0])


@given(arrays(np.float32, (2, 5, 3), elements=st.floats(0, 1, width=32)))
def test_quantizing(scores):
    levels = quantize(torch.from_numpy(scores))
    assert levels.dtype == np.uint8
    back = dequantize(levels)
    assert back.dtype == torch.float32
    assert np.abs(back.numpy() - scores).max() <= 1 / 255
    assert np.array_equal(quantize(back), levels)


def test_sizes_that_are_normalized_alone_have_equal_weight():
    """Hand-computed: the fine map has a tenth of the attention of the coarse one, and counts as much."""
    coarse, fine = torch.zeros(2, 2), torch.zeros(4, 4)
    coarse[0], fine[:, 0] = 0.4, 0.04
    maps, rules = [{(2, 2): coarse, (4, 4): fine}], load_rules("mosaicfusion-like")
    scores, peaks = class_scores(maps, rules, 4)
    corners = scores[0, [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, torch.tensor([1.0, 0.5, 0.5, 0.0]), atol=1e-3, rtol=0)
    assert peaks.item() == pytest.approx((0.4 + 0.04) / 2, rel=1e-3)
    empty = {size: torch.zeros(size) for size in maps[0]}
    scores, peaks = class_scores([*maps, empty], rules, 4)
    assert not scores[1].any()
    assert peaks[1] == 0


# Self-attention


def test_propagation_takes_means_over_the_pixels_that_are_attended_to():
    """Two pixels that attend to each other, and a third one that attends to itself and to the first."""
    attention = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0], [0.5, 0.0, 0.5]])
    maps = torch.tensor([[[0.8, 0.4, 0.0]], [[0.0, 0.0, 1.0]]])
    once = torch.tensor([[[0.6, 0.5, 0.4]], [[0.0, 0.0, 0.5]]])
    torch.testing.assert_close(propagate(maps, attention, 1), once)
    torch.testing.assert_close(propagate(maps, attention, 2), propagate(once, attention, 1))
    power = torch.linalg.matrix_power(attention, 4)
    torch.testing.assert_close(propagate(maps, attention, 4)[0, 0], power @ maps[0, 0])
    assert torch.equal(propagate(maps, attention, 0), maps)


def test_scores_are_those_of_the_propagated_map():
    """Pixels are (row, column): the left column attends to the top left pixel, the right one to itself."""
    attention = torch.zeros(4, 4)
    attention[0, 0] = attention[2, 0] = attention[1, 1] = attention[3, 3] = 1.0
    maps = [{(2, 2): torch.tensor([[0.4, 0.0], [0.0, 0.1]])}]
    rules = replace(load_rules("paper"), propagation_power=1)
    scores, peaks = class_scores(maps, rules, 4, {(2, 2): attention})
    torch.testing.assert_close(scores, torch.tensor([[[1.0, 0.0], [1.0, 0.25]]]), atol=1e-3, rtol=0)
    assert peaks.item() == pytest.approx(0.4)
    minmax = replace(rules, normalization="minmax", propagation_power=2)
    again, peaks = class_scores(maps, minmax, 4, {(2, 2): attention})
    torch.testing.assert_close(again, scores, atol=1e-3, rtol=0)
    assert peaks.item() == pytest.approx(0.4)


def test_maps_take_the_size_of_the_self_attention():
    rules = load_rules("dataset-diffusion-like")
    maps = [maps_of((4, 8), (8, 16), (16, 32), seed=k) for k in range(2)]
    even = torch.eye(128)
    scores, _ = class_scores(maps, rules, 16, {(8, 16): even, (4, 8): torch.ones(32, 32) / 32})
    assert scores.shape == (2, 8, 16)
    only = [{(4, 8): of_class[4, 8]} for of_class in maps]  # a quarter of the latents' side
    assert torch.equal(scores, class_scores(only, rules, 16, {(8, 16): even})[0])


@pytest.mark.parametrize(
    ("sizes", "latent_side", "chosen"),
    [
        ([(64, 64), (32, 32), (16, 16)], 64, (32, 32)),
        ([(16, 16), (8, 8), (4, 4)], 16, (8, 8)),
        ([(8, 16), (4, 8)], 16, (8, 16)),
        ([(64, 64), (32, 32)], 128, (64, 64)),
        ([(12, 12), (4, 4)], 16, (12, 12)),  # of two that are equally near, the larger
    ],
)
def test_the_size_of_the_self_attention_is_a_fraction_of_the_latents(sizes, latent_side, chosen):
    fraction = load_rules("dataset-diffusion-like").propagation_fraction
    assert propagation_size(sizes, fraction, latent_side) == chosen


def test_self_attention_that_is_missing_or_no_number():
    rules, maps = load_rules("dataset-diffusion-like"), [maps_of((4, 4), (8, 8))]
    for nothing in (None, {}):
        with pytest.raises(ValueError, match="self-attention, which was not recorded"):
            class_scores(maps, rules, 16, nothing)
    scores, peaks = class_scores(maps, rules, 16, {(8, 8): torch.full((64, 64), torch.nan)})
    assert not scores.any()
    assert peaks.isfinite().all()


# Maps in 16 bits


@given(
    arrays(np.float32, (4, 6), elements=st.floats(0, 1, width=32)),
    st.sampled_from([1.0, 1e-3, 1e-8, 1e-30]),
)
def test_packed_maps_keep_three_digits(values, scale):
    """Also of probabilities that float16 alone would round to 0."""
    values = torch.from_numpy(values) * scale
    packed = pack(values)
    back = unpack(packed)
    assert packed["values"].dtype == np.float16
    assert (back.dtype, back.max()) == (torch.float32, values.max())
    peak = packed["peak"]
    error, least = (back - values).abs(), torch.tensor(3.1e-8 * peak)
    assert (error <= torch.maximum(values * 0.0005, least)).all()
    again = pack(back)
    assert again["peak"] == peak
    assert np.array_equal(again["values"], packed["values"])


def test_maps_of_one_number_and_of_none_stay_what_they_are():
    assert not unpack(pack(torch.zeros(2, 2))).any()
    broken = torch.tensor([[0.1, torch.nan]])
    assert unpack(pack(broken)).isnan().any()
    assert not unpack(pack(torch.tensor([[0.1, torch.inf]]))).isfinite().all()


def test_packed_maps_give_the_same_scores_bit_for_bit():
    maps = [maps_of((8, 4), (4, 2), (16, 8), seed=k) for k in range(3)]
    maps[1] = {size: values * 1e-7 for size, values in maps[1].items()}
    maps[2][16, 8][0, 0] = torch.nan
    spread = {(8, 4): torch.rand(32, 32, generator=torch.Generator().manual_seed(9)).softmax(dim=1)}
    stored = [unpack_maps(pack_maps(of_class)) for of_class in maps]
    assert [list(of_class) for of_class in stored] == [[(16, 8), (8, 4), (4, 2)]] * 3
    restored = unpack_self_attention(pack_self_attention(spread))
    for preset in ("paper", "photo", "mosaicfusion-like", "dataset-diffusion-like"):
        rules = load_rules(preset)
        scores, peaks = class_scores(maps, rules, 8, spread)
        again, same_peaks = class_scores(stored, rules, 8, restored)
        assert torch.equal(scores, again)
        assert torch.equal(peaks.nan_to_num(-1), same_peaks.nan_to_num(-1))
        quantized, listed = quantized_scores(stored, rules, 8, restored)
        assert np.array_equal(quantized, quantize(scores))
        assert listed[:2] == tuple(peaks[:2].tolist())


def test_an_image_without_classes_has_no_scores():
    scores, peaks = quantized_scores([], DEFAULT, 16)
    assert (scores.shape, scores.dtype, peaks) == ((0, 1, 1), np.uint8, ())

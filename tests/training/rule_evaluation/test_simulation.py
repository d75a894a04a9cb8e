"""Simulated attention has the strength, the blur and the faults that its level describes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attn2mask.training.rule_evaluation.simulation import FLOOR, LEVELS, PEAK, Level, simulate

CLEAN = Level(noise=0.0)
SIDES = [64, 32, 16, 8]


def squares() -> np.ndarray:
    """Masks (2, 512, 512) of two squares that do not touch: 128 and 64 pixels wide."""
    masks = np.zeros((2, 512, 512), bool)
    masks[0, 64:192, 64:192] = True
    masks[1, 320:384, 320:384] = True
    return masks


def maps_at(level: Level, seed: int = 0, masks: np.ndarray | None = None):
    return simulate(squares() if masks is None else masks, level, np.random.default_rng(seed))


def test_a_map_is_the_floor_and_the_blurred_mask_at_four_sizes():
    maps = maps_at(CLEAN)
    assert [list(of_class) for of_class in maps] == [[(side, side) for side in SIDES]] * 2
    finest = maps[0][64, 64]
    assert finest.dtype == torch.float32
    assert finest[15, 15].item() == pytest.approx(FLOOR + PEAK)  # inside
    assert finest[40, 40].item() == pytest.approx(FLOOR)  # far away
    # Cell 24 lies beyond the edge. Of five taps with deviation 1, two reach into the mask.
    taps = np.exp(-(np.arange(-2, 3) ** 2) / 2)
    assert finest[15, 24].item() == pytest.approx(FLOOR + PEAK * taps[:2].sum() / taps.sum(), abs=1e-6)
    coarsest = maps_at(replace(CLEAN, blur=0.1))[0][8, 8]  # the larger square is two cells wide
    assert coarsest.sum().item() == pytest.approx(64 * FLOOR + PEAK * 4, abs=1e-4)


def test_a_mask_goes_on_beyond_the_edges():
    everywhere = np.ones((1, 64, 64), bool)
    for values in maps_at(CLEAN, masks=everywhere)[0].values():
        torch.testing.assert_close(values, torch.full_like(values, FLOOR + PEAK))


def test_noise_has_its_deviation_and_comes_from_the_seed():
    nothing = np.zeros((1, 512, 512), bool)
    level = replace(CLEAN, noise=0.005)
    noisy = maps_at(level, masks=nothing)[0]
    assert noisy[64, 64].std().item() == pytest.approx(0.005, rel=0.05)
    assert noisy[64, 64].mean().item() == pytest.approx(FLOOR, abs=0.0005)
    by_size = maps_at(replace(level, noise_by_size=True), masks=nothing)[0]
    for side in SIDES[:3]:
        assert by_size[side, side].std().item() == pytest.approx(0.005 * side / 64, rel=0.15)
    again, other = maps_at(level, masks=nothing)[0], maps_at(level, 1, nothing)[0]
    assert torch.equal(noisy[64, 64], again[64, 64])
    assert not torch.equal(noisy[64, 64], other[64, 64])
    assert min(values.min() for values in maps_at(replace(CLEAN, noise=1.0))[0].values()) > 0


def test_attention_leaks_from_another_class_and_from_the_surroundings():
    at = maps_at(replace(CLEAN, from_classes=0.4))[0][64, 64]
    assert at[44, 44].item() == pytest.approx(FLOOR + 0.4 * PEAK)  # the other square
    assert at[15, 15].item() == pytest.approx(FLOOR + PEAK)
    alone = maps_at(replace(CLEAN, from_classes=0.4), masks=squares()[:1])[0][64, 64]
    torch.testing.assert_close(alone, maps_at(CLEAN)[0][64, 64])
    near = maps_at(replace(CLEAN, blur=0.1, from_surroundings=0.4))[0][64, 64]
    assert near[15, 27].item() == pytest.approx(FLOOR + 0.4 * PEAK)  # within 1/16 of the side
    assert near[15, 28].item() == pytest.approx(FLOOR)
    assert near[15, 15].item() == pytest.approx(FLOOR + PEAK)
    assert near[15, 40].item() == pytest.approx(FLOOR)


def test_peaks_differ_and_a_part_is_stronger():
    peaks = [
        (of_class[64, 64].max().item() - FLOOR) / PEAK for of_class in maps_at(replace(CLEAN, peaks=True))
    ]
    assert all(0.3 <= peak <= 1 for peak in peaks)
    assert peaks[0] != pytest.approx(peaks[1], abs=0.01)
    inside = (maps_at(replace(CLEAN, blur=0.1, parts=True))[0][64, 64][8:24, 8:24] - FLOOR) / PEAK
    assert (inside > 0.99).float().mean().item() == pytest.approx(1 / 3, abs=0.07)
    assert inside.min().item() == pytest.approx(0.4, abs=0.01)


def test_an_absent_class_is_a_weak_copy_of_the_largest():
    maps = maps_at(replace(CLEAN, absent=0.3))
    assert len(maps) == 3
    torch.testing.assert_close(maps[2][64, 64] - FLOOR, 0.3 * (maps[0][64, 64] - FLOOR))


def test_the_levels_have_those_of_the_first_measurement_and_each_fault():
    assert LEVELS["blur 1, noise 0.006"] == Level(blur=1.0, noise=0.006)
    assert LEVELS["blur 1.6, noise 0.025"] == Level(blur=1.6, noise=0.025)
    levels = LEVELS.values()
    assert len({level.blur for level in levels} - {1.0, 1.6}) == 2
    assert len({level.noise for level in levels if not level.noise_by_size} - {0.006, 0.025}) == 2
    for fault in ("noise_by_size", "from_classes", "from_surroundings", "peaks", "parts", "absent"):
        assert any(getattr(level, fault) for level in levels), fault

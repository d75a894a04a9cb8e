"""The perceptual hash and near-duplicates, beside their definitions."""

import math

import numpy as np
from PIL import Image

from attn2mask.builders.image_hash import DISTANCE, image_hash, near_duplicates


def bits_unequal(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


def smooth(seed: int, size: int = 128) -> np.ndarray:
    """An image (size, size, 3) of soft patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return np.array(Image.fromarray(patches).resize((size, size), Image.Resampling.BICUBIC))


def test_a_bit_says_whether_a_low_frequency_is_above_the_median():
    """The cosine transform as a sum, of an image that needs no change of size."""
    gray = np.random.default_rng(0).integers(0, 256, (32, 32))
    cosine = np.array([[math.cos(math.pi * (2 * x + 1) * u / 64) for x in range(32)] for u in range(8)])
    cosine *= np.array([math.sqrt((1 if u == 0 else 2) / 32) for u in range(8)])[:, None]
    lowest = [float(cosine[v] @ gray @ cosine[u]) for v in range(8) for u in range(8)]
    ranked = sorted(lowest)
    median = (ranked[31] + ranked[32]) / 2
    expected = int("".join("1" if value > median else "0" for value in lowest), 2)
    assert image_hash(np.repeat(gray[..., None], 3, axis=2).astype(np.uint8)) == f"{expected:016x}"


def test_a_smaller_image_and_a_compressed_one_are_near_duplicates_and_another_image_is_not(tmp_path):
    image = Image.fromarray(smooth(1))
    image.save(tmp_path / "image.jpg", quality=60)
    of_this = image_hash(np.asarray(image))
    for other in (image.resize((100, 100)), Image.open(tmp_path / "image.jpg")):
        assert bits_unequal(of_this, image_hash(np.asarray(other))) <= DISTANCE
    for seed in range(2, 30):
        assert bits_unequal(of_this, image_hash(smooth(seed))) > DISTANCE


def test_near_duplicates_are_those_of_earlier_images_that_are_kept():
    """The third is near the second, which is dropped, but not near the first."""
    hashes = ["0000000000000000", "000000000000000f", "00000000000000ff", "00000000000001ff"]
    assert near_duplicates(hashes, 4).tolist() == [False, True, False, True]
    assert near_duplicates(hashes, 3).tolist() == [False, False, False, True]
    assert near_duplicates([]).tolist() == []


def test_near_duplicates_are_found_among_many():
    rng = np.random.default_rng(0)
    hashes = [f"{int(value):016x}" for value in rng.integers(0, 2**10, 300)]
    expected: list[bool] = []
    for k, value in enumerate(hashes):
        kept = [hashes[j] for j in range(k) if not expected[j]]
        expected.append(any(bits_unequal(value, other) <= 1 for other in kept))
    assert 50 < sum(expected) < 250
    assert near_duplicates(hashes, 1).tolist() == expected

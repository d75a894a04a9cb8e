"""Near-duplicates of images, by a perceptual hash: images that look alike have hashes of few unequal bits.

hashes = [image_hash(image) for image in images]  # "c3d1..." of 16 hexadecimal digits
near_duplicates(hashes)                           # [False, False, True, ...]
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

# Two hashes with at most this many unequal bits of 64 are those of near-duplicates. Of 1,028 images of the
# embedded painter, JPEG at quality 60 changes at most 4 bits in all but one, and a smaller size at most 2;
# of their 527,878 pairs, one has fewer than 8 unequal bits.
DISTANCE = 4
_SIDE, _LOWEST = 32, 8


def image_hash(image: np.ndarray) -> str:
    """The perceptual hash of an image (H, W, 3) uint8: 64 bits as 16 hexadecimal digits.

    The image is made gray and reduced to 32 x 32 pixels. Of its discrete cosine transform, the 8 x 8 lowest
    frequencies are taken, and each is a bit: whether it is above their median (Zauner 2010, "Implementation
    and Benchmarking of Perceptual Image Hash Functions"; Krawetz 2011, "Looks Like It").
    """
    from scipy.fft import dctn

    small = Image.fromarray(image).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    lowest = dctn(np.asarray(small, np.float64), norm="ortho")[:_LOWEST, :_LOWEST]
    return np.packbits(lowest > np.median(lowest)).tobytes().hex()


def near_duplicates(hashes: Sequence[str], distance: int = DISTANCE) -> np.ndarray:
    """Which of N images are near-duplicates (N,) bool: of an earlier one that is none itself, whose hash has
    at most `distance` unequal bits.

    Each hash is compared with all that are kept: 20,000 hashes take half a second.
    """
    values = np.array([int(text, 16) for text in hashes], np.uint64)
    kept, count = np.empty_like(values), 0
    repeated = np.zeros(len(values), bool)
    for index, value in enumerate(values):
        repeated[index] = (np.bitwise_count(kept[:count] ^ value) <= distance).any()
        if not repeated[index]:
            kept[count] = value
            count += 1
    return repeated

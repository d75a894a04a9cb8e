"""Every number that decides a mask, in one frozen record that is saved with each build; the presets.

A preset is a whole set of rules; options of the command line replace single fields of it
(`dataclasses.replace(PRESETS["default"], threshold="fixed")`). What no publication states is marked "not
verified".
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CRF:
    """The dense CRF's constants (Kraehenbuehl and Koltun 2011; names as in pydensecrf).

    The widths `*_sxy` are in pixels of a 512 x 512 picture and scale with the picture by sqrt(H * W) / 512;
    `bilateral_srgb` is in grey levels, 0 to 255. `gt_prob` is the trust in the coarse label, between 0 and 1.
    """

    gt_prob: float
    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float
    iterations: int


@dataclass(frozen=True)
class Rules:
    """From attention to labels: which maps, how normalised, the threshold, the CRF, the reliability.

    `steps` is the recorded window as fractions of the denoising run: (0, 1) is all of it, (0.5, 0.5) its
    middle step. `map_sides` is a closed range: maps whose shorter side lies in it are used; where none does,
    the nearest. `beta` is read by the fixed threshold alone, t = (1 - beta) / 2. `graded` turns reliability
    from 0 or 255 into 0 to 255.
    """

    steps: tuple[float, float]
    map_sides: tuple[int, int]
    normalise: Literal["max", "minmax"]
    threshold: Literal["otsu", "agreement", "fixed"]
    beta: float
    crf: CRF
    reliability: Literal["agreement", "two-threshold", "margin"]
    graded: bool = False


PRESETS: dict[str, Rules] = {
    # The paper names neither its maps nor its CRF: both likely, not verified. The constants are IRN's (Ahn et
    # al. 2019).
    "paper": Rules(
        steps=(0.0, 1.0),
        map_sides=(16, 32),
        normalise="max",
        threshold="otsu",
        beta=0.2,
        crf=CRF(
            gt_prob=0.7,
            gaussian_sxy=3,
            gaussian_compat=3,
            bilateral_sxy=50,
            bilateral_srgb=5,
            bilateral_compat=10,
            iterations=10,
        ),
        reliability="agreement",
    ),
    # The settings of a published replication: one step in the middle, a fixed background score. gt_prob not
    # verified.
    "replication": Rules(
        steps=(0.5, 0.5),
        map_sides=(16, 32),
        normalise="minmax",
        threshold="fixed",
        beta=0.2,
        crf=CRF(
            gt_prob=0.7,
            gaussian_sxy=3,
            gaussian_compat=3,
            bilateral_sxy=80,
            bilateral_srgb=13,
            bilateral_compat=10,
            iterations=5,
        ),
        reliability="agreement",
    ),
    # Ahead of the other presets on the embedded painter (`make evidence`), where maps of half the latents'
    # side beside the finest ones are worth most; later steps, other CRF widths and trusts changed little.
    # With Stable Diffusion at 512 x 512 it takes the maps of side 8, 16 and 32: not measured there.
    "default": Rules(
        steps=(0.0, 1.0),
        map_sides=(8, 48),
        normalise="minmax",
        threshold="otsu",
        beta=0.2,
        crf=CRF(
            gt_prob=0.7,
            gaussian_sxy=12,
            gaussian_compat=3,
            bilateral_sxy=128,
            bilateral_srgb=15,
            bilateral_compat=10,
            iterations=5,
        ),
        reliability="agreement",
    ),
}

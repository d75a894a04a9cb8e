"""Every number that decides a mask, in one frozen record that is saved with each build; the presets.

A preset is a whole set of rules; options of the command line replace single fields of it
(`dataclasses.replace(PRESETS["default"], threshold="fixed")`). What no publication states is marked "not
verified".
"""

from dataclasses import dataclass
from typing import Any, Literal


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
    """From attention to labels: which maps, how normalized, the threshold, the CRF, the reliability.

    `steps` is the recorded window as fractions of the denoising run: (0, 1) is all of it, (0.5, 0.5) its
    middle step. `map_sides` is a closed range: maps whose shorter side lies in it are used; where none does,
    the nearest. `beta` is read by the fixed threshold alone, t = (1 - beta) / 2. `graded` turns reliability
    from 0 or 255 into 0 to 255.
    """

    steps: tuple[float, float]
    map_sides: tuple[int, int]
    normalize: Literal["max", "minmax"]
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
        normalize="max",
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
        normalize="minmax",
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
        normalize="minmax",
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

# Where values come from, for the cards. Names are those of build.json's identity; what is not listed is ours.
PAPER, REPLICATION = "the paper", "a published replication"
LIKELY = "likely the paper's; **not verified**"
OURS = "ours; **not verified**"
ORIGINS: dict[str, dict[Any, str]] = {
    "alias_probability": {0.5: PAPER},
    "steps": {100: REPLICATION},
    "guidance_scale": {7.5: LIKELY},
    "height": {512: LIKELY},
    "width": {512: LIKELY},
    "rules.steps": {(0.0, 1.0): LIKELY, (0.5, 0.5): REPLICATION},
    "rules.map_sides": {(16, 32): LIKELY},
    "rules.normalize": {"max": LIKELY, "minmax": REPLICATION},
    "rules.threshold": {
        "otsu": "ours: the paper's threshold is adaptive, its formula not known; **not verified**",
        "agreement": "ours, after DiffuMask, with the CRF for AffinityNet; **not verified**",
        "fixed": REPLICATION,
    },
    "rules.beta": {0.2: REPLICATION},
    "rules.reliability": {
        "agreement": "our reading of the paper, whose exact rule is not known; **not verified**",
        "two-threshold": "ours, after IRN; **not verified**",
        "margin": "ours, with the bound of CLIP-ES; **not verified**",
    },
    "rules.crf.gaussian_sxy": {3: REPLICATION},
    "rules.crf.gaussian_compat": {3: REPLICATION},
    "rules.crf.bilateral_sxy": {50: "IRN's, " + LIKELY, 80: REPLICATION},
    "rules.crf.bilateral_srgb": {5: "IRN's, " + LIKELY, 13: REPLICATION},
    "rules.crf.bilateral_compat": {10: REPLICATION},
    "rules.crf.iterations": {10: "IRN's, " + LIKELY, 5: REPLICATION},
}


def origin(name: str, value: Any) -> str:
    """Who states this value of `name`, and whether that is verified, in a few words of Markdown."""
    return ORIGINS.get(name, {}).get(tuple(value) if isinstance(value, list) else value, OURS)

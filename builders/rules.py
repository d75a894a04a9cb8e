"""The rules of labels: every value that decides about a mask, and their presets.

A preset is a YAML file in `presets/` with a value for every rule. `RuleOptions` and `RecordingOptions` are
the options of the command line, which replace single values. The functions on tensors read `Rules`.
"""

from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from attn2mask.builders.errors import UserError
from attn2mask.builders.options import fill, flag_of, option, preset_names, read_preset

PRESETS = Path(__file__).parent / "presets"

Threshold = Literal["otsu", "agreement", "fixed"]
Reliability = Literal["agreement", "two-threshold", "margin"]


@dataclass(frozen=True)
class CRF:
    """The constants of the dense CRF (Kraehenbuehl and Koltun 2011; the names are those of pydensecrf).

    The widths `*_sxy` are in pixels of a 512 x 512 image and scale with the image by sqrt(H * W) / 512;
    `bilateral_srgb` is in levels of color, 0 to 255. `gt_prob` is the trust in the coarse label, between 0
    and 1.
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
    """The rules from attention to labels: maps, normalization, threshold, CRF, and reliability.

    Attributes:
        record_from, record_to: the recorded steps as fractions of the denoising run. 0 and 1 are all of it,
            0.5 and 0.5 its middle step.
        map_side_min, map_side_max: maps whose shorter side lies in this closed range are used. If there are
            none, the maps nearest to it are used.
        normalization: "max" divides a class map by its maximum; "minmax" subtracts its minimum first.
        threshold: "otsu", "agreement" or "fixed"; see `masks`.
        beta: only for the fixed threshold, which is (1 - beta) / 2.
        reliability: "agreement", "two-threshold" or "margin"; see `reliability`.
        graded: whether reliability is 0 to 255, not only 0 or 255.
        crf_*: the constants of `CRF`.
    """

    record_from: float
    record_to: float
    map_side_min: int
    map_side_max: int
    normalization: Literal["max", "minmax"]
    threshold: Threshold
    beta: float
    reliability: Reliability
    graded: bool
    crf_gt_prob: float
    crf_gaussian_sxy: float
    crf_gaussian_compat: float
    crf_bilateral_sxy: float
    crf_bilateral_srgb: float
    crf_bilateral_compat: float
    crf_iterations: int

    @property
    def window(self) -> tuple[float, float]:
        """The recorded steps as fractions of the denoising run: (first, last)."""
        return self.record_from, self.record_to

    @property
    def crf(self) -> CRF:
        """The constants of the dense CRF."""
        return CRF(**{f.name: getattr(self, f"crf_{f.name}") for f in fields(CRF)})


def load_rules(preset: str) -> Rules:
    """The rules of a preset."""
    return Rules(**read_preset(PRESETS, preset))


RULES, CONSTANTS = "rules of labels", "constants of the rules (rarely changed)"
_rule = partial(option, default=None, group=RULES, identity=True, default_text="the preset's")
_constant = partial(_rule, group=CONSTANTS)


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """The options that `build` and `remask` share: the rules that lead from stored scores to labels."""

    preset: str | None = option(
        "take the values of all rules that are not given from this preset",
        None,
        RULES,
        choices=preset_names(PRESETS),
        default_text="the rules of the build",
    )
    threshold: Threshold | None = _rule(
        "how a score becomes a class: one Otsu threshold for each class, the threshold whose mask the CRF"
        " changes least, or one fixed threshold",
        card="threshold from score to class",
    )
    beta: float | None = _rule(
        "sets the fixed threshold to (1 - beta) / 2", at_least=0, at_most=1, card="beta of the threshold"
    )
    reliability: Reliability | None = _rule(
        "which pixels to trust: where coarse mask and CRF agree, where two thresholds agree, or where the"
        " CRF's best label leads by a margin",
        card="reliability",
    )
    graded: bool | None = _rule("reliability in 256 levels, not in two", card="graded reliability")
    crf_gt_prob: float | None = _constant(
        "CRF: trust in the coarse label, 0 to 1",
        above=0,
        at_most=0.9999,
        card="dense CRF: trust in the coarse label",
    )
    crf_gaussian_sxy: float | None = _constant(
        "CRF: width of the Gaussian kernel in pixels of a 512 x 512 image",
        above=0,
        card="dense CRF: width of the Gaussian kernel",
    )
    crf_gaussian_compat: float | None = _constant(
        "CRF: weight of the Gaussian kernel", at_least=0, card="dense CRF: weight of the Gaussian kernel"
    )
    crf_bilateral_sxy: float | None = _constant(
        "CRF: spatial width of the bilateral kernel in pixels of a 512 x 512 image",
        above=0,
        card="dense CRF: spatial width of the bilateral kernel",
    )
    crf_bilateral_srgb: float | None = _constant(
        "CRF: color width of the bilateral kernel in levels of 0 to 255",
        above=0,
        card="dense CRF: color width of the bilateral kernel",
    )
    crf_bilateral_compat: float | None = _constant(
        "CRF: weight of the bilateral kernel", at_least=0, card="dense CRF: weight of the bilateral kernel"
    )
    crf_iterations: int | None = _constant(
        "CRF: number of mean-field iterations", at_least=0, card="dense CRF: iterations"
    )


@dataclass(frozen=True, kw_only=True)
class RecordingOptions:
    """The rules that are applied while an image is painted, and cannot be changed afterwards."""

    record_from: float | None = _constant(
        "first recorded step as a fraction of the denoising run",
        at_least=0,
        at_most=1,
        card="recorded from (fraction of the run)",
    )
    record_to: float | None = _constant(
        "last recorded step as a fraction of the denoising run",
        at_least=0,
        at_most=1,
        card="recorded to (fraction of the run)",
    )
    map_side_min: int | None = _constant(
        "least shorter side of the attention maps that are used, in pixels",
        at_least=1,
        card="least side of the attention maps",
    )
    map_side_max: int | None = _constant(
        "largest shorter side of the attention maps that are used, in pixels",
        at_least=1,
        card="largest side of the attention maps",
    )
    normalization: Literal["max", "minmax"] | None = _constant(
        "how each class map is brought to 0 to 1: divided by its maximum, or from its minimum to its maximum",
        card="normalization of class maps",
    )


def complete(config: Any, rules: Rules) -> Any:
    """`config` with the values of `rules` for every rule that it does not give.

    Raises UserError for another beta than that of `rules` if the threshold is not fixed, and for an empty
    range of steps or sides.
    """
    filled = fill(config, asdict(rules))
    if filled.beta != rules.beta and filled.threshold != "fixed":
        raise UserError(
            f"--beta is used only with --threshold fixed, but the threshold is {filled.threshold}"
        )
    for least, most in (("record_from", "record_to"), ("map_side_min", "map_side_max")):
        low, high = (getattr(filled, name, 0) for name in (least, most))
        if low > high:
            raise UserError(f"{flag_of(least)} {low} is above {flag_of(most)} {high}")
    return filled


def rules_of(config: Any) -> Rules:
    """The rules of options that `complete` has filled."""
    return Rules(**{f.name: getattr(config, f.name) for f in fields(Rules)})

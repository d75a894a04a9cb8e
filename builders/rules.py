"""The rules of labels: every value that decides about a mask, and their presets.

A preset is a YAML file in `presets/` with a value for every rule, and possibly the number of denoising steps.
Its comment says where the values come from. Options of the command line replace single values. The functions
on tensors read `Rules`.
"""

from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from attn2mask.builders.errors import UserError
from attn2mask.builders.options import CheckedOptions, fill, flag_of, option, read_preset

PRESETS = Path(__file__).parent / "presets"
# The painters that each preset is for. The presets whose names end in "-like" are the rules of other methods.
PAINTERS = {
    "daam-like": "any painter",
    "dataset-diffusion-like": "any painter whose self-attention can be recorded",
    "diffumask-like": "any painter",
    "embedded": "the embedded painter alone, and its default",
    "mosaicfusion-like": "any painter",
    "ovam-like": "any painter",
    "paper": "any painter",
    "photo": "any painter, and the default of all but the embedded one",
    "replication": "any painter",
}

Threshold = Literal["otsu", "agreement", "fixed"]
Normalization = Literal["max", "minmax", "max-by-size"]
Reliability = Literal["agreement", "two-threshold", "margin"]
Implementation = Literal["lattice", "pydensecrf"]


@dataclass(frozen=True)
class CRF:
    """The constants of the dense CRF (Kraehenbuehl and Koltun 2011; the names are those of pydensecrf).

    The widths `*_sxy` are in pixels of a 512 x 512 image and scale with the image by sqrt(H * W) / 512;
    `bilateral_srgb` is in levels of color, 0 to 255. `gt_prob` is the trust in the coarse label, 0 to 1.
    `implementation` names the code that computes it.
    """

    gt_prob: float
    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float
    iterations: int
    implementation: Implementation = "lattice"


RULES, CONSTANTS = "rules of labels", "constants of the rules (rarely changed)"
_rule = partial(option, default=None, group=RULES, identity=True, default_text="by preset")
_constant = partial(_rule, group=CONSTANTS)
_fraction = partial(_constant, at_least=0, at_most=1)


def _crf_option(name: str, unit: str = "", **more: Any) -> Any:
    return _constant(f"CRF: {name}{unit}", card=f"dense CRF: {name}", **more)


def _map_fraction(bound: str) -> Any:
    text = f"{bound} map side, as a fraction of the latents' side"
    return _fraction(text, card=f"{bound} side of the attention maps (fraction of the latents' side)")


@dataclass(frozen=True, kw_only=True)
class RuleOptions(CheckedOptions):
    """The rules that lead from the stored scores of an image to its labels."""

    threshold: Threshold | None = _rule(
        "how a score becomes a class: by Otsu's threshold, by that whose mask the CRF changes least, or by a"
        " fixed one",
        card="threshold from score to class",
    )
    beta: float | None = _rule(
        "sets the fixed threshold to (1 - beta) / 2", at_least=-1, at_most=1, card="beta of the threshold"
    )
    least_threshold: float | None = _rule(
        "least value of Otsu's thresholds",
        at_least=0,
        at_most=1,
        card="least threshold",
    )
    uncertain_band: float | None = _rule(
        "ignore background whose score is this close to a class",
        at_least=0,
        at_most=1,
        card="uncertain band below the thresholds",
    )
    reliability: Reliability | None = _rule(
        "trusted pixels: where coarse mask and CRF agree, where two thresholds agree, or where the CRF's best"
        " label leads by a margin",
        card="reliability",
    )
    graded: bool | None = _rule("reliability in 256 levels, not in two", card="graded reliability")
    crf: Implementation | None = _rule(
        "code of the dense CRF",
        card="code of the dense CRF",
        default_text="lattice, or the build's",
    )
    crf_gt_prob: float | None = _crf_option("trust in the coarse label", ", 0 to 1", above=0, at_most=0.9999)
    crf_gaussian_sxy: float | None = _crf_option(
        "width of the Gaussian kernel", ", pixels at 512 x 512", above=0
    )
    crf_gaussian_compat: float | None = _crf_option("weight of the Gaussian kernel", at_least=0)
    crf_bilateral_sxy: float | None = _crf_option(
        "width of the bilateral kernel", ", pixels at 512 x 512", above=0
    )
    crf_bilateral_srgb: float | None = _crf_option(
        "color width of the bilateral kernel", ", 0 to 255", above=0
    )
    crf_bilateral_compat: float | None = _crf_option("weight of the bilateral kernel", at_least=0)
    crf_iterations: int | None = _crf_option("iterations", "; 0 leaves the coarse mask as it is", at_least=0)


@dataclass(frozen=True, kw_only=True)
class RecordingOptions(CheckedOptions):
    """The rules that lead from attention to scores. `remask` can change them if the maps are stored, except
    for those in `FIXED`.
    """

    record_from: float | None = _fraction(
        "first recorded step as a fraction of the run", card="recorded from (fraction of the run)"
    )
    record_to: float | None = _fraction(
        "last recorded step as a fraction of the run", card="recorded to (fraction of the run)"
    )
    map_fraction_min: float | None = _map_fraction("least")
    map_fraction_max: float | None = _map_fraction("largest")
    propagation_power: int | None = _constant(
        "multiply maps by self-attention to this power",
        at_least=0,
        card="power of the self-attention that maps are multiplied by",
    )
    propagation_fraction: float | None = _fraction(
        "self-attention side, as a fraction of the latents' side",
        card="side of the self-attention (fraction of the latents' side)",
    )
    normalization: Normalization | None = _constant(
        "divide each class map by its maximum, or move its minimum to 0 before, or divide its maps of each"
        " size before they are averaged",
        card="normalization of class maps",
    )
    word_temperature: float | None = _constant(
        "temperature of a softmax over the words; 0 takes none",
        at_least=0,
        card="temperature of the softmax over the words",
    )
    background_words: bool | None = _constant(
        "let words of the background compete with classes",
        card="competition of background words",
    )


# The recording options whose values cannot be changed when the images have been painted.
FIXED = ("record_from", "record_to", "propagation_fraction")


@dataclass(frozen=True, kw_only=True)
class Rules(RuleOptions, RecordingOptions):
    """The rules from attention to labels: maps, propagation, normalization, threshold, CRF, and reliability.

    Every rule has a value; only `crf` has a default. Its option says what it means. `scores` says which maps
    the fractions choose, and what propagation and normalization do. `masks` and `reliability` hold the kinds
    of both.
    """

    crf: Implementation = "lattice"

    @property
    def window(self) -> tuple[float, float]:
        """The recorded steps as fractions of the denoising run: (first, last)."""
        return self.record_from, self.record_to

    @property
    def dense_crf(self) -> CRF:
        """The constants of the dense CRF and its implementation."""
        names = [f.name for f in fields(CRF) if f.name != "implementation"]
        return CRF(**{name: getattr(self, f"crf_{name}") for name in names}, implementation=self.crf)


def rules_preset(default_text: str) -> Any:
    """The option that chooses a preset; `default_text` says what is taken without it."""
    text = f"take the rules that are not given from this preset: {', '.join(PAINTERS)}"
    return option(text, None, RULES, default_text=default_text)


def is_of_this_project(preset: str) -> bool:
    """Whether a preset is not the rules of another method."""
    return not preset.endswith("-like")


def check_preset(name: str, flag: str = "--preset") -> None:
    """Raises UserError, which says what each preset is for, if there is no preset of this name."""
    if name not in PAINTERS:
        known = "; ".join(f"{preset} (for {painters})" for preset, painters in PAINTERS.items())
        raise UserError(f"{flag} {name}: there is no such preset; choose from {known}")


def preset_for(model: str, chosen: str | None = None) -> str:
    """The preset for a painter, as `--model` names it: the `chosen` one, or else the painter's default.

    Raises UserError if there is no such preset, or if it is not for this painter.
    """
    default = "embedded" if model == "embedded" else "photo"
    if chosen is not None:
        check_preset(chosen)
    if chosen == "embedded" != default:
        others = ", ".join(name for name in PAINTERS if name != chosen)
        raise UserError(
            f"--preset embedded is for the embedded painter alone, not for {model}: choose from {others}"
        )
    return chosen or default


def load_rules(preset: str) -> Rules:
    """The rules of a preset."""
    values = read_preset(PRESETS, preset)
    return Rules(**{f.name: values[f.name] for f in fields(Rules) if f.name in values})


def complete(config: Any, rules: Rules) -> Any:
    """`config` with the values of `rules` for every rule that it does not give.

    Raises UserError for another beta than that of `rules` if the threshold is not fixed, for another least
    threshold if it is, for an empty range of steps or map sizes, and if the code of the dense CRF is not
    installed.
    """
    filled = fill(config, asdict(rules))
    check_installed(filled.crf)
    unused, used_with = (
        ("least_threshold", "otsu or agreement") if filled.threshold == "fixed" else ("beta", "fixed")
    )
    if getattr(filled, unused) != getattr(rules, unused):
        raise UserError(
            f"{flag_of(unused)} is used only with --threshold {used_with}, but the threshold is"
            f" {filled.threshold}"
        )
    for least, most in (("record_from", "record_to"), ("map_fraction_min", "map_fraction_max")):
        low, high = (getattr(filled, name) for name in (least, most))
        if low > high:
            raise UserError(f"{flag_of(least)} {low} is above {flag_of(most)} {high}")
    return filled


def check_installed(crf: str) -> None:
    """Raises UserError if this implementation of the dense CRF is not installed."""
    if crf == "pydensecrf" and find_spec("pydensecrf") is None:
        raise UserError(
            "--crf pydensecrf needs the package pydensecrf: pip install 'attn2mask[pydensecrf]' (it needs a"
            " C++ compiler, and does not build on Python 3.13), or use --crf lattice"
        )


def rules_of(config: Any) -> Rules:
    """The rules of options that `complete` has filled."""
    return Rules(**{f.name: getattr(config, f.name) for f in fields(Rules)})

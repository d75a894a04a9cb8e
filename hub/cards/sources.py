"""The tables of options in the cards, with the source of each value from `sources.yaml`."""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from attn2mask.builders.markdown import Markdown
from attn2mask.builders.options import facts_of
from attn2mask.builders.rules import CRF

OURS = Markdown("this project; **not verified**")
# Options that are only used if another option has this value.
USED_WITH = {
    "crop_area_min": ("crop_scale_max", None),
    "crop_area_max": ("crop_scale_max", None),
    "beta": ("threshold", "fixed"),
    "momentum": ("optimizer", "sgd"),
    "warmup_epochs": ("no_mixing", False),
    "mix_probability": ("no_mixing", False),
    "confidence": ("no_mixing", False),
    "boundary_weight": ("no_mixing", False),
    "class_prompt": ("prior_preservation", True),
    "prior_images": ("prior_preservation", True),
    "prior_weight": ("prior_preservation", True),
}
# Options that are not used if another option has this value.
UNUSED_WITH = {
    "propagation_fraction": ("propagation_power", 0),
    **{
        f"crf_{f.name}": ("crf_iterations", 0)
        for f in fields(CRF)
        if f.name not in ("iterations", "implementation")
    },
}
# Options that are only used if they have a value.
OPTIONAL = (
    "num_rows",
    "predict_scales",
    "crop_scale_min",
    "crop_scale_max",
    "negative_prompt",
    "min_presence",
)
# Options whose values nobody states, and that are of no method.
UNSOURCED = (
    "seed",
    "num_rows",
    "chosen_on",
    "shard_size",
    "instance_prompt",
    "class_prompt",
    "negative_prompt",
    "min_presence",
)


def option_rows(command: type, options: Mapping[str, Any], **shown: str) -> list[tuple[str, Any, str]]:
    """The name, the value and the source of each option that was used and has a name in cards.

    Args:
        command: the dataclass of the options.
        options: the recorded values by the names of the options.
        shown: texts that are shown in place of values.
    """
    rows: list[tuple[str, Any, str]] = []
    for name, facts in facts_of(command).items():
        value = options.get(name)
        reader, wanted = USED_WITH.get(name, (name, value))
        is_used = options.get(reader) == wanted and not (name in OPTIONAL and value is None)
        if name in UNUSED_WITH:
            reader, unwanted = UNUSED_WITH[name]
            is_used = is_used and options.get(reader) != unwanted
        if facts.card is not None and is_used:
            keys = (name, f"{name} of {options.get('backbone')}")
            source = "" if name in UNSOURCED else source_of(command, keys, value)
            rows.append((facts.card, shown.get(name, value), source))
    return rows


def source_of(command: type, keys: tuple[str, ...], value: Any) -> Markdown:
    """Who states this value of an option, and whether that is verified, in a few words.

    `keys` are the names in `sources.yaml` that the option may have.
    """
    for source, values in read_sources()[command.__name__].items():
        if any(value in values.get(key, ()) for key in keys):
            return Markdown(source)
    return OURS


@cache
def read_sources() -> dict[str, dict[str, dict[str, list[Any]]]]:
    """`sources.yaml`: values by the name of the dataclass, the source and the option."""
    return yaml.safe_load(Path(__file__).with_name("sources.yaml").read_text("utf-8"))

"""What a run did in another way than the publication of its method, in sentences, and the figures of
publications.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from attn2mask.builders.table_reader import load_table
from attn2mask.training.zeroshot.protocol import PROTOCOLS, TEMPLATES, Protocol, original

_PUBLISHED = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text("utf-8"))
NAMES: Mapping[str, str] = _PUBLISHED["names"]


@dataclass(frozen=True)
class Figure:
    """A figure of a publication on VOC 2012 val.

    Attributes:
        name: the method, as the source names it.
        miou: the mean IoU in percent.
        classes: the number of classes in the mean: 21 with the background, 20 without it.
        what: the weights and the data.
        source: where the figure stands.
        method: the name of the method for `--method`; None for a trained segmenter.
    """

    name: str
    miou: float
    classes: int
    what: str
    source: str = "Table 3 of the paper"
    method: str | None = None


TABLE_3, CHECKPOINTS = (
    tuple(Figure(**facts) for facts in _PUBLISHED[key]) for key in ("table_3", "checkpoints")
)


def recorded_protocol(facts: Mapping[str, Any]) -> Protocol:
    """The protocol whose facts metrics.json holds. Keys that are unknown are left out.

    Raises TypeError or ValueError for values of another type.
    """
    known = {f.name for f in fields(Protocol)}
    values = {key: value for key, value in facts.items() if key in known}
    values["names"] = tuple(_texts(names) for names in facts.get("names", ()))
    values |= {key: _texts(facts.get(key, ())) for key in ("words", "templates")}
    protocol = Protocol(**values)
    for key in ("overlap", "area"):
        if not isinstance(getattr(protocol, key), int | float):
            raise TypeError(f"the {key} of its protocol is no number")
    for key in ("size", "longest", "crop", "window", "threshold", "scale"):
        if not isinstance(getattr(protocol, key), int | float | None):
            raise TypeError(f"the {key} of its protocol is no number")
    for key in ("name", "background", "normalization", "refinement"):
        if not isinstance(getattr(protocol, key), str | None):
            raise TypeError(f"the {key} of its protocol is no text")
    return protocol


def _texts(values: Any) -> tuple[str, ...]:
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise TypeError("its protocol holds another value than a list of texts")
    return tuple(values)


def differences(method: str, protocol: Protocol, weights: str | None) -> list[str]:
    """Sentences without a subject's name, each of one difference between a run on VOC and the publication.
    One sentence says so if there is none, or if no publication defines a protocol.
    """
    if method not in PROTOCOLS:
        return ["no publication defines a protocol for VOC."]
    published = original(method, load_table("voc"))
    protocol = replace(protocol, normalization=protocol.normalization or _PUBLISHED["normalizations"][method])
    found = []
    for describe in _FACTS:
        theirs, ours = describe(published), describe(protocol)
        if theirs != ours:
            found.append(f"the publication {theirs}; this run {ours}.")
    if (text := _names(published, protocol)) is not None:
        found.append(text)
    checkpoint = PROTOCOLS[method].get("checkpoint")
    if checkpoint is not None and weights != checkpoint:
        found.append(f"the weights of the publication are {checkpoint}; those of this run are {weights}.")
    return found or ["this run followed the protocol of the publication."]


# What a protocol does, by its parts: predicates in the past tense. Equal predicates are no difference.


def _size(protocol: Protocol) -> str:
    size = "the model's own size" if protocol.size is None else f"{protocol.size} pixels"
    return f"resized the shorter side to {size}"


def _longest(protocol: Protocol) -> str:
    if protocol.longest is None:
        return "did not limit the longer side"
    return f"limited the longer side to {protocol.longest} pixels"


def _crop(protocol: Protocol) -> str:
    if protocol.crop is None:
        return "did not crop the image"
    return f"cut a square of {protocol.crop} pixels out of the middle of the image"


def _window(protocol: Protocol) -> str:
    if protocol.window is None:
        return "predicted the whole image at once"
    return (
        f"predicted windows of {protocol.window} pixels, of which {protocol.overlap:.0%} lies in the next one"
    )


def _normalization(protocol: Protocol) -> str:
    if protocol.normalization == "half":
        return "scaled pixels to -1 to 1"
    data = {"clip": "CLIP's data", "imagenet": "ImageNet"}.get(protocol.normalization, protocol.normalization)
    return f"normalized pixels with the mean and deviation of {data}"


def _templates(protocol: Protocol) -> str:
    count = sum(len(TEMPLATES.get(key, ())) for key in protocol.templates)
    return f"used {count} template{'' if count == 1 else 's'} ({', '.join(protocol.templates)})"


def _background(protocol: Protocol) -> str:
    if protocol.background == "none":
        return "did not score the pixels of the background"
    return {
        "threshold": "found the background by a threshold of the probability",
        "words": "found the background by words",
    }.get(protocol.background, f"found the background by the rule {protocol.background}")


def _threshold(protocol: Protocol) -> str:
    if protocol.threshold is None:
        return "had no threshold for the background"
    return f"took pixels with a probability below {protocol.threshold:g} as background"


def _words(protocol: Protocol) -> str:
    if not protocol.words:
        return "had no words of the background"
    shown = ", ".join(protocol.words[:3])
    return f"had {len(protocol.words)} words of the background ({shown}{', ...' * (len(protocol.words) > 3)})"


def _scale(protocol: Protocol) -> str:
    if protocol.scale is None:
        return "multiplied the cosines by the factor of the model"
    return f"multiplied the cosines by {protocol.scale:g}"


def _area(protocol: Protocol) -> str:
    if not protocol.area:
        return "kept classes of any area"
    return f"left out classes that cover at most {protocol.area:.0%} of the foreground"


def _refinement(protocol: Protocol) -> str:
    if protocol.refinement is None:
        return "did not refine the probabilities"
    return f"refined the probabilities by {protocol.refinement.upper()}"


_FACTS: tuple[Callable[[Protocol], str], ...] = (
    *(_size, _longest, _crop, _window, _normalization, _templates),
    *(_background, _threshold, _words, _scale, _area, _refinement),
)


def _names(published: Protocol, protocol: Protocol) -> str | None:
    """The sentence of the classes that have other names; None if there are none."""
    pairs = list(zip(published.names, protocol.names, strict=False))
    other = [(theirs, ours) for theirs, ours in pairs if theirs != ours]
    if not other:
        return None
    examples = " and ".join(
        f'"{", ".join(ours)}" in place of "{", ".join(theirs)}"' for theirs, ours in other[:2]
    )
    return f"this run had other names for {len(other)} of {len(pairs)} classes, such as {examples}."

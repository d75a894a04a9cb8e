"""The card of a painter's LoRA adapter: what `attn2mask adapt` recorded, and how to paint with the adapter.

The prose is in `templates/adapter.md`; this module computes its values.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attn2mask.builders.errors import UserError
from attn2mask.builders.options import facts_of
from attn2mask.builders.provenance import LORA_RECORD, LORA_WEIGHTS
from attn2mask.builders.rules import OURS, PAPER
from attn2mask.hub.cards.markdown import (
    UNKNOWN,
    Card,
    duration,
    escaped,
    merge,
    public_path,
    read_record,
    render,
    table_rows,
    version_rows,
)
from attn2mask.hub.cards.statistics import tensor_shapes
from attn2mask.training.adaptation.config import AdaptConfig
from attn2mask.training.benchmarks import hub_name

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

# Where the values of options come from, by option and value. What is not listed is this project's choice.
TABLE_2 = f"{PAPER}, Table 2"
ADAPTATION_SOURCES: dict[str, dict[Any, str]] = {
    "learning_rate": {2e-5: TABLE_2},
    "power": {1.0: TABLE_2},
    "weight_decay": {0.01: TABLE_2},
    "batch_size": {4: TABLE_2},
    "max_steps": {40_000: TABLE_2},
}
# Options that are only used with prior preservation, and those whose value is the user's.
PRIOR = ("class_prompt", "prior_images", "prior_weight")
UNSOURCED = ("seed", "instance_prompt", "class_prompt")
# Records that are shown as they are. The first two are peft's.
FACTS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "step": "steps",
    "loss": "loss at the end",
    "hardware": "hardware",
    "mixed_precision": "precision",
}


def adapter_card(folder: Path, repo_id: str, old: str | None = None) -> Card:
    """README.md of a LoRA adapter that diffusers loads, and its samples.

    Args:
        folder: holds `pytorch_lora_weights.safetensors`, and training_config.json or peft's
            adapter_config.json with at least the base model.
        repo_id: the name that `load_lora_weights` takes.
        old: the card in the repository. Its free text stays.

    Raises UserError if the weights or the base model are missing.
    """
    from huggingface_hub import ModelCard

    folder = Path(folder)
    if not (folder / LORA_WEIGHTS).exists():
        raise UserError(f"{folder} holds no {LORA_WEIGHTS}: give a LoRA adapter in diffusers' format")
    record = read_record(folder / "adapter_config.json") | read_record(folder / LORA_RECORD)
    base = record.get("base_model") or record.get("base_model_name_or_path")
    if not base:
        raise UserError(f"{folder}: neither {LORA_RECORD} nor adapter_config.json names the base_model")
    samples = sorted((folder / "samples").glob("step-*.png"))
    files = {"assets/samples.png": samples[-1].read_bytes()} if samples else {}
    values = {
        "repo_id": repo_id,
        "title": repo_id.split("/")[-1],
        **_adapter_values(folder, record, base),
        **_adaptation_values(folder, record),
        "has_samples": bool(files),
    }
    return Card(merge(render(ModelCard, _adapter_metadata(record, base), "adapter", **values), old), files)


def _adapter_metadata(record: Mapping[str, Any], base: str) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    hub = hub_name(base)
    return ModelCardData(
        license=record.get("license") or UNKNOWN,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=hub,
        base_model_relation="adapter" if hub else None,
        instance_prompt=_recorded_options(record).get("instance_prompt"),
        tags=["attn2mask", "lora", "diffusers", "text-to-image", "diffusers-training"],
    )


def _recorded_options(record: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `attn2mask adapt`; empty for an adapter that it did not make."""
    return record.get("options", {})


def _adapter_values(folder: Path, record: Mapping[str, Any], base: str) -> dict[str, Any]:
    hub, version = hub_name(base), record.get("base_version")
    shapes = tensor_shapes(folder / LORA_WEIGHTS)
    ranks = sorted({shape[0] for name, shape in shapes.items() if "lora_A" in name or ".down." in name})
    facts = [(name, record[key]) for key, name in FACTS.items() if record.get(key) is not None]
    if data := record.get("data"):
        images = f"{data['images']:,} of {data['name']}, {data['with_caption']:,} with a caption"
        facts.insert(0, ("training images", images))
    if "seconds" in record:
        facts.append(("time", duration(record["seconds"])))
    model = [] if base == "embedded" else ["--model", public_path(base)]
    model += ["--revision", version] if hub and version else []
    return {
        "base": base if base == "embedded" else public_path(base),
        "base_link": f"[{hub}](https://huggingface.co/{hub})" if hub else f"`{public_path(base)}`",
        "base_on_hub": hub is not None,
        "base_version": version,
        "tensors": f"{len(shapes):,}",
        "ranks": ", ".join(map(str, ranks)),
        "facts": table_rows(facts),
        "prompt": json.dumps(_recorded_options(record).get("instance_prompt") or "a photo of a street"),
        "table": shlex.quote(record.get("table", "voc")),
        "model_options": f" {shlex.join(model)}" if model else "",
    }


def _adaptation_values(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "has_training": bool(_recorded_options(record)),
        "has_options": (folder / "adapt.yaml").exists(),
        "preset": escaped(_recorded_options(record).get("preset")),
        "options": table_rows(_adaptation_options(_recorded_options(record))),
        "versions": version_rows(record),
    }


def _adaptation_options(options: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    """(name, value, source) of the options that were used and have a name in cards."""
    for name, facts in facts_of(AdaptConfig).items():
        if facts.card is None or name not in options:
            continue
        if name in PRIOR and not options.get("prior_preservation"):
            continue
        value = options[name]
        yield (
            facts.card,
            value,
            "" if name in UNSOURCED else ADAPTATION_SOURCES.get(name, {}).get(value, OURS),
        )

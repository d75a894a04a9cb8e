"""The card of a painter's LoRA adapter: what `attn2mask adapt` recorded, and how to paint with the adapter.

The prose is in `templates/adapter.md`; this module computes its values.
"""

from pathlib import Path

from attn2mask.builders.errors import UserError
from attn2mask.builders.markdown import code, link
from attn2mask.builders.provenance import LORA_RECORD, LORA_WEIGHTS
from attn2mask.builders.records import read_record
from attn2mask.hub.cards.markdown import (
    Card,
    duration,
    merge,
    public_path,
    render,
    stated_license,
    version_rows,
)
from attn2mask.hub.cards.sources import option_rows
from attn2mask.hub.cards.statistics import tensor_shapes
from attn2mask.training.adaptation.config import AdaptConfig
from attn2mask.training.benchmarks import hub_name
from attn2mask.training.records import AdapterRecord

# Records that are shown as they are. The first two are peft's.
FACTS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "step": "steps",
    "loss": "loss at the end",
    "hardware": "hardware",
    "mixed_precision": "precision",
}


def adapter_card(folder: Path, repo_id: str, old: str | None = None, license: str | None = None) -> Card:
    """README.md of a LoRA adapter that diffusers loads, and its samples.

    Args:
        folder: holds `pytorch_lora_weights.safetensors`, and training_config.json or peft's
            adapter_config.json with at least the base model.
        repo_id: the name that `load_lora_weights` takes.
        old: the card in the repository. Its free text stays.
        license: the license of the adapter, if no record tells it.

    Raises UserError if the weights or the base model are missing, and for a license that contradicts the
    records.
    """
    from huggingface_hub import ModelCardData

    folder = Path(folder)
    if not (folder / LORA_WEIGHTS).exists():
        raise UserError(f"{folder} holds no {LORA_WEIGHTS}: give a LoRA adapter in diffusers' format")
    files = (folder / "adapter_config.json", folder / LORA_RECORD)
    record = {key: value for file in files for key, value in read_record(file, AdapterRecord).items()}
    base = record.get("base_model") or record.get("base_model_name_or_path")
    if not base:
        raise UserError(f"{folder}: neither {LORA_RECORD} nor adapter_config.json names the base_model")
    options = record.get("options", {})  # empty for an adapter that `attn2mask adapt` did not make
    prompt, hub, version = options.get("instance_prompt"), hub_name(base), record.get("base_version")
    data = ModelCardData(
        license=stated_license(record.get("license"), license, folder),
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=hub,
        base_model_relation="adapter" if hub else None,
        instance_prompt=prompt,
        tags=["attn2mask", "lora", "diffusers", "text-to-image", "diffusers-training"],
    )
    shapes = tensor_shapes(folder / LORA_WEIGHTS)
    ranks = sorted({shape[0] for name, shape in shapes.items() if "lora_A" in name or ".down." in name})
    facts = [(name, record[key]) for key, name in FACTS.items() if record.get(key) is not None]
    if found := record.get("data"):
        images = f"{found['images']:,} of {found['name']}, {found['with_caption']:,} with a caption"
        facts.insert(0, ("training images", images))
    if "seconds" in record:
        facts.append(("time", duration(record["seconds"])))
    model = [] if base == "embedded" else ["--model", public_path(base)]
    model += ["--revision", version] if hub and version else []
    samples = sorted((folder / "samples").glob("step-*.png"))
    text = render(
        data,
        "adapter",
        repo_id=repo_id,
        base=public_path(base),
        base_link=link(hub, f"https://huggingface.co/{hub}") if hub else code(public_path(base)),
        base_on_hub=hub is not None,
        base_version=version,
        tensors=f"{len(shapes):,}",
        ranks=ranks,
        facts=facts,
        prompt=prompt or "a photo of a street",
        table=record.get("table", "voc"),
        model_options=model,
        has_samples=bool(samples),
        has_training=bool(options),
        has_options=(folder / "adapt.yaml").exists(),
        preset=options.get("preset"),
        options=option_rows(AdaptConfig, options),
        versions=version_rows(record),
    )
    return Card(merge(text, old), {"assets/samples.png": samples[-1].read_bytes()} if samples else {})

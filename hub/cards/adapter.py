"""The card of a painter's LoRA adapter: what `training/adapt.py` recorded of it, and how to paint with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attn2mask.builders.errors import UserError
from attn2mask.builders.provenance import LORA_RECORD, LORA_WEIGHTS
from attn2mask.builders.rules import OURS, PAPER
from attn2mask.hub.cards.markdown import (
    CITATION,
    UNKNOWN,
    Card,
    compose,
    compose_blocks,
    details,
    duration,
    merge,
    read_record,
    shown,
    table,
    wrapped,
)
from attn2mask.hub.cards.segmenter import shapes_of
from attn2mask.training.adaptation.config import PRESETS
from attn2mask.training.benchmarks import hub_name

# What is in the paper's Table 2; what is not listed is ours.
TABLE_2 = {"learning_rate": 2e-5, "power": 1.0, "weight_decay": 0.01, "batch_size": 4, "max_steps": 40_000}
# Records that are shown as they stand; the first two are of peft's own.
FACTS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "instance_prompt": "instance prompt",
    "step": "steps",
    "loss": "loss at the end",
    "seed": "seed",
    "hardware": "hardware",
    "mixed_precision": "precision",
}
LIMITS = """## Limits

- It shifts how the painter paints, and may forget what it was not shown.
- How much better masks become with it is not recorded here: build with and without it, and measure.
"""


def adapter_card(folder: Path, repo_id: str, old: str | None = None) -> Card:
    """README.md of a LoRA adapter that diffusers loads, and its samples.

    Args:
        folder: holds `pytorch_lora_weights.safetensors`, and training_config.json or peft's
            adapter_config.json, with at least the base model.
        repo_id: what `load_lora_weights` will be given.
        old: the card that stands in the repository; its free text stays.

    Raises UserError where weights or base model are missing.
    """
    folder = Path(folder)
    if not (folder / LORA_WEIGHTS).exists():
        raise UserError(f"{folder} holds no {LORA_WEIGHTS}: is it a LoRA adapter in diffusers' format?")
    said = read_record(folder / "adapter_config.json") | read_record(folder / LORA_RECORD)
    base = said.get("base_model") or said.get("base_model_name_or_path")
    if not base:
        raise UserError(f"{folder}: neither {LORA_RECORD} nor adapter_config.json names the base_model")
    hub = hub_name(base)
    painted = sorted((folder / "samples").glob("step-*.png"))
    files = {"assets/samples.png": painted[-1].read_bytes()} if painted else {}
    blocks = {
        "about": _about(repo_id, said, base, hub, shapes_of(folder / LORA_WEIGHTS)),
        "use": _use(repo_id, said, base, hub),
        "training": _training(repo_id, said, base, hub, files),
        "limits": LIMITS,
        "citation": CITATION,
    }
    data = {
        "license": said.get("license") or UNKNOWN,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        **({"base_model": hub, "base_model_relation": "adapter"} if hub else {}),
        **({"instance_prompt": said["instance_prompt"]} if said.get("instance_prompt") else {}),
        "tags": ["attn2mask", "lora", "diffusers", "text-to-image", "diffusers-training"],
    }
    return Card(merge(compose(data, compose_blocks(blocks)), old), files)


def _about(
    repo_id: str, said: Mapping[str, Any], base: str, hub: str | None, shapes: Mapping[str, Sequence[int]]
) -> str:
    version = said.get("base_version")
    link = f"[{hub}](https://huggingface.co/{hub})" if hub else f"`{shown(base)}`"
    ranks = sorted({shape[0] for name, shape in shapes.items() if "lora_A" in name or ".down." in name})
    facts = [
        ("base model", link),
        *([("its revision" if hub else "its weights", f"`{version}`")] if version else []),
        ("tensors", f"{len(shapes):,}"),
        ("rank of the weights", ", ".join(map(str, ranks))),
    ]
    if data := said.get("data"):
        captions = f"{data['with_caption']:,} with a caption"
        facts.append(("pictures", f"{data['pictures']:,} of {data['name']}, {captions}"))
    facts += [(name, said[key]) for key, name in FACTS.items() if said.get(key) is not None]
    facts += [("time", duration(said["seconds"]))] if "seconds" in said else []
    return f"""# {repo_id.split("/")[-1]}

A LoRA adapter of {link}: it brings the painter's pictures close to those that it was shown, so that masks can
be read from its attention there, too.

{table(["", "recorded"], facts)}
"""


def _use(repo_id: str, said: Mapping[str, Any], base: str, hub: str | None) -> str:
    prompt = said.get("instance_prompt") or "a photo of a street"
    if base == "embedded":
        load = f'''from attn2mask.builders.painter import load_painter

pipe = load_painter("embedded", lora="{repo_id}").pipe'''
    else:
        load = f'''from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{shown(base)}")
pipe.load_lora_weights("{repo_id}")'''
    words = ["attn2mask", "build", said.get("table", "voc"), *_model(said, base, hub)]
    return f"""## Use

```python
{load}
pipe({json.dumps(prompt)}).images[0].save("picture.png")
```

A dataset painted with it:

```console
$ {wrapped([*words, "--lora", repo_id, "--out", "data/adapted"])}
```
"""


def _model(said: Mapping[str, Any], base: str, hub: str | None) -> list[str]:
    revision = ["--revision", said["base_version"]] if hub and said.get("base_version") else []
    return [] if base == "embedded" else ["--model", shown(base), *revision]


def _training(
    repo_id: str, said: Mapping[str, Any], base: str, hub: str | None, files: Mapping[str, bytes]
) -> str:
    """What `training/adapt.py` recorded; nothing for an adapter that it did not make."""
    if "settings" not in said:
        return ""
    painted = "\n![What it paints at the end](assets/samples.png)\n" if files else ""
    stated = [
        (name.replace("_", " "), value, f"{PAPER}, Table 2" if TABLE_2.get(name) == value else OURS)
        for name, value in said["settings"].items()
    ]
    commit = f"`{said['git_commit']}`" if said.get("git_commit") else None
    versions = [*said.get("versions", {}).items(), ("git commit", commit)]
    return f"""## Training
{painted}
{table(["setting", "value", "stated by"], stated)}

```console
$ {wrapped(list(_command(repo_id, said, _model(said, base, hub))))}
```

{details("Versions", table(["", "version"], versions))}

All of it stands in `{LORA_RECORD}`.
"""


def _command(repo_id: str, said: Mapping[str, Any], model: Sequence[str]) -> Iterator[str]:
    yield from ("accelerate", "launch", "-m", "attn2mask.training.adapt", "--data", said["data"]["name"])
    yield from model
    yield from ("--preset", said["preset"], "--instance-prompt", said["instance_prompt"])
    yield from ("--seed", str(said["seed"]))
    usual = asdict(PRESETS[said["preset"]])
    for name, value in said["settings"].items():
        if name == "prior_weight" and value:
            prior = said["prior"]
            yield from ("--prior-preservation", "--class-prompt", prior["class_prompt"])
            yield from ("--prior-images", str(prior["pictures"]), "--prior-weight", str(value))
        elif value != usual[name]:
            yield from (f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))
    yield from ("--output-dir", f"runs/{repo_id.split('/')[-1]}")

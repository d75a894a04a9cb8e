"""A text-to-image pipeline as the builders see it: prompts and seeds in, pictures and class words' maps out.

The embedded painter, a folder and a model of the Hub load and paint the same way. Each picture has its own
generator on the CPU, so its noise does not depend on the batch, the device or the process that paints it.
fp32 on the CPU, fp16 on a GPU.
"""

import hashlib
import inspect
import json
import logging
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from attn2mask.builders.errors import UserError
from attn2mask.builders.files import digest
from attn2mask.builders.prompts import Prompt
from attn2mask.builders.recorder import AttentionRecorder, layout_of

EMBEDDED = Path(__file__).parent / "embedded" / "painter"
# A LoRA in diffusers' format, and what `training/adapt.py` records beside it.
LORA_WEIGHTS, LORA_RECORD = "pytorch_lora_weights.safetensors", "training_config.json"
Maps = Mapping[str, Mapping[tuple[int, int], torch.Tensor]]

# What to do when no picture of a model can be used.
ADVICE = (
    "a model that overflows in float16 needs a VAE made for it, or float32 on the CPU "
    "(CUDA_VISIBLE_DEVICES=''); one with a safety checker needs other --captions"
)


@dataclass(frozen=True)
class Defaults:
    """How a model paints unless told otherwise; height and width in pixels."""

    steps: int
    guidance_scale: float
    height: int
    width: int


class Painter:
    """`facts` name weights and scheduler: two painters with the same facts paint the same."""

    def __init__(self, pipe: Any, defaults: Defaults, facts: dict[str, Any]):
        self.pipe, self.defaults, self.facts = pipe, defaults, facts

    @property
    def tokenizers(self) -> list[Any]:
        """One for each text encoder of the pipeline."""
        names = ("tokenizer", "tokenizer_2")
        return [tokenizer for name in names if (tokenizer := getattr(self.pipe, name, None)) is not None]

    def check(self, steps: int, height: int, width: int) -> None:
        """Raises UserError for a size or a number of steps that the model cannot make."""
        factor = self.pipe.vae_scale_factor
        if height % factor or width % factor:
            raise UserError(f"the model makes multiples of {factor} pixels, not {height} x {width}")
        most = self.pipe.scheduler.config.num_train_timesteps
        if steps > most:
            raise UserError(f"--steps {steps}: the model's scheduler has {most}")

    def paint(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        *,
        steps: int,
        guidance_scale: float,
        height: int,
        width: int,
        window: tuple[float, float] = (0.0, 1.0),
    ) -> tuple[np.ndarray, list[Maps], list[str | None]]:
        """Paint a batch of B prompts.

        Returns pictures (B, height, width, 3) uint8; for each picture its class words' maps, recorded in the
        `window` of steps (fractions of the run, 0 to 1); and for each a reason why it cannot be used, or
        None. Raises UserError when the device has too little memory.
        """
        self.pipe.scheduler.set_timesteps(steps)
        last = len(self.pipe.scheduler.timesteps) - 1
        spans = [dict(zip(prompt.words, prompt.spans, strict=True)) for prompt in prompts]
        recorder = AttentionRecorder(self.pipe, spans, steps=tuple(int(part * last + 0.5) for part in window))
        try:
            with recorder:
                pictures = self.pipe(
                    [prompt.text for prompt in prompts],
                    num_inference_steps=steps,
                    guidance_scale=guidance_scale,
                    height=height,
                    width=width,
                    generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                    output_type="np",
                ).images
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the GPU has no memory for {len(prompts)} pictures at a time: use a smaller --batch-size"
            ) from error
        images = (np.nan_to_num(pictures, nan=0.0) * 255).round().astype(np.uint8)
        return images, recorder.maps, [_fault(picture) for picture in pictures]


def load_painter(
    model: str = "embedded",
    revision: str | None = None,
    lora: str | None = None,
    lora_scale: float = 1.0,
    device: str | None = None,
    dtype: torch.dtype | None = None,
) -> Painter:
    """Load "embedded", a folder with a diffusers pipeline, or a model of the Hub.

    `lora` is a file, a folder or a Hub id; `device` is the GPU where there is one unless given, `dtype`
    float16 there and float32 on the CPU. Raises UserError for what does not load, has no cross-attention
    that can be read, or is a LoRA of another painter.
    """
    _silence()
    from diffusers import DiffusionPipeline

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float16 if device.startswith("cuda") else torch.float32)
    folder = folder_of(model)
    if model == "embedded" and folder is None:
        raise UserError(f"the embedded painter is not installed ({EMBEDDED}): use --model")
    if folder is None and (model.startswith((".", "/", "~")) or model.count("/") != 1):
        raise UserError(f"no model {model!r}: give a folder that exists, a Hub id (owner/name), or embedded")
    if folder is not None and not (folder / "model_index.json").is_file():
        raise UserError(f"--model {model} holds no diffusers pipeline (no model_index.json)")
    if folder is not None and revision is not None:
        raise UserError(f"--revision is for models of the Hub, not for --model {model}")
    try:
        snapshot = folder or Path(DiffusionPipeline.download(model, revision=revision))
        pipe = DiffusionPipeline.from_pretrained(snapshot, dtype=dtype, local_files_only=True)
        layout_of(pipe)
        pipe.to(device)
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(
                    False
                )  # as a LoRA leaves them: weights that want gradients round otherwise
    except Exception as error:  # diffusers, transformers and the Hub's client raise errors of many kinds
        reason = f"--model {model} can't be loaded: {_reason(error)}"
        advice = "" if folder else "; without network, --model embedded works"
        raise UserError(reason + advice) from error
    facts = {
        "model": folder.name if folder and model != "embedded" else model,
        # The Hub's cache names snapshots by their commit.
        "model_version": digest(folder) if folder else snapshot.name,
        "pipeline": type(pipe).__name__,
        "scheduler": {"class": type(pipe.scheduler).__name__, **_public(pipe.scheduler.config)},
    }
    if lora is not None:
        facts |= {"lora": Path(lora).name if Path(lora).exists() else lora, "lora_scale": lora_scale}
        check_base(lora, pipe.unet, model)
        try:
            pipe.load_lora_weights(lora, adapter_name="lora")
            pipe.set_adapters("lora", lora_scale)
        except Exception as error:
            reason = _reason(error)
            if "size mismatch" in str(error):
                reason = f"its weights do not fit --model {model}, a painter of another shape"
            raise UserError(f"--lora {lora} can't be loaded: {reason}") from error
        if Path(lora).exists():
            whole = (Path(lora) / LORA_WEIGHTS).is_file()
            facts["lora_version"] = digest(Path(lora), LORA_WEIGHTS if whole else "*")
    pipe.set_progress_bar_config(disable=True)
    return Painter(pipe, _defaults(pipe, model), facts)


def folder_of(model: str) -> Path | None:
    """Where a model lies on this machine; None for one of the Hub, and for one that is not there."""
    folder = EMBEDDED if model == "embedded" else Path(model)
    return folder if folder.is_dir() else None


def license_of(source: str, revision: str | None = None) -> str | list[str] | None:
    """The license of a painter or a LoRA, as its card (README.md) names it: beside a file, in a folder, or on
    the Hub. That of "embedded" is this project's. None where no card is to be had, or it names none.
    """
    from huggingface_hub import ModelCard, hf_hub_download
    from huggingface_hub.errors import HTTPError

    if source == "embedded":
        return metadata("attn2mask")["License-Expression"].lower()
    path = Path(source)
    try:
        if path.exists():
            card = (path if path.is_dir() else path.parent) / "README.md"
        else:
            card = hf_hub_download(source, "README.md", revision=revision)
        return ModelCard.load(card, ignore_metadata_errors=True).data.license
    except (OSError, ValueError, HTTPError):
        return None


def fingerprint(network: nn.Module) -> str:
    """SHA-256 over names, shapes and first values of a network's weights, in float16: the same whether it was
    loaded in float16 or float32.
    """
    total = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        total.update(f"{name} {tuple(weight.shape)}".encode())
        total.update(weight.flatten()[:64].to("cpu", torch.float16).numpy().tobytes())
    return f"sha256:{total.hexdigest()}"


def check_base(lora: str, unet: nn.Module, model: str) -> None:
    """Raises UserError where the record beside a LoRA names another painter than `model`; a LoRA without a
    record is anybody's.
    """
    record = _lora_record(lora)
    if "base_fingerprint" in record and record["base_fingerprint"] != fingerprint(unet):
        base = f"{record.get('base_model')} ({str(record.get('base_version'))[:14]})"
        raise UserError(
            f"--lora {lora} adapts {base}, and --model {model} has other weights: give the one it is of"
        )


def _lora_record(lora: str) -> dict[str, Any]:
    """What stands beside a LoRA, here or on the Hub; empty where nothing does that can be read."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    path = Path(lora)
    try:
        if path.exists():
            file = (path if path.is_dir() else path.parent) / LORA_RECORD
        else:
            file = Path(hf_hub_download(lora, LORA_RECORD))
        record = json.loads(file.read_text())
    except (OSError, ValueError, HTTPError):
        return {}
    return record if isinstance(record, dict) else {}


def _defaults(pipe: Any, model: str) -> Defaults:
    """The pipeline's own; the embedded painter was trained for few steps and weak guidance."""
    size = pipe.unet.config.sample_size
    height, width = (
        side * pipe.vae_scale_factor for side in (size if isinstance(size, (list, tuple)) else (size, size))
    )
    if model == "embedded":
        return Defaults(20, 3.0, height, width)
    arguments = inspect.signature(pipe.__call__).parameters
    return Defaults(
        arguments["num_inference_steps"].default, arguments["guidance_scale"].default, height, width
    )


def _fault(picture: np.ndarray) -> str | None:
    if not np.isfinite(picture).all():
        return "the picture is not a number (NaN)"
    return None if picture.any() else "the picture is black (the model's safety checker)"


def _silence() -> None:
    """Loading reports and bars of the libraries say nothing that a user of the builders could act on."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _reason(error: BaseException) -> str:
    """The first line of the error that began it all."""
    while error.__cause__ is not None:
        error = error.__cause__
    return textwrap.shorten(
        (str(error).strip() or type(error).__name__).splitlines()[0], 200, placeholder=" ..."
    )

"""The painter: a text-to-image diffusion pipeline. It makes images, and attention maps of their class words.

Each image has its own generator on the CPU, so that its noise does not depend on the batch, the device or the
process.
"""

import inspect
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.files import digest
from attn2mask.builders.prompts import Prompt, Rewrite
from attn2mask.builders.provenance import LORA_RECORD, LORA_WEIGHTS, check_base, lora_record
from attn2mask.builders.recorder import AttentionRecorder, layout_of

logger = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parent / "embedded" / "painter"
# What errors of diffusers hold if a file of weights has no LoRA, but a LoHa, a LoKr or nothing that it knows.
_UNKNOWN_WEIGHTS = ("hada_", "lokr_", "list of present adapters")
# "model.fp16.safetensors" and "model.fp16-00001-of-00002.safetensors" have a variant.
_VARIANT = re.compile(r"\.(\w+)(?:-\d+-of-\d+)?\.safetensors$")
TOKENIZERS = ("tokenizer", "tokenizer_2")  # the names of the tokenizers of a pipeline
Maps = Mapping[str, Mapping[tuple[int, int], torch.Tensor]]

# The advice if no image of a model can be used.
ADVICE = (
    "a model that overflows in float16 needs a VAE made for it, or float32 on the CPU "
    "(CUDA_VISIBLE_DEVICES=''); one with a safety checker needs other --captions"
)


@dataclass(frozen=True)
class Painting:
    """How images are painted: denoising steps, scale of classifier-free guidance, height and width in pixels,
    and the `window` of steps that is recorded, as fractions of the run (0 to 1).
    """

    steps: int
    guidance_scale: float
    height: int
    width: int
    window: tuple[float, float] = (0.0, 1.0)


class Painter:
    """A diffusers pipeline that was loaded by `load_painter`. `defaults` are the model's own settings.
    Painters with the same `facts` paint the same images.
    """

    def __init__(self, pipe: Any, defaults: Painting, facts: dict[str, Any]):
        self.pipe, self.defaults, self.facts = pipe, defaults, facts

    @property
    def tokenizers(self) -> list[Any]:
        """The tokenizers of the pipeline, one for each text encoder."""
        return [part for name in TOKENIZERS if (part := getattr(self.pipe, name, None)) is not None]

    @property
    def rewrite(self) -> Rewrite | None:
        """What the pipeline makes of a text before a tokenizer reads it, or None if it changes nothing.

        A word that stands for several vectors of textual inversion becomes several words.
        """
        return getattr(self.pipe, "maybe_convert_prompt", None)

    @property
    def instance_prompt(self) -> str | None:
        """The text that every prompt needs to get the look of the LoRA, or None."""
        return self.facts.get("instance_prompt")

    def latent_side(self, height: int, width: int) -> int:
        """The shorter side of the latents of an image of `height` x `width` pixels."""
        return min(height, width) // self.pipe.vae_scale_factor

    def check(self, steps: int, height: int, width: int) -> None:
        """Raises UserError for a size in pixels or a number of steps that the model does not support."""
        factor = self.pipe.vae_scale_factor
        if height % factor or width % factor:
            raise UserError(
                f"height and width must be multiples of {factor} for this model, not {height} x {width}"
            )
        most = self.pipe.scheduler.config.num_train_timesteps
        if steps > most:
            raise UserError(f"--steps {steps}: the model's scheduler has only {most} steps")

    def paint(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], painting: Painting
    ) -> tuple[np.ndarray, Sequence[Maps], list[str | None]]:
        """Paint a batch of B prompts.

        Returns images (B, height, width, 3) uint8; for each image the maps of its class words, recorded in
        the window of steps; and for each image the reason why it cannot be used, or None. Raises UserError if
        the device has too little memory.
        """
        self.pipe.scheduler.set_timesteps(painting.steps)
        last = len(self.pipe.scheduler.timesteps) - 1
        spans = [dict(zip(prompt.words, prompt.spans, strict=True)) for prompt in prompts]
        first_step, last_step = (int(part * last + 0.5) for part in painting.window)
        recorder = AttentionRecorder(self.pipe, spans, steps=(first_step, last_step))
        try:
            with recorder:
                pixels = self.pipe(
                    [prompt.text for prompt in prompts],
                    num_inference_steps=painting.steps,
                    guidance_scale=painting.guidance_scale,
                    height=painting.height,
                    width=painting.width,
                    generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                    output_type="np",
                ).images
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the GPU has too little memory for batches of {len(prompts)}: use a smaller --batch-size"
            ) from error
        images = (np.nan_to_num(pixels, nan=0.0) * 255).round().astype(np.uint8)
        return images, recorder.maps, [_fault(image) for image in pixels]


def load_painter(
    model: str = "embedded",
    revision: str | None = None,
    lora: str | None = None,
    lora_scale: float = 1.0,
    device: str | None = None,
    dtype: torch.dtype | None = None,
) -> Painter:
    """Load the embedded painter ("embedded"), a folder with a diffusers pipeline, or a model of the Hub.

    `lora` is a file, a folder or a repository of the Hub. `device` is by default the GPU, if there is one,
    and `dtype` is by default float16 there and float32 on the CPU. Raises UserError if the model or the LoRA
    cannot be loaded, the model has no readable cross-attention, or the LoRA adapts another painter.
    """
    _silence()
    from diffusers import DiffusionPipeline

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float16 if device.startswith("cuda") else torch.float32)
    folder = _checked_folder(model, revision)
    try:
        snapshot = folder or Path(DiffusionPipeline.download(model, revision=revision))
        pipe = DiffusionPipeline.from_pretrained(
            snapshot, dtype=dtype, variant=_variant(snapshot), local_files_only=True
        )
        layout_of(pipe)
        if hasattr(type(pipe), "do_perturbed_attention_guidance"):
            raise ValueError(
                f"a {type(pipe).__name__} uses perturbed-attention guidance (PAG), which cannot be recorded"
            )
        pipe.to(device)
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False)  # as a LoRA does; weights with gradients would round differently
    except Exception as error:  # diffusers, transformers and the Hub's client raise errors of many types
        raise _not_loaded(model, error) from error
    scheduler = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    facts: dict[str, Any] = {
        "model": folder.resolve().name if folder and model != "embedded" else model,
        # The cache of the Hub's client names snapshots by their commit.
        "model_version": digest(folder) if folder else snapshot.name,
        "pipeline": type(pipe).__name__,
        "scheduler": {"class": type(pipe.scheduler).__name__, **scheduler},
    }
    if lora is not None:
        facts |= {"lora": Path(lora).name if Path(lora).exists() else lora, "lora_scale": lora_scale}
        check_base(lora, pipe.unet, model)
        try:
            pipe.load_lora_weights(lora, adapter_name="lora")
            pipe.set_adapters("lora", lora_scale)
        except Exception as error:
            reason = first_line(error)
            if "size mismatch" in str(error):
                reason = f"its weights have other shapes than those of --model {model}"
            elif any(text in str(error) for text in _UNKNOWN_WEIGHTS):
                reason = "it holds no LoRA of a kind that diffusers reads (LoHa and LoKr are not supported)"
            raise UserError(f"--lora {lora} cannot be loaded: {reason}") from error
        if lora_scale and (prompt := _instance_prompt(lora)):
            facts["instance_prompt"] = prompt
        if Path(lora).exists():
            whole = (Path(lora) / LORA_WEIGHTS).is_file()
            facts["lora_version"] = digest(Path(lora), LORA_WEIGHTS if whole else "*")
    pipe.set_progress_bar_config(disable=True)
    return Painter(pipe, _defaults(pipe, model), facts)


def _variant(snapshot: Path) -> str | None:
    """The variant of a pipeline's weights, such as "fp16" in `model.fp16.safetensors`, if a part of it has no
    others; else None.
    """
    for part in snapshot.iterdir():
        weights = [file.name for file in part.glob("*.safetensors")]
        variants = [found[1] for name in weights if (found := _VARIANT.search(name))]
        if weights and len(variants) == len(weights):
            return variants[0]
    return None


def load_tokenizers(model: str, revision: str | None = None) -> list[Any]:
    """The tokenizers of a painter, as `Painter.tokenizers` has them, without its weights. `model`, `revision`
    and errors are those of `load_painter`.
    """
    _silence()
    from huggingface_hub import hf_hub_download
    from transformers import AutoTokenizer

    folder, index = _checked_folder(model, revision), "model_index.json"
    try:
        file = folder / index if folder else Path(hf_hub_download(model, index, revision=revision))
        parts = json.loads(file.read_text("utf-8"))
        names = [name for name in TOKENIZERS if any(parts.get(name) or ())]
        return [
            AutoTokenizer.from_pretrained(folder or model, subfolder=name, revision=revision)
            for name in names
        ]
    except Exception as error:  # transformers and the Hub's client raise errors of many types
        raise _not_loaded(model, error) from error


def _checked_folder(model: str, revision: str | None) -> Path | None:
    """The folder of a model, or None for a model of the Hub. Raises UserError if it cannot be either."""
    folder = folder_of(model)
    if model == "embedded" and folder is None:
        raise UserError(f"the embedded painter is not installed ({EMBEDDED}): use --model")
    if folder is None and (model.startswith((".", "/", "~")) or model.count("/") != 1):
        raise UserError(
            f"there is no model {model!r}: give a folder, a repository of the Hub (owner/name), or embedded"
        )
    if folder is not None and not (folder / "model_index.json").is_file():
        raise UserError(f"--model {model} is not a diffusers pipeline (it has no model_index.json)")
    if folder is not None and revision is not None:
        raise UserError(f"--revision is only for models of the Hub, not for --model {model}")
    return folder


def _not_loaded(model: str, error: Exception) -> UserError:
    advice = "" if folder_of(model) else "; --model embedded needs no network"
    return UserError(f"--model {model} cannot be loaded: {first_line(error)}{advice}")


def folder_of(model: str) -> Path | None:
    """The folder of a model on this machine; None for a model of the Hub, and if there is no such folder."""
    folder = EMBEDDED if model == "embedded" else Path(model)
    return folder if folder.is_dir() else None


def _instance_prompt(lora: str) -> str | None:
    """The instance prompt that prompts need to get the look of a LoRA, from the record beside it, or None.

    They need it if most of the LoRA's images had no caption, because these are learned with the instance
    prompt alone, and after prior preservation, which keeps the painter's own look for all other prompts.
    """
    match lora_record(lora):
        case {
            "options": {"instance_prompt": str(prompt), **options},
            "data": {"images": int(images), "with_caption": int(captioned)},
        }:
            if not options.get("prior_preservation") and 2 * captioned >= images:
                return None
            logger.info("--lora %s: its instance prompt %r is added to all prompts", lora, prompt.strip())
            return prompt.strip()
    logger.warning(
        "--lora %s has no %s with an instance prompt: nothing is added to the prompts, so the captions must "
        "hold its trigger word if it has one",
        lora,
        LORA_RECORD,
    )
    return None


def _defaults(pipe: Any, model: str) -> Painting:
    """The defaults of the pipeline. The embedded painter was trained for few steps and weak guidance."""
    size = np.broadcast_to(pipe.unet.config.sample_size, 2) * pipe.vae_scale_factor
    arguments = inspect.signature(pipe.__call__).parameters
    own = (arguments[name].default for name in ("num_inference_steps", "guidance_scale"))
    return Painting(*((20, 3.0) if model == "embedded" else own), *size.tolist())


def _fault(image: np.ndarray) -> str | None:
    if not np.isfinite(image).all():
        return "the image is not a number (NaN)"
    return None if image.any() else "the image is black (the model's safety checker)"


def _silence() -> None:
    """Switch off messages and progress bars of the libraries that a user could not act on."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

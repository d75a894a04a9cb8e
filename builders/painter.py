"""The painter: a text-to-image diffusion pipeline. It makes images, and attention maps of their class words.

Each image has its own generator on the CPU, so that its noise does not depend on the batch, the device or the
process.
"""

import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from attn2mask.builders.devices import default_device
from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.families import UNET, Family, denoiser_class, family_of
from attn2mask.builders.files import digest
from attn2mask.builders.layouts import LAYOUTS, Layout, Size, default_argument, layout_of
from attn2mask.builders.prompts import Prompt
from attn2mask.builders.provenance import LORA_RECORD, LORA_WEIGHTS, check_base, lora_record
from attn2mask.builders.recorder import AttentionRecorder
from attn2mask.builders.scores import BACKGROUND, SELF_ATTENTION, propagation_size
from attn2mask.builders.stretches import Rewrite, Stretch

logger = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parent / "embedded" / "painter"
# What errors of diffusers hold if a file of weights has no LoRA, but a LoHa, a LoKr or nothing that it knows.
_UNKNOWN_WEIGHTS = ("hada_", "lokr_", "list of present adapters")
# "model.fp16.safetensors" and "model.fp16-00001-of-00002.safetensors" have a variant.
_VARIANT = re.compile(r"\.(\w+)(?:-\d+-of-\d+)?\.safetensors$")
# What a pipeline has beside its weights, for `load_stretches`.
_NO_WEIGHTS = [
    "model_index.json",
    "tokenizer*/*",
    "scheduler/*",
    "unet/config.json",
    "transformer/config.json",
]
Offload = Literal["none", "model", "sequential", "group"]
Maps = Mapping[Size, torch.Tensor]
OnStep = Callable[[int, int], None]  # gets the number of denoising steps so far, and of all steps
# The key of what is recorded of a word: whether it is a background word, the word, and the stretch.
_Key = tuple[bool, str, str]

# The advice if no image of a model can be used.
ADVICE = (
    "a model that overflows in float16 needs --dtype bfloat16 or float32, or a VAE that was made for it; one "
    "with a safety checker needs other --captions"
)


# The advice if memory is too small for a batch.
LESS_MEMORY = (
    "use a smaller --batch-size or --offload; images that are painted after a change of --batch-size may"
    " differ in the last bit from those of the size before"
)


@dataclass(frozen=True)
class Painting:
    """How images are painted: denoising steps, scale of guidance, height and width in pixels, the
    `window` of steps that is recorded, as fractions of the run (0 to 1), the negative prompt, if there is
    one, the side of the self-attention that is recorded, as a fraction of the latents' side, or None, and
    whether the background words of the prompts are recorded.
    """

    steps: int
    guidance_scale: float
    height: int
    width: int
    window: tuple[float, float] = (0.0, 1.0)
    negative_prompt: str | None = None
    self_attention: float | None = None
    background: bool = False


class Painter:
    """A diffusers pipeline that was loaded by `load_painter`. `defaults` are the model's own settings.
    Painters with the same `facts` paint the same images.
    """

    def __init__(
        self, pipe: Any, defaults: Painting, facts: dict[str, Any], family: Family = UNET, device: str = "cpu"
    ):
        self.pipe, self.defaults, self.facts = pipe, defaults, facts
        self.family, self.device = family, device

    @cached_property
    def layout(self) -> Layout:
        """Where the model attends to text."""
        return layout_of(self.pipe)

    @cached_property
    def stretches(self) -> list[Stretch]:
        """Which tokenizers fill which stretch of the text keys."""
        return self.layout.stretches(self.pipe, self.family.text_length)

    @property
    def tokenizers(self) -> list[Any]:
        """The tokenizers of the pipeline that fill text keys."""
        return [tokenizer for stretch in self.stretches for tokenizer in stretch.tokenizers]

    @property
    def rewrite(self) -> Rewrite | None:
        """What the pipeline makes of a text before a tokenizer reads it, or None if it changes nothing."""
        return self.stretches[0].rewrite

    @property
    def instance_prompt(self) -> str | None:
        """The text that every prompt needs to get the look of the LoRA, or None."""
        return self.facts.get("instance_prompt")

    @property
    def pixel_multiple(self) -> int:
        """The number of pixels that heights and widths of images are multiples of."""
        return self.pipe.vae_scale_factor * self.layout.patch

    def latent_side(self, height: int, width: int) -> int:
        """The shorter side of the latents of an image of `height` x `width` pixels."""
        return min(height, width) // self.pipe.vae_scale_factor

    def check(self, steps: int, height: int, width: int) -> None:
        """Raises UserError for a size in pixels or a number of steps that the model does not support."""
        factor = self.pixel_multiple
        if height % factor or width % factor:
            raise UserError(
                f"height and width must be multiples of {factor} for this model, not {height} x {width}"
            )
        most = self.pipe.scheduler.config.num_train_timesteps
        if steps > most:
            raise UserError(f"--steps {steps}: the model's scheduler has only {most} steps")

    def paint(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        painting: Painting,
        on_step: OnStep | None = None,
    ) -> tuple[np.ndarray, Sequence[Mapping[str, Any]], list[str | None]]:
        """Paint a batch of B prompts.

        After each denoising step, `on_step` is called with the number of steps so far and of all steps.

        Returns images (B, height, width, 3) uint8; for each image the maps of its class words, recorded in
        the window of steps, the mean over the stretches of the text that have the word; if the painting asks
        for them, under the key `BACKGROUND` a list with the maps of each background word, and under the key
        `SELF_ATTENTION` the self-attention; and for each image the reason why it cannot be used, or None.
        Raises UserError if the device has too little memory, or if self-attention is asked for and cannot be
        recorded.
        """
        calls = self._calls(painting.steps)
        last = calls - 1
        first_step, last_step = (int(part * last + 0.5) for part in painting.window)
        recorder = AttentionRecorder(
            self.pipe,
            self._spans(prompts, painting.background),
            steps=(first_step, last_step),
            **self._self_attention(painting),
        )
        guided = self.family.arguments(painting.guidance_scale, painting.negative_prompt, len(prompts))
        try:
            with recorder, self._reporting(recorder, calls, on_step) if on_step else nullcontext():
                pixels = self.pipe(
                    [prompt.text for prompt in prompts],
                    num_inference_steps=painting.steps,
                    height=painting.height,
                    width=painting.width,
                    generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                    output_type="np",
                    **guided,
                ).images
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the GPU has too little memory for batches of {len(prompts)}: {LESS_MEMORY}"
            ) from error
        images = (np.nan_to_num(pixels, nan=0.0) * 255).round().astype(np.uint8)
        attention = [_by_word(maps, painting.background) for maps in recorder.maps]
        if painting.self_attention is not None:
            for maps, of_image in zip(attention, recorder.self_attention, strict=True):
                maps[SELF_ATTENTION] = of_image
        return images, attention, [_fault(image) for image in pixels]

    @contextmanager
    def _reporting(self, recorder: AttentionRecorder, calls: int, on_step: OnStep) -> Iterator[None]:
        """Call `on_step` after each of the `calls` of the denoiser that are recorded."""

        def report(*_: Any) -> None:
            on_step(recorder.calls, calls)

        hook = self.layout.denoiser.register_forward_hook(report)
        try:
            yield
        finally:
            hook.remove()

    def _self_attention(self, painting: Painting) -> dict[str, Any]:
        """What tells the recorder which self-attention to record; empty for none."""
        if painting.self_attention is None:
            return {}
        if not self.layout.image_layers:
            raise UserError(
                f"the self-attention of {self.facts['model']} cannot be recorded, which"
                " --store-self-attention and --propagation-power need"
            )
        side = self.latent_side(painting.height, painting.width)
        choose = partial(propagation_size, fraction=painting.self_attention, latent_side=side)
        return {"self_attention": choose}

    def _calls(self, steps: int) -> int:
        """The number of calls of the denoiser for each image: some schedulers need several for a step."""
        scheduler = self.pipe.scheduler
        # The shift depends on the size of the image, and does not change the number.
        shift = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(steps, **shift)
        return len(scheduler.timesteps)

    def _spans(self, prompts: Sequence[Prompt], background: bool) -> list[dict[_Key, tuple[int, ...]]]:
        """For each prompt, the positions of each class word, and of each background word if `background`, in
        each stretch that has it.
        """
        return [
            {
                (is_background, word, stretch.name): own
                for is_background, word, positions in _words(prompt, background)
                for stretch in self.stretches
                if (own := stretch.own(positions))
            }
            for prompt in prompts
        ]


def _words(prompt: Prompt, background: bool) -> Iterator[tuple[bool, str, tuple[int, ...]]]:
    """The class words of a prompt, and its background words if `background`: whether it is one of these, the
    word, and its positions.
    """
    for word, positions in zip(prompt.words, prompt.spans, strict=True):
        yield False, word, positions
    if background:
        for word, positions in zip(prompt.background, prompt.background_spans, strict=True):
            yield True, word, positions


def _by_word(maps: Mapping[_Key, Maps], background: bool) -> dict[str, Any]:
    """The maps of each class word: the mean over its stretches, each of which weighs the same. If
    `background`, the key `BACKGROUND` has a list with those of each background word.
    """
    streams: dict[tuple[bool, str], list[Maps]] = {}
    for (is_background, word, _), by_size in maps.items():
        streams.setdefault((is_background, word), []).append(by_size)
    merged = {
        word: {size: torch.stack([part[size] for part in parts]).mean(0) for size in parts[0]}
        for word, parts in streams.items()
    }
    found: dict[str, Any] = {word: own for (is_background, word), own in merged.items() if not is_background}
    if background:
        found[BACKGROUND] = [own for (is_background, _), own in merged.items() if is_background]
    return found


def load_painter(
    model: str = "embedded",
    revision: str | None = None,
    lora: str | None = None,
    lora_scale: float = 1.0,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    offload: Offload = "none",
    scheduler: str | None = None,
) -> Painter:
    """Load the embedded painter ("embedded"), a folder with a diffusers pipeline, or a model of the Hub.

    `lora` is a file, a folder or a repository of the Hub. `device` is by default that of `default_device`,
    and `dtype` is by default that of the model's family there and float32 on the CPU. `offload` keeps weights
    in the memory of the CPU until a GPU needs them: whole models, layers ("sequential"), or groups of layers.
    `scheduler` is the name of a class of diffusers. Raises UserError if the model or the LoRA cannot be
    loaded, the model has no readable cross-attention, the LoRA adapts another painter, the model cannot be
    painted with by the scheduler, or there is no GPU to offload from.
    """
    _silence()
    from diffusers import DiffusionPipeline

    device = device or default_device()
    if offload != "none" and device.startswith("cpu"):
        raise UserError(f"--offload {offload} is for a GPU, and there is none: leave it out")
    folder = _checked_folder(model, revision)
    try:
        snapshot = folder or Path(
            DiffusionPipeline.download(model, revision=revision, trust_remote_code=False)
        )
        family = _family(model, snapshot)
        dtype = dtype or (torch.float32 if device.startswith("cpu") else family.dtype)
        pipe = DiffusionPipeline.from_pretrained(
            snapshot,
            dtype=dtype,
            variant=_variant(snapshot),
            local_files_only=True,
            trust_remote_code=False,
            **_absent(snapshot),
        )
        layout = layout_of(pipe)
        if hasattr(type(pipe), "do_perturbed_attention_guidance"):
            raise ValueError(
                f"a {type(pipe).__name__} uses perturbed-attention guidance (PAG), which cannot be recorded"
            )
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False)  # as a LoRA does; weights with gradients would round differently
        if family.slicing:
            pipe.vae.enable_slicing()
        if scheduler is not None:
            pipe.scheduler = _scheduler(scheduler, pipe)
        if offload == "none":
            pipe.to(device)
    except UserError:
        raise
    except Exception as error:  # diffusers, transformers and the Hub's client raise errors of many types
        raise _not_loaded(model, error) from error
    settings = {
        key: _in_json(value) for key, value in pipe.scheduler.config.items() if not key.startswith("_")
    }
    facts: dict[str, Any] = {
        "model": folder.resolve().name if folder and model != "embedded" else model,
        # The cache of the Hub's client names snapshots by their commit.
        "model_version": digest(folder) if folder else snapshot.name,
        "pipeline": type(pipe).__name__,
        "scheduler": {"class": type(pipe.scheduler).__name__, **settings},
    }
    recorded = list(layout.chosen(None))
    if recorded != list(layout.layers):
        facts |= {"layers": recorded, "layers_source": layout.publication}
    if lora is not None:
        facts |= {"lora": Path(lora).name if Path(lora).exists() else lora, "lora_scale": lora_scale}
        check_base(lora, layout.denoiser, model)
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
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif offload == "group":
        pipe.enable_group_offload(torch.device(device), torch.device("cpu"), offload_type="leaf_level")
    pipe.set_progress_bar_config(disable=True)
    return Painter(pipe, _defaults(pipe, model, family), facts, family, device)


def _in_json(value: Any) -> Any:
    """A value that JSON can hold: numbers that are not finite as text, such as "-inf"."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _family(model: str, snapshot: Path) -> Family:
    """The family of a model, from the configs in its folder."""

    def config(name: str) -> dict[str, Any]:
        file = snapshot / name
        return json.loads(file.read_text("utf-8")) if file.is_file() else {}

    index = config("model_index.json")
    denoiser = config("unet/config.json") or config("transformer/config.json")
    name = snapshot.resolve().name if folder_of(model) else model
    return family_of(name, index, denoiser, config("scheduler/scheduler_config.json"))


def _absent(snapshot: Path) -> dict[str, None]:
    """The text encoders and tokenizers that a pipeline was saved without: diffusers wants None for each."""
    index = json.loads((snapshot / "model_index.json").read_text("utf-8"))
    texts = (name for name in index if name.startswith(("text_encoder", "tokenizer")))
    return {name: None for name in texts if index[name] == [None, None]}


def _scheduler(name: str, pipe: Any) -> Any:
    """A scheduler of diffusers by the name of its class, with the settings of the pipeline's own one.

    Raises UserError, which lists the choices, if it does not fit the model.
    """
    import diffusers

    kind = getattr(diffusers, name, None)
    fitting = {other.__name__: other for other in (type(pipe.scheduler), *pipe.scheduler.compatibles)}
    if kind is None or name not in fitting:
        names = ", ".join(sorted(fitting))
        raise UserError(f"--scheduler {name} does not fit this model: choose from {names}")
    return kind.from_config(pipe.scheduler.config)


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


def load_stretches(model: str, revision: str | None = None) -> list[Stretch]:
    """Which tokenizers of a painter fill which stretch of its text keys, without its weights. `model`,
    `revision` and errors are those of `load_painter`.
    """
    _silence()
    from diffusers import DiffusionPipeline
    from huggingface_hub import snapshot_download

    folder = _checked_folder(model, revision)
    try:
        snapshot = folder
        if snapshot is None:
            snapshot = Path(snapshot_download(model, revision=revision, allow_patterns=_NO_WEIGHTS))
        index = json.loads((snapshot / "model_index.json").read_text("utf-8"))
        layout = LAYOUTS.get(denoiser_class(index))
        if layout is None:
            raise ValueError(f"a {index['_class_name']} has no cross-attention that can be read")
        parts = {name for name, value in index.items() if isinstance(value, list) and value[0]}
        weights = {name: None for name in parts if not name.startswith(("tokenizer", "scheduler"))}
        left_out = {**_absent(snapshot), **weights}
        pipe = DiffusionPipeline.from_pretrained(
            snapshot, local_files_only=True, trust_remote_code=False, **left_out
        )
        return layout.stretches(pipe, _family(model, snapshot).text_length)
    except Exception as error:  # diffusers, transformers and the Hub's client raise errors of many types
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
    from huggingface_hub.errors import GatedRepoError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, GatedRepoError):
            return UserError(
                f"--model {model} is gated: ask for access at https://huggingface.co/{model}, and log in with"
                " `hf auth login`"
            )
        cause = cause.__cause__ or cause.__context__
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


def _defaults(pipe: Any, model: str, family: Family = UNET) -> Painting:
    """The defaults of the family, or else of the pipeline. The embedded painter was trained for few steps and
    weak guidance.
    """
    config = layout_of(pipe).denoiser.config
    side = getattr(config, "sample_size", None) or getattr(pipe, "default_sample_size", 128)
    size = np.broadcast_to(side, 2) * pipe.vae_scale_factor
    if model == "embedded":
        return Painting(20, 3.0, *size.tolist())
    steps, guidance_scale = family.steps, family.guidance_scale
    if steps is None:
        steps = default_argument(pipe, "num_inference_steps")
    if guidance_scale is None:
        guidance_scale = default_argument(pipe, "guidance_scale")
    return Painting(steps, guidance_scale, *size.tolist())


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

"""Where each family of text-to-image models attends to text. `docs/painters.md` lists the families.

A layout says which layers of the denoiser attend to text, in which order their keys stand, where the queries
of the image are, which entries of a batch have the prompts, and which layers are recorded by default. For
another family, write a subclass of `Layout` and give it to `AttentionRecorder(..., layout=...)`.
"""

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import nn

from attn2mask.builders.stretches import Rewrite, Stretch

Size = tuple[int, int]
Arguments = Mapping[str, Any]


class Layout(ABC):
    """How a denoiser, a UNet or a transformer, attends to text. The class attributes describe the family.

    Attributes:
        part: the name of the denoiser in the pipeline.
        pattern: a regular expression for the names of the layers that attend to text.
        image_pattern: the same for the layers in which the image attends to itself, beside cross-attention;
            "" if they cannot be read. In joint attention they are those of `pattern`.
        joint: whether the keys of these layers are those of text and image (joint attention), or of the text
            alone (cross-attention).
        text_first: whether the text stands before the image among the keys and queries of joint attention.
        prompts: which entries of a call with classifier-free guidance have the prompts: the "second half" of
            the batch, its "first half", or all entries of an "own call", which comes before the other one.
        published: the names of the layers that are recorded by default, or () for all.
        publication: where these layers were published.
        patch: the side of a patch of the latents, which is one position.
        denoiser: the denoiser itself.
        layers: the layers that attend to text, by name.
    """

    part: ClassVar[str] = "transformer"
    pattern: ClassVar[str]
    image_pattern: ClassVar[str] = ""
    joint: ClassVar[bool] = True
    text_first: ClassVar[bool] = True
    prompts: ClassVar[Literal["second half", "first half", "own call"]] = "second half"
    published: ClassVar[tuple[str, ...]] = ()
    publication: ClassVar[str] = ""
    patch: int = 2

    def __init__(self, pipe: Any):
        """The layout of a pipeline, or of its denoiser. Raises ValueError if no layer attends to text."""
        self.denoiser: nn.Module = getattr(pipe, self.part, pipe)
        self.layers = self._named(self.pattern)
        if not self.layers:
            raise ValueError(f"{type(self.denoiser).__name__} has no cross-attention that can be read")
        self._signature = inspect.signature(type(self.denoiser).forward)

    def _named(self, pattern: str) -> dict[str, nn.Module]:
        return {
            name: module
            for name, module in self.denoiser.named_modules()
            if re.fullmatch(pattern, name) and hasattr(module, "processor")
        }

    @property
    def image_layers(self) -> dict[str, nn.Module]:
        """The layers in which the image attends to itself, by name; empty if they cannot be read."""
        return self.layers if self.joint else self._named(self.image_pattern)

    def arguments(self, args: tuple[Any, ...], kwargs: Arguments) -> dict[str, Any]:
        """The arguments of a call of the denoiser by their names."""
        return self._signature.bind(self.denoiser, *args, **kwargs).arguments

    def entries(self, call: Arguments) -> int:
        """The number of entries in the batch of a call."""
        return len(call["hidden_states"])

    def text(self, call: Arguments) -> Any:
        """The text of a call. Of an "own call", the object is the same one in all calls with the prompts."""
        return call["encoder_hidden_states"]

    @abstractmethod
    def size(self, name: str, call: Arguments) -> Size:
        """The height and width (h, w) of the grid of positions in the layer `name`."""

    def image_queries(self, queries: int, places: int) -> slice:
        """Which of the queries are those of the `places` positions of the image."""
        if not self.joint:
            return slice(0, queries)
        return slice(queries - places, queries) if self.text_first else slice(0, places)

    def text_keys(self, keys: int, places: int) -> slice:
        """Which of the keys are those of the text, if the image has `places` positions."""
        if not self.joint:
            return slice(0, keys)
        return slice(0, keys - places) if self.text_first else slice(places, keys)

    @classmethod
    def stretches(cls, pipe: Any, text_length: int | None = None) -> list[Stretch]:
        """Which tokenizers of a pipeline, which needs no weights, fill which stretch of the text keys.

        `text_length` is the `max_sequence_length` that the pipeline is called with; None for its default.
        By default the last tokenizer of the pipeline alone fills the text keys.
        """
        names = [name for name in ("tokenizer_2", "tokenizer") if getattr(pipe, name, None) is not None]
        length = text_length or default_argument(pipe, "max_sequence_length")
        return [Stretch("text", (getattr(pipe, names[0]),), length, rewrite=cls.rewrite(pipe))]

    @classmethod
    def rewrite(cls, pipe: Any) -> Rewrite | None:
        """What the pipeline makes of a prompt before a tokenizer reads it, or None if it changes nothing.

        A word that stands for several vectors of textual inversion becomes several words.
        """
        return getattr(pipe, "maybe_convert_prompt", None)

    def chosen(self, layers: Any) -> dict[str, nn.Module]:
        """The layers to record. None stands for the published ones, or for all if the model has none of
        these; "all" for all; a list of names for those that begin with one of them.

        Raises ValueError for a name that no layer begins with.
        """
        if layers is None:
            published = {name: self.layers[name] for name in self.published if name in self.layers}
            return published or self.layers
        if layers == "all":
            return self.layers
        beginnings = (layers,) if isinstance(layers, str) else tuple(layers)
        for beginning in beginnings:
            if not any(name.startswith(beginning) for name in self.layers):
                names = list(self.layers)
                raise ValueError(
                    f"no layer that attends to text begins with {beginning!r}: the {len(names)} layers are "
                    f"named from {names[0]} to {names[-1]}"
                )
        return {name: layer for name, layer in self.layers.items() if name.startswith(beginnings)}


def default_argument(pipe: Any, name: str) -> Any:
    """The default of an argument of the pipeline's call, or None if it has no such argument."""
    argument = inspect.signature(type(pipe).__call__).parameters.get(name)
    return None if argument is None else argument.default


def lowered(text: str, tokenizer: Any) -> str:
    """What the pipelines of PixArt and Sana make of a prompt."""
    return text.lower().strip()


class UNet(Layout):
    """Stable Diffusion 1.x, 2.x and XL, Kolors, and their turbo and LCM models."""

    part = "unet"
    pattern, image_pattern = r".*\battn2", r".*\battn1"
    joint = False
    patch = 1

    @classmethod
    def stretches(cls, pipe: Any, text_length: int | None = None) -> list[Stretch]:
        names = ("tokenizer", "tokenizer_2")
        tokenizers = tuple(part for name in names if (part := getattr(pipe, name, None)) is not None)
        length = text_length or default_argument(pipe, "max_sequence_length")
        length = length or tokenizers[0].model_max_length
        # Kolors' tokenizer, the only slow one, fills the space before the text.
        padded = not tokenizers[0].is_fast
        return [Stretch("text", tokenizers, length, padded=padded, rewrite=cls.rewrite(pipe))]

    def entries(self, call: Arguments) -> int:
        return len(call["sample"])

    def size(self, name: str, call: Arguments) -> Size:
        height, width = call["sample"].shape[-2:]
        for _ in range(self._halvings(name)):
            height, width = (height + 1) // 2, (width + 1) // 2
        return height, width

    def _halvings(self, name: str) -> int:
        """How often the latents are halved on the way to a layer."""

        def resized(blocks: Any, part: str) -> int:
            return sum(getattr(block, part, None) is not None for block in blocks)

        group, _, rest = name.partition(".")
        downs, index = self.denoiser.down_blocks, int(rest.partition(".")[0]) if rest[:1].isdigit() else 0
        if group == "down_blocks":
            return resized(downs[:index], "downsamplers")
        ups = self.denoiser.up_blocks[:index] if group == "up_blocks" else ()
        return resized(downs, "downsamplers") - resized(ups, "upsamplers")


class Patches(Layout):
    """A transformer whose positions are patches of the latents (B, C, h * patch, w * patch)."""

    def __init__(self, pipe: Any):
        super().__init__(pipe)
        self.patch = self.denoiser.config.patch_size

    def size(self, name: str, call: Arguments) -> Size:
        height, width = call["hidden_states"].shape[-2:]
        return height // self.patch, width // self.patch


class StableDiffusion3(Patches):
    """Stable Diffusion 3 and 3.5. The text keys are 77 of CLIP, then those of T5."""

    pattern = r"transformer_blocks\.\d+\.attn"
    text_first = False
    published = ("transformer_blocks.9.attn",)
    publication = "Seg4Diff (NeurIPS 2025)"

    @classmethod
    def stretches(cls, pipe: Any, text_length: int | None = None) -> list[Stretch]:
        clip = Stretch("clip", (pipe.tokenizer, pipe.tokenizer_2), pipe.tokenizer_max_length)
        if pipe.tokenizer_3 is None:  # its keys are there, but hold nothing
            return [clip]
        length = text_length or default_argument(pipe, "max_sequence_length")
        return [clip, Stretch("t5", (pipe.tokenizer_3,), length, first=clip.length)]


class Flux(Layout):
    """FLUX.1 dev and schnell. The text keys are those of T5."""

    pattern = r"(single_)?transformer_blocks\.\d+\.attn"
    prompts = "own call"
    published = ("transformer_blocks.12.attn", "transformer_blocks.17.attn")
    publication = "Seg4Diff (NeurIPS 2025)"

    def size(self, name: str, call: Arguments) -> Size:
        last = call["img_ids"].reshape(-1, 3)[-1]  # which image, row and column
        _, row, column = last.tolist()
        return int(row) + 1, int(column) + 1


class PixArt(Patches):
    """PixArt-Alpha and PixArt-Sigma."""

    pattern, image_pattern = r"transformer_blocks\.\d+\.attn2", r"transformer_blocks\.\d+\.attn1"
    joint = False

    @classmethod
    def rewrite(cls, pipe: Any) -> Rewrite | None:
        return lowered


class Sana(Patches):
    """Sana. Its image attends to itself by linear attention, and to the text as others do.

    An instruction of many tokens stands before the prompt. Its first token and the last 299 become text keys.
    """

    pattern = r"transformer_blocks\.\d+\.attn2"
    joint = False

    @classmethod
    def stretches(cls, pipe: Any, text_length: int | None = None) -> list[Stretch]:
        length = text_length or default_argument(pipe, "max_sequence_length")
        instruction = "\n".join(default_argument(pipe, "complex_human_instruction") or ())
        skipped = len(pipe.tokenizer.encode(instruction)) - 2 if instruction else 0
        tokenizers = (pipe.tokenizer,)
        return [Stretch("text", tokenizers, length, before=instruction, skipped=skipped, rewrite=lowered)]


class QwenImage(Layout):
    """Qwen-Image. The text keys are those of the prompt and of what its template puts behind it."""

    pattern = r"transformer_blocks\.\d+\.attn"
    prompts = "own call"

    @classmethod
    def stretches(cls, pipe: Any, text_length: int | None = None) -> list[Stretch]:
        length = text_length or default_argument(pipe, "max_sequence_length")
        before, after = pipe.prompt_template_encode.split("{}")
        skipped = pipe.prompt_template_encode_start_idx
        return [Stretch("text", (pipe.tokenizer,), length, before=before, after=after, skipped=skipped)]

    def size(self, name: str, call: Arguments) -> Size:
        shape = call["img_shapes"][0]
        _, height, width = shape[0] if isinstance(shape, list) else shape
        return height, width


class ZImage(Layout):
    """Z-Image. The image's keys are filled up to a multiple of 32; behind them are those of the text."""

    pattern = r"layers\.\d+\.attention"
    text_first = False
    prompts = "first half"

    @classmethod
    def stretches(cls, pipe: Any, text_length: int | None = None) -> list[Stretch]:
        length = text_length or default_argument(pipe, "max_sequence_length")
        message = {"role": "user", "content": "{}"}
        template = pipe.tokenizer.apply_chat_template(
            [message], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        before, after = template.split("{}")
        return [Stretch("text", (pipe.tokenizer,), length, before=before, after=after)]

    def entries(self, call: Arguments) -> int:
        return len(call["x"])

    def text(self, call: Arguments) -> Any:
        return call["cap_feats"]

    def size(self, name: str, call: Arguments) -> Size:
        height, width = call["x"][0].shape[-2:]
        return height // self.patch, width // self.patch

    def text_keys(self, keys: int, places: int) -> slice:
        return slice(-(-places // 32) * 32, keys)


LAYOUTS: dict[str, type[Layout]] = {
    "UNet2DConditionModel": UNet,
    "SD3Transformer2DModel": StableDiffusion3,
    "FluxTransformer2DModel": Flux,
    "PixArtTransformer2DModel": PixArt,
    "SanaTransformer2DModel": Sana,
    "QwenImageTransformer2DModel": QwenImage,
    "ZImageTransformer2DModel": ZImage,
}
SUPPORTED = "Stable Diffusion 1.x, 2.x, XL, 3 and 3.5, Kolors, FLUX.1, PixArt, Sana, Qwen-Image, Z-Image"
COMPILED = "the model is compiled (torch.compile), which hides its attention: record it without torch.compile"
# Pipelines that have no attention to words, with the reason.
_WITHOUT_WORDS = {
    "KandinskyV22": "its decoder attends to the embedding of an image, not to words",
    "StableCascadeDecoder": "the decoder sees the words only through what its prior made of them",
}


def layout_of(pipe: Any) -> Layout:
    """The layout of a pipeline, or of its denoiser alone. Raises ValueError if it cannot be read."""
    name = type(pipe).__name__
    for beginning, reason in _WITHOUT_WORDS.items():
        if name.startswith(beginning):
            raise ValueError(f"{name} has no cross-attention that can be read: {reason}")
    parts = (getattr(pipe, part, None) for part in ("unet", "transformer"))
    kind = type(next((part for part in parts if part is not None), pipe))
    if kind.__name__ == "OptimizedModule":
        raise ValueError(COMPILED)
    for parent in kind.__mro__:
        if layout := LAYOUTS.get(parent.__name__):
            return layout(pipe)
    raise ValueError(
        f"{name} has no cross-attention that can be read: {kind.__name__} is of no known kind ({SUPPORTED}); "
        "for another one, give AttentionRecorder a layout"
    )

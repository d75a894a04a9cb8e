"""Cross-attention of chosen words, recorded while a diffusers pipeline paints.

    with AttentionRecorder(pipe, [{"dog": (5,)}]) as recorder:
        pipe("a photo of a dog")
    recorder.maps[0]["dog"]  # {(64, 64): tensor, (32, 32): tensor, ...}

Each cross-attention layer keeps its own processor, wrapped: it paints as ever, so images stay bit-identical
under any processor, and hooks on the projections lend the queries and keys that it computed, LoRA included.
From these the softmax over the whole text is computed once more, in float32, for the conditional half of
guidance only, and just the wanted words are added to one running mean for each resolution. That costs one
small matrix product a layer; memory grows with images, words and resolutions, never with steps. Fused
projections and other ways to bypass `to_q` and `to_k` raise instead of recording nonsense.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

Size = tuple[int, int]

# The largest attention that stands in memory at a time, in float32 values: 2 MiB on CPUs, where it stays in a
# core's cache; elsewhere 128 MiB.
CPU_CHUNK, CHUNK = 2**19, 2**25


class UNetLayout:
    """Where pixels attend to text in UNets (Stable Diffusion 1.x, 2.x, XL): the layers named `attn2`."""

    def __init__(self, pipe: Any):
        self.denoiser = pipe.unet
        self.layers: dict[str, nn.Module] = {
            name: module
            for name, module in pipe.unet.named_modules()
            if name.endswith("attn2") and hasattr(module, "set_processor")
        }

    def projections(self, layer: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Modules whose outputs are the queries (B, h * w, heads * d) and keys (B, tokens, heads * d)."""
        return layer.to_q, layer.to_k

    def size(self, latents: Size, pixels: int) -> Size:
        """(h, w) of a layer of `pixels` queries: each level halves the latents' (H, W), rounding up."""
        height, width = latents
        while height * width > pixels:
            height, width = (height + 1) // 2, (width + 1) // 2
        if height * width != pixels:
            raise RuntimeError(
                f"a cross-attention layer of {pixels} positions fits no level of {latents} latents"
            )
        return height, width


def layout_of(pipe: Any) -> UNetLayout:
    """The layout of a pipeline's attention. Raises ValueError where no cross-attention can be read."""
    if hasattr(getattr(pipe, "unet", None), "named_modules") and (layout := UNetLayout(pipe)).layers:
        return layout
    raise ValueError(
        f"{type(pipe).__name__} has no cross-attention that can be read: a UNet with attn2 layers is needed "
        "(Stable Diffusion 1.x, 2.x, XL)"
    )


class AttentionRecorder:
    """Records one run of `pipe`, inside `with`; afterwards `maps` has what it saw.

    `spans` has an entry for each image, in the batch's order (with `num_images_per_prompt` a prompt's
    images stand together): a dict from word to its token positions, BOS being 0, of all its sub-tokens and
    occurrences. `steps` is the window (first, last) of the denoiser's calls to record, from 0 and inclusive;
    None records all.

    Raises ValueError for spans without a position, a window that is none, and pipelines without readable
    cross-attention; while the pipeline runs, ValueError where images and spans differ in number, or a
    position lies outside the text; RuntimeError where queries or keys can't be read, and, on exit, where
    something replaced the recorder or nothing was recorded.
    """

    def __init__(
        self, pipe: Any, spans: Sequence[Mapping[str, Sequence[int]]], steps: tuple[int, int] | None = None
    ):
        for words in spans:
            for word, positions in words.items():
                if not positions or min(positions) < 0:
                    raise ValueError(f"the word {word!r} has no valid token positions: {list(positions)}")
        if steps is not None and not 0 <= steps[0] <= steps[1]:
            raise ValueError(
                f"the window of steps must be (first, last) with 0 <= first <= last, not {steps}"
            )
        self.pipe = pipe
        self.layout = layout_of(pipe)
        self.spans = [{word: tuple(positions) for word, positions in words.items()} for words in spans]
        self.steps = steps
        self._step = -1
        self._latents: Size = (0, 0)
        self._weights: torch.Tensor | None = None
        self._sums: dict[Size, torch.Tensor] = {}
        self._counts: dict[Size, int] = {}

    def __enter__(self) -> "AttentionRecorder":
        self._taps = [_Tap(self, name, layer) for name, layer in self.layout.layers.items()]
        self._hook = self.layout.denoiser.register_forward_pre_hook(self._start_step, with_kwargs=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()
        replaced = [tap.name for tap in self._taps if not tap.remove()]
        if kind is not None:
            return
        if replaced:
            raise RuntimeError(
                f"the recorder's processors were replaced while it ran ({replaced[0]}): call "
                "enable_attention_slicing and its like before recording"
            )
        if not self._counts:
            window = "" if self.steps is None else f", or ended before step {self.steps[0]}"
            raise RuntimeError(f"nothing was recorded: the pipeline did not run{window}")

    @property
    def maps(self) -> list[dict[str, dict[Size, torch.Tensor]]]:
        """For each image, word -> (h, w) -> float32 tensor (h, w) on the pipeline's device.

        Values are the probability, 0 to 1, that a place attends to the word: its mean over heads, layers of
        that resolution, the word's positions, and the steps of the window.
        """
        means = {size: total / self._counts[size] for size, total in self._sums.items()}
        return [
            {
                word: {size: mean[image, column].reshape(size) for size, mean in means.items()}
                for column, word in enumerate(words)
            }
            for image, words in enumerate(self.spans)
        ]

    @property
    def _recording(self) -> bool:
        return self.steps is None or self.steps[0] <= self._step <= self.steps[1]

    def _start_step(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        latents = args[0] if args else kwargs["sample"]
        images = len(self.spans)
        guided = getattr(self.pipe, "do_classifier_free_guidance", len(latents) == 2 * images)
        if len(latents) != images * (2 if guided else 1):
            painted = len(latents) // 2 if guided else len(latents)
            raise ValueError(f"the pipeline paints {painted} images, but spans has entries for {images}")
        self._step += 1
        self._latents = tuple(latents.shape[-2:])

    def _averaging(self, tokens: int, device: torch.device) -> torch.Tensor:
        """(images, words, tokens): a product with it averages each word's positions."""
        if self._weights is None:
            weights = torch.zeros(len(self.spans), max(map(len, self.spans), default=0), tokens)
            for image, words in enumerate(self.spans):
                for column, (word, positions) in enumerate(words.items()):
                    if max(positions) >= tokens:
                        outside = f"position {max(positions)}, outside the text of {tokens} tokens"
                        raise ValueError(f"the word {word!r} has {outside}")
                    for position in positions:
                        weights[image, column, position] += 1 / len(positions)
            self._weights = weights.to(device)
        return self._weights

    @torch.no_grad()
    def _add(
        self, layer: nn.Module, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None
    ) -> None:
        """Add one layer's attention to the sums.

        `query` is (B, h * w, heads * d), `key` (B, tokens, heads * d), and `mask`, which is added to the
        logits, (B, 1, tokens) or None.
        """
        conditional = slice(-len(self.spans), None)  # guidance puts the unconditional half first
        weights = self._averaging(key.shape[1], key.device)
        query, key = (x[conditional].unflatten(-1, (layer.heads, -1)).transpose(1, 2) for x in (query, key))
        places = query.shape[2]
        size = self.layout.size(self._latents, places)
        if size not in self._sums:
            self._sums[size] = weights.new_zeros(*weights.shape[:2], places)
            self._counts[size] = 0
        total = self._sums[size]
        # Images whole, as many as fit at once; where none fits, parts of one.
        fitting = (CPU_CHUNK if key.device.type == "cpu" else CHUNK) // (layer.heads * key.shape[2])
        images, columns = max(1, fitting // places), min(max(1, fitting), places)
        for first in range(0, len(self.spans), images):
            part = slice(first, first + images)
            scaled = key[part].float() * layer.scale
            for start in range(0, places, columns):
                there = slice(start, start + columns)
                logits = scaled @ query[part, :, there].float().transpose(2, 3)
                if mask is not None:
                    logits += mask[conditional][part, :, :, None]
                total[part, :, there] += weights[part] @ logits.softmax(dim=2).mean(dim=1)
        self._counts[size] += 1


class _Tap:
    """A layer's own processor, wrapped: runs it unchanged, then hands queries and keys to the recorder."""

    def __init__(self, recorder: AttentionRecorder, name: str, layer: nn.Module):
        self.recorder, self.name, self.layer = recorder, name, layer
        self.processor = layer.processor
        # diffusers passes on only the keyword arguments that it finds in the signature of this attribute.
        self.__call__ = self.processor.__call__
        self.seen: dict[str, torch.Tensor] = {}
        query, key = recorder.layout.projections(layer)
        self.hooks = [
            query.register_forward_hook(lambda module, args, output: self.seen.update(query=output)),
            key.register_forward_hook(lambda module, args, output: self.seen.update(key=output)),
        ]
        layer.set_processor(self)

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        output = self.processor(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)
        if self.recorder._recording:
            if len(self.seen) < 2:
                raise RuntimeError(
                    f"{self.name} did not use its query and key projections: unfuse them "
                    "(unfuse_qkv_projections), and load LoRA weights before recording"
                )
            self.recorder._add(attn, self.seen["query"], self.seen["key"], attention_mask)
        self.seen.clear()
        return output

    def remove(self) -> bool:
        """Put the processor back; False where something else had taken the recorder's place."""
        for hook in self.hooks:
            hook.remove()
        in_place = self.layer.processor is self
        self.layer.set_processor(self.processor)
        return in_place

"""Records the cross-attention of chosen words while a diffusers pipeline paints.

    with AttentionRecorder(pipe, [{"dog": (5,)}]) as recorder:
        pipe("a photo of a dog")
    recorder.maps[0]["dog"]  # {(64, 64): tensor, (32, 32): tensor, ...}

The processor of each cross-attention layer runs unchanged, so the images are bit-identical with and without
the recorder. Hooks on the projections get the queries and keys that were computed, with the LoRA if there is
one. From these the recorder computes the softmax over all text tokens again, in float32, for the conditional
half of classifier-free guidance alone. It adds the chosen words to one running mean for each resolution, so
that memory does not grow with the steps.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

Size = tuple[int, int]

# The float32 values of attention in memory at a time: 2 MiB on CPUs, the cache of a core, else 128 MiB.
CPU_CHUNK, CHUNK = 2**19, 2**25


class UNetLayout:
    """The cross-attention layers of a UNet (Stable Diffusion 1.x, 2.x, XL), which are named `attn2`."""

    def __init__(self, pipe: Any):
        self.denoiser = getattr(pipe, "unet", pipe)
        self.layers: dict[str, nn.Module] = {
            name: module
            for name, module in self.denoiser.named_modules()
            if name.endswith("attn2") and hasattr(module, "set_processor")
        }

    def projections(self, layer: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The modules that compute the queries (B, h * w, heads * d) and the keys (B, tokens, heads * d)."""
        return layer.to_q, layer.to_k

    def spatial(self, name: str) -> nn.Module:
        """The module around a layer whose input is (B, C, h, w): its positions are those of the queries."""
        block = name.removesuffix(".attn2").partition(".transformer_blocks.")[0]
        return self.denoiser.get_submodule(block)


def layout_of(pipe: Any) -> UNetLayout:
    """The attention layers of a pipeline or a UNet. Raises ValueError if no cross-attention can be read."""
    if hasattr(getattr(pipe, "unet", pipe), "named_modules") and (layout := UNetLayout(pipe)).layers:
        return layout
    raise ValueError(
        f"{type(pipe).__name__} has no cross-attention that can be read: a UNet with attn2 layers is needed "
        "(Stable Diffusion 1.x, 2.x, XL)"
    )


class AttentionRecorder:
    """A context manager that records one run of `pipe`. Afterwards `maps` has the attention.

    Args:
        pipe: a pipeline, or its UNet alone.
        spans: for each image of the batch, in its order, a dict from word to the token positions of all its
            sub-tokens and occurrences. Position 0 is the start-of-text token. With `num_images_per_prompt`,
            the images of a prompt are next to each other.
        steps: the window (first, last) of denoising steps to record, from 0, both included; None records all.

    Raises:
        ValueError: a word has no position, the window is not valid, or the pipeline has no cross-attention
            that can be read; while the pipeline runs: `spans` has another number of images, a position lies
            outside the text, or the pipeline uses perturbed-attention guidance (PAG).
        RuntimeError: the queries or keys cannot be read, tokens of the image are merged, or the pipeline runs
            a second time; on exit: something replaced the recorder's processors, or nothing was recorded.
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
        self._timesteps: Any = None
        self._weights: torch.Tensor | None = None
        self._sums: dict[Size, torch.Tensor] = {}
        self._counts: Counter[Size] = Counter()

    def __enter__(self) -> "AttentionRecorder":
        self._taps = [_Tap(self, name, layer) for name, layer in self.layout.layers.items()]
        self._hook = self.layout.denoiser.register_forward_pre_hook(self._start_step, with_kwargs=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
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
        """For each image, a dict from word to its maps: (h, w) -> float32 tensor, on the pipeline's device.

        A value is the attention probability of the word at a pixel, 0 to 1: the mean over heads, layers of
        that resolution, positions of the word, and steps of the window.
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
        if getattr(self.pipe, "do_perturbed_attention_guidance", False):
            raise ValueError(
                "the pipeline uses perturbed-attention guidance (PAG), whose third part of the batch is not"
                " supported: use the pipeline without PAG, or pag_scale=0"
            )
        # A run sets the timesteps of its scheduler once, at its start, as a new tensor.
        timesteps = getattr(getattr(self.pipe, "scheduler", None), "timesteps", None)
        if self._step < 0:
            self._timesteps = timesteps
        elif timesteps is not self._timesteps:
            raise RuntimeError(
                "the pipeline runs a second time while the recorder is active: record each run with a new "
                "AttentionRecorder"
            )
        latents = args[0] if args else kwargs["sample"]
        images = len(self.spans)
        guided = getattr(self.pipe, "do_classifier_free_guidance", len(latents) == 2 * images)
        if len(latents) != images * (2 if guided else 1):
            painted = len(latents) // 2 if guided else len(latents)
            raise ValueError(f"the pipeline paints {painted} images, but spans has entries for {images}")
        self._step += 1

    def _averaging(self, tokens: int, device: torch.device) -> torch.Tensor:
        """Weights (images, words, tokens). A product with them averages over the positions of each word."""
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
        self, layer: nn.Module, size: Size, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None
    ) -> None:
        """Add one layer of `size` (h, w): `query` (B, h * w, heads * d), `key` (B, tokens, heads * d), and,
        added to the logits, `mask` (B, 1, tokens) or None.
        """
        conditional = slice(-len(self.spans), None)  # with guidance, the unconditional half comes first
        weights = self._averaging(key.shape[1], key.device)
        query, key = (x[conditional].unflatten(-1, (layer.heads, -1)).transpose(1, 2) for x in (query, key))
        places = query.shape[2]
        total = self._sums.setdefault(size, weights.new_zeros(*weights.shape[:2], places))
        # As many whole images as fit at a time; if not one fits, parts of it.
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
    """Wraps the processor of a layer: runs it unchanged, then gives queries and keys to the recorder."""

    def __init__(self, recorder: AttentionRecorder, name: str, layer: nn.Module):
        self.recorder, self.name, self.layer = recorder, name, layer
        self.processor = layer.processor
        # diffusers passes on only the keyword arguments that it finds in the signature of this attribute.
        self.__call__ = self.processor.__call__  # type: ignore[method-assign]
        self.seen: dict[str, torch.Tensor] = {}
        self.size: Size = (0, 0)
        query, key = recorder.layout.projections(layer)
        self.hooks = [
            recorder.layout.spatial(name).register_forward_pre_hook(self._start),
            query.register_forward_hook(lambda module, args, output: self.seen.update(query=output)),
            key.register_forward_hook(lambda module, args, output: self.seen.update(key=output)),
        ]
        layer.set_processor(self)

    def _start(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        height, width = args[0].shape[-2:]
        self.size = height, width

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
            query, (height, width) = self.seen["query"], self.size
            if query.shape[1] != height * width:
                raise RuntimeError(
                    f"{self.name} has {query.shape[1]} positions on a grid of {height} x {width}: tokens are "
                    "merged (tomesd and its like); remove this before recording (tomesd.remove_patch)"
                )
            self.recorder._add(attn, self.size, query, self.seen["key"], attention_mask)
        self.seen.clear()
        return output

    def remove(self) -> bool:
        """Restore the processor. Returns False if something else had replaced the recorder's processor."""
        for hook in self.hooks:
            hook.remove()
        in_place = self.layer.processor is self
        self.layer.set_processor(self.processor)
        return in_place

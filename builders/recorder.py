"""Records how much the image attends to chosen words while a diffusers pipeline paints.

    with AttentionRecorder(pipe, [{"dog": (5,)}]) as recorder:
        pipe("a photo of a dog")
    recorder.maps[0]["dog"]  # {(64, 64): tensor, (32, 32): tensor, ...}

The layers run unchanged, so that the images are bit-identical with and without the recorder. A tap reads the
queries and keys of each layer, and the layout of the model says which of them are those of the image, of the
text and of the prompts. From these the recorder computes the attention again, for the prompts alone. It adds
the chosen words to one running mean for each resolution, so that memory does not grow with the steps.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from attn2mask.builders import tap
from attn2mask.builders.layouts import COMPILED, Arguments, Layout, Size, layout_of
from attn2mask.builders.tap import Attention, Tap

# The float32 values of attention in memory at a time: 2 MiB on CPUs, the cache of a core, else 128 MiB.
CPU_CHUNK, CHUNK = 2**19, 2**25


class AttentionRecorder:
    """A context manager that records one run of `pipe`. Afterwards `maps` has the attention.

    Args:
        pipe: a pipeline, or its denoiser (UNet or transformer) alone.
        spans: for each image of the batch, in its order, a dict from word to the positions of all its
            sub-tokens and occurrences among the text keys, as attention sees them. For Stable Diffusion,
            position 0 is CLIP's start-of-text token. With `num_images_per_prompt`, the images of a prompt
            are next to each other.
        steps: the window (first, last) of denoising steps to record, from 0, both included; None records all.
        layers: None records the layers that are published for the model, or all if there are none; "all"
            records all layers that attend to text; a list of names those that begin with one of them.
        over: what the softmax runs over: "text" for the text keys alone, "joint" for the keys of text and
            image; None for what the layers themselves do.
        layout: a subclass of `Layout` for a model of a kind that is not known.
        self_attention: a function that chooses, from the sizes (h, w) of the layers in which the image
            attends to itself, the one to record; None records no self-attention.

    Raises:
        ValueError: a word has no position, the window is not valid, a layer does not exist, `over` is "joint"
            for cross-attention, the model is compiled, or it has no attention that can be read; while
            the pipeline runs: `spans` has another number of images, a position lies outside the text, or the
            pipeline uses perturbed-attention guidance (PAG).
        RuntimeError: the queries or keys cannot be read, tokens of the image are merged, or the pipeline runs
            a second time; on exit: the processors of the layers were replaced, or nothing was recorded.
    """

    def __init__(
        self,
        pipe: Any,
        spans: Sequence[Mapping[Any, Sequence[int]]],
        steps: tuple[int, int] | None = None,
        layers: Literal["all"] | Iterable[str] | None = None,
        over: Literal["joint", "text"] | None = None,
        *,
        layout: type[Layout] | None = None,
        self_attention: Callable[[Sequence[Size]], Size] | None = None,
    ):
        for words in spans:
            for word, positions in words.items():
                if not positions or min(positions) < 0:
                    raise ValueError(f"the word {word!r} has no valid token positions: {list(positions)}")
        if steps is not None and not 0 <= steps[0] <= steps[1]:
            raise ValueError(
                f"the window of steps must be (first, last) with 0 <= first <= last, not {steps}"
            )
        if over not in (None, "joint", "text"):
            raise ValueError(f"over must be 'joint', 'text' or None, not {over!r}")
        self.pipe = pipe
        self.layout = layout_of(pipe) if layout is None else layout(pipe)
        if over == "joint" and not self.layout.joint:
            kind = type(self.layout.denoiser).__name__
            raise ValueError(
                f"over='joint' is for joint attention: the layers of {kind} are cross-attention, "
                "whose keys are those of the text alone"
            )
        if self_attention is not None and not self.layout.image_layers:
            kind = type(self.layout.denoiser).__name__
            raise ValueError(f"the self-attention of {kind} cannot be recorded")
        self.layers = self.layout.chosen(layers)
        self.choose_size = self_attention
        self.joint = self.layout.joint and over != "text"
        self.spans = [{word: tuple(positions) for word, positions in words.items()} for words in spans]
        self.steps = steps
        self._step = -1
        self._timesteps: Any = None
        self._text: Any = None
        self._conditional: slice | None = None
        self._sizes: dict[str, Size] = {}
        self._weights: dict[Any, torch.Tensor] = {}
        self._waiting: dict[Any, list[Attention]] = {}
        self._sums: dict[Size, torch.Tensor] = {}
        self._counts: Counter[Size] = Counter()
        self._self_layers: set[str] = set()
        self._self_sums: dict[Size, torch.Tensor] = {}
        self._self_counts: Counter[Size] = Counter()

    def __enter__(self) -> "AttentionRecorder":
        if any(module._compiled_call_impl is not None for module in self.layout.denoiser.modules()):
            raise ValueError(COMPILED)
        self._processors = {name: layer.processor for name, layer in self.layers.items()}
        denoiser = self.layout.denoiser
        self._hooks = [
            denoiser.register_forward_pre_hook(self._start_call, with_kwargs=True),
            denoiser.register_forward_hook(self._end_call),
        ]
        self._taps = [
            Tap(layer, lambda: self._recording, partial(self._receive, name))
            for name, layer in self.layers.items()
        ]
        tap.watch()
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        tap.unwatch()
        for part in (*self._hooks, *self._taps):
            part.remove()
        replaced = [
            name for name, layer in self.layers.items() if layer.processor is not self._processors[name]
        ]
        for name in replaced:
            self.layers[name].set_processor(self._processors[name])
        if kind is not None:
            return
        if replaced:
            raise RuntimeError(
                f"the attention processors were replaced while the recorder ran ({replaced[0]}): call "
                "enable_attention_slicing and its like before recording"
            )
        if not self._counts:
            window = "" if self.steps is None else f", or ended before step {self.steps[0]}"
            raise RuntimeError(f"nothing was recorded: the pipeline did not run{window}")

    @property
    def maps(self) -> list[dict[Any, dict[Size, torch.Tensor]]]:
        """For each image, a dict from word to its maps: (h, w) -> float32 tensor, on the pipeline's device.

        A value is the attention probability of the word at a position, 0 to 1: the mean over heads, layers of
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
    def self_attention(self) -> list[dict[Size, torch.Tensor]]:
        """For each image, {(h, w): float32 tensor (h * w, h * w)} of the chosen size, or {} if none was to be
        recorded. A value is the probability that a position (row) attends to another one (column): the mean
        over heads, layers of that resolution and steps. Each row has the sum 1.
        """
        means = {size: total / self._self_counts[size] for size, total in self._self_sums.items()}
        return [{size: mean[image] for size, mean in means.items()} for image in range(len(self.spans))]

    @property
    def calls(self) -> int:
        """The number of calls of the denoiser with the prompts, so far."""
        return self._step + 1

    @property
    def _recording(self) -> bool:
        within = self.steps is None or self.steps[0] <= self._step <= self.steps[1]
        return within and self._conditional is not None

    # One call of the denoiser.

    def _start_call(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
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
        call = self.layout.arguments(args, kwargs)
        self._conditional = self._prompt_entries(call)
        if not self._sizes:
            self._sizes = {name: self.layout.size(name, call) for name in self.layers}
            self._tap_self_attention(call)
        if self._conditional is not None:
            self._step += 1

    def _prompt_entries(self, call: Arguments) -> slice | None:
        """The entries of this call that have the prompts, or None if the call has none, or repeats them."""
        entries, images, prompts = self.layout.entries(call), len(self.spans), self.layout.prompts
        guided = False
        if prompts == "own call":
            text = self.layout.text(call)
            if self._step < 0:
                self._text = text
            if text is not self._text:
                return None
        else:
            guided = getattr(self.pipe, "do_classifier_free_guidance", entries == 2 * images)
            if guided and entries == images and (self._step >= 0 or prompts == "first half"):
                # Skip-layer guidance repeats the prompts. Z-Image may stop guidance before the last steps.
                return slice(0, images) if prompts == "first half" else None
        if entries != images * (2 if guided else 1):
            painted = entries // 2 if guided else entries
            raise ValueError(f"the pipeline paints {painted} images, but spans has entries for {images}")
        return slice(images, None) if guided and prompts == "second half" else slice(0, images)

    def _tap_self_attention(self, call: Arguments) -> None:
        """Tap the layers in which the image attends to itself, of the one size that is chosen. In joint
        attention, the taps of the recorded layers see it.
        """
        if self.choose_size is None:
            return
        layers = self.layers if self.layout.joint else self.layout.image_layers
        sizes = {name: self.layout.size(name, call) for name in layers}
        size = self.choose_size(sorted(set(sizes.values()), reverse=True))
        self._self_layers = {name for name in layers if sizes[name] == size}
        if not self.layout.joint:
            for name in self._self_layers:
                receive = partial(self._receive_self_attention, name, size)
                self._taps.append(Tap(layers[name], lambda: self._recording, receive))

    @torch.no_grad()
    def _receive_self_attention(self, name: str, size: Size, seen: Attention | None) -> None:
        if seen is None:
            raise RuntimeError(f"the self-attention of {name} cannot be seen")
        places = size[0] * size[1]
        image = self.layout.image_queries(seen.query.shape[2], places)
        if size not in self._self_sums:
            shape = (len(self.spans), places, places)
            self._self_sums[size] = torch.zeros(shape, device=seen.query.device)
        for number in range(len(self.spans)):  # all heads of one image fit into the memory
            query, key = (part[self._conditional][number, :, image] for part in (seen.query, seen.key))
            logits = (query.float() * seen.scale) @ key.float().transpose(1, 2)
            self._self_sums[size][number] += logits.softmax(dim=2).mean(dim=0)
        self._self_counts[size] += 1

    def _receive(self, name: str, seen: Attention | None) -> None:
        if seen is None:
            raise RuntimeError(
                f"the attention of {name} cannot be seen: flash, sage and flex backends and context "
                "parallelism hide it; call reset_attention_backend() on the model before recording"
            )
        size = self._sizes[name]
        places = size[0] * size[1]
        image = self.layout.image_queries(seen.query.shape[2], places)
        query = seen.query[self._conditional, :, image]
        if query.shape[2] != places:
            raise RuntimeError(
                f"{name} has {query.shape[2]} positions on a grid of {size[0]} x {size[1]}: tokens are "
                "merged (tomesd and its like); remove this before recording (tomesd.remove_patch)"
            )
        key, mask = seen.key[self._conditional], seen.mask
        if mask is not None:
            mask = mask[self._conditional] if len(mask) > 1 else mask
            mask = mask[:, :, image] if mask.shape[2] > 1 else mask
        text = self.layout.text_keys(key.shape[2], places)
        if self.layout.joint and name in self._self_layers:
            self._receive_self_attention(name, size, seen)
        if self.joint:
            self._add_joint(size, Attention(query, key, mask, seen.scale), text)
            return
        part = Attention(query, key[:, :, text], None if mask is None else mask[..., text], seen.scale)
        if _chunk(key.device) < CHUNK:
            self._add_in_chunks(size, part)
        else:
            alike = (size, part.query.shape, part.key.shape, part.scale)
            self._waiting.setdefault(alike, []).append(part)

    def _end_call(self, denoiser: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        waiting, self._waiting = self._waiting, {}
        for (size, *_), layers in waiting.items():
            layer = layers[0]
            values = layer.query[..., 0].numel() * layer.key.shape[2]
            fitting = _chunk(layer.key.device) // values
            if not fitting:
                for layer in layers:
                    self._add_in_chunks(size, layer)
            for first in range(0, len(layers) if fitting else 0, max(1, fitting)):
                self._add_layers(size, layers[first : first + fitting])

    # The attention to the words, which is added to the running means.

    @torch.no_grad()
    def _add_layers(self, size: Size, layers: list[Attention]) -> None:
        """Add some layers of `size` at once, with as few operations as possible: a GPU waits for each."""
        images, heads, places, _ = layers[0].query.shape
        tokens, rows = layers[0].key.shape[2], heads * len(layers)
        query = torch.cat([layer.query for layer in layers], 1).float().flatten(0, 1)
        key = torch.cat([layer.key for layer in layers], 1).float().flatten(0, 1)
        none = key.new_empty(1)  # is not read, since beta is 0
        logits = torch.baddbmm(none, key, query.transpose(1, 2), beta=0, alpha=layers[0].scale)
        if (mask := layers[0].mask) is not None:  # the same for all layers
            logits = logits.unflatten(0, (images, rows)) + _added(mask[:, :1]).transpose(2, 3)
        attention = logits.softmax(dim=-2).view(images, rows * tokens, places)
        weights = self._averaging(tokens, key.device, rows, heads)
        if size in self._sums:
            self._sums[size].baddbmm_(weights, attention)
        else:
            self._sums[size] = torch.bmm(weights, attention)
        self._counts[size] += len(layers)

    @torch.no_grad()
    def _add_in_chunks(self, size: Size, layer: Attention) -> None:
        """Add one layer of `size`, with few of its values in memory at a time."""
        query, key = layer.query, layer.key
        weights = self._averaging(key.shape[2], key.device)
        total, places = self._sum(size, weights), query.shape[2]
        # As many whole images as fit at a time; if not one fits, parts of it.
        fitting = _chunk(key.device) // (key.shape[1] * key.shape[2])
        images, columns = max(1, fitting // places), min(max(1, fitting), places)
        for first in range(0, len(self.spans), images):
            part = slice(first, first + images)
            scaled = key[part].float() * layer.scale
            for start in range(0, places, columns):
                there = slice(start, start + columns)
                logits = scaled @ query[part, :, there].float().transpose(2, 3)
                if layer.mask is not None:
                    mask = layer.mask[part] if len(layer.mask) > 1 else layer.mask
                    logits += _added(mask if mask.shape[2] == 1 else mask[:, :, there]).transpose(2, 3)
                total[part, :, there] += weights[part] @ logits.softmax(dim=2).mean(dim=1)
        self._counts[size] += 1

    @torch.no_grad()
    def _add_joint(self, size: Size, layer: Attention, text: slice) -> None:
        """Add one layer of joint attention of `size`, by a second fused attention whose values say which keys
        are those of a word. It needs no memory for the attention itself.
        """
        query, key = layer.query, layer.key
        depth, tokens = query.shape[3], text.stop - text.start
        weights = self._averaging(tokens, key.device)
        total = self._sum(size, weights)
        for first in range(0, weights.shape[1], depth):
            words = weights[:, first : first + depth]
            value = self._values(key, words, text, first)
            attention = tap.fused_attention(query, key, value, attn_mask=layer.mask, scale=layer.scale)
            means = attention[..., : words.shape[1]].float().mean(dim=1).transpose(1, 2)
            total[:, first : first + depth] += means * words.amax(dim=2, keepdim=True)
        self._counts[size] += 1

    def _values(self, key: torch.Tensor, words: torch.Tensor, text: slice, first: int) -> torch.Tensor:
        """Values (B, heads, keys, d) whose column k holds the weights of word k in `words` (B, K, tokens),
        divided by the largest of them, so that they are whole numbers, which every data type has exactly.
        """
        alike = ("values", key.shape, first)
        if alike not in self._weights:
            largest = words.amax(dim=2, keepdim=True).clamp(min=torch.finfo(words.dtype).tiny)
            self._weights[alike] = torch.zeros_like(key)
            self._weights[alike][:, :, text, : words.shape[1]] = (words / largest).transpose(1, 2)[:, None]
        return self._weights[alike]

    def _averaging(self, tokens: int, device: torch.device, rows: int = 1, heads: int = 1) -> torch.Tensor:
        """Weights (images, words, rows * tokens). A product with them averages over the positions of each
        word and over the heads, and adds up layers: `rows` are the heads of all of them.
        """
        if (tokens, rows) in self._weights:
            return self._weights[tokens, rows]
        weights = np.zeros((len(self.spans), max(map(len, self.spans), default=0), tokens), np.float32)
        for image, words in enumerate(self.spans):
            for column, (word, positions) in enumerate(words.items()):
                if max(positions) >= tokens:
                    outside = f"position {max(positions)}, outside the text of {tokens} tokens"
                    raise ValueError(f"the word {word!r} has {outside}")
                for position in positions:
                    weights[image, column, position] += 1 / len(positions)
        self._weights[tokens, rows] = torch.from_numpy(np.tile(weights, rows) / np.float32(heads)).to(device)
        return self._weights[tokens, rows]

    def _sum(self, size: Size, like: torch.Tensor) -> torch.Tensor:
        if size not in self._sums:
            self._sums[size] = like.new_zeros(*like.shape[:2], size[0] * size[1])
        return self._sums[size]


def _chunk(device: torch.device) -> int:
    return CPU_CHUNK if device.type == "cpu" else CHUNK


def _added(mask: torch.Tensor) -> torch.Tensor:
    """A mask as what is added to the logits."""
    if mask.is_floating_point():
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)

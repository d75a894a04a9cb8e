"""Reads the queries and keys of an attention layer while the layer runs, and changes nothing.

They are taken from the layer's call of `torch.nn.functional.scaled_dot_product_attention`, where they are
those that attention really uses: projected, normed, rotated, repeated and joined, with the LoRA if there is
one. Where a processor makes no such call, they are taken from the layer's projections.

The function is replaced while a recorder is active. A mode of `torch.overrides` would see the call, too, but
costs time for every operation of a layer.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Attention:
    """What a layer computes its attention from: `query` (B, heads, queries, d), `key` (B, heads, keys, d), a
    `mask` that can be broadcast to (B, heads, queries, keys), boolean or added to the logits, or None, and
    the `scale` of the logits.
    """

    query: torch.Tensor
    key: torch.Tensor
    mask: torch.Tensor | None
    scale: float


class Tap:
    """Gives what a layer computes its attention from to `receive`, each time after the layer has run, if
    `wanted` says so.

    If the layer calls attention several times, as with an IP-Adapter, the first call is that of the text.
    `receive` gets None if the call was not seen.
    """

    def __init__(self, layer: nn.Module, wanted: Callable[[], bool], receive: Callable[..., None]):
        self.layer, self.wanted, self.receive = layer, wanted, receive
        self.seen: dict[str, Any] = {}
        self.hooks = [
            layer.register_forward_pre_hook(self._start, with_kwargs=True),
            layer.register_forward_hook(self._end, always_call=True),
        ]
        self._outer: Tap | None = None
        normed = any(getattr(layer, name, None) is not None for name in ("norm_q", "norm_k"))
        if not normed and hasattr(layer, "to_q") and hasattr(layer, "to_k"):
            for name in ("query", "key"):
                projection = getattr(layer, f"to_{name[0]}")
                if projection is not None:
                    self.hooks.append(projection.register_forward_hook(self._projected(name)))

    def remove(self) -> None:
        """Take the hooks off the layer."""
        for hook in self.hooks:
            hook.remove()

    def _projected(self, name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            if self.wanted():
                self.seen.setdefault(name, output)

        return see

    def _start(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen = {}
        if self.wanted():
            self.seen["mask"] = kwargs.get("attention_mask")
            self._outer, _running.tap = getattr(_running, "tap", None), self

    def _end(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if getattr(_running, "tap", None) is not self:
            return
        _running.tap, seen = self._outer, self.seen
        self.seen = {}
        if output is not None:  # it is None if the layer raised an error
            self.receive(seen.get("attention") or _from_projections(layer, seen))


def _from_projections(layer: nn.Module, seen: dict[str, Any]) -> Attention | None:
    if "query" not in seen or "key" not in seen:
        return None
    query, key = (seen[name].unflatten(-1, (layer.heads, -1)).transpose(1, 2) for name in ("query", "key"))
    mask = seen["mask"]
    return Attention(query, key, None if mask is None else mask[:, None], layer.scale)


# The fused attention of torch, and which tap's layer runs in this thread.

fused_attention = F.scaled_dot_product_attention
_running = threading.local()
_lock = threading.Lock()
_watching = 0


def _watched(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    tap = getattr(_running, "tap", None)
    if tap is not None and "attention" not in tap.seen:
        mask = args[1] if len(args) > 1 else kwargs.get("attn_mask")
        scale = kwargs.get("scale")
        repeated = query.shape[1] // key.shape[1]  # grouped queries share a key
        tap.seen["attention"] = Attention(
            query,
            key if repeated == 1 else key.repeat_interleave(repeated, 1),
            mask,
            query.shape[-1] ** -0.5 if scale is None else scale,
        )
    return fused_attention(query, key, *args, **kwargs)


def watch() -> None:
    """See the calls of torch's fused attention from now on. `unwatch` ends it; both may be nested."""
    global _watching, fused_attention
    with _lock:
        if not _watching:
            fused_attention = F.scaled_dot_product_attention
            F.scaled_dot_product_attention = _watched
        _watching += 1


def unwatch() -> None:
    """See the calls no longer, after as many calls as those of `watch`."""
    global _watching
    with _lock:
        _watching -= 1
        if not _watching:
            F.scaled_dot_product_attention = fused_attention

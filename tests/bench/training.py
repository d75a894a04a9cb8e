"""The co-training step over one network's, a plain reading of BECO's over it, and the loader beside it."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench.beco import beco_loss
from bench.timing import Row, measure, peak_memory

from attn2mask.builders.drawn.rows import draw_rows, write_rows
from attn2mask.builders.table_reader import load_table
from attn2mask.training.config import PRESETS, Settings
from attn2mask.training.cotraining import Pair, cotraining_losses, normalize, photometric
from attn2mask.training.data import Crops, loader, open_rows
from attn2mask.training.models import build_network


def batch_of(size: int, side: int) -> dict[str, torch.Tensor]:
    """Noise with labels in squares, 7 of 10 pixels trusted."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 21, (size, side // 16, side // 16)).repeat(16, 1).repeat(16, 2)
    return {
        "pixels": torch.from_numpy(rng.integers(0, 256, (size, 3, side, side), np.uint8)),
        "label": torch.from_numpy(label),
        "trusted": torch.from_numpy(rng.random((size, side, side)) < 0.7),
    }


def steps(settings: Settings, size: int, side: int) -> dict[str, Callable[[], None]]:
    """Forward and backward of one batch, by name; the networks of each are its own."""
    table, batch = load_table("voc"), batch_of(size, side)

    def networks(first: int, count: int) -> list[torch.nn.Module]:
        return [
            build_network(settings.architecture, settings.backbone, table, seed=first + k).train()
            for k in range(count)
        ]

    pair = Pair(*networks(0, 2)).to(memory_format=torch.channels_last)
    a, b = networks(2, 2)
    (alone,) = networks(4, 1)
    alone = alone.to(memory_format=torch.channels_last)

    def plain() -> None:
        logits = alone(pixel_values=normalize(photometric(batch["pixels"].float() / 255))).logits
        torch.nn.functional.cross_entropy(logits, batch["label"]).backward()
        alone.zero_grad()

    def together(forward: torch.nn.Module, mixing: bool, half: bool) -> None:
        part = replace(settings, mixing=mixing)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses = cotraining_losses(forward, pair.online, batch, part, True, 255, 0)
        sum(losses).backward()
        pair.zero_grad()

    def beco() -> None:
        beco_loss(a, b, batch, settings, 255).backward()
        a.zero_grad(), b.zero_grad()

    return {
        "plain": plain,
        "full": partial(together, pair, True, False),
        "unmixed": partial(together, pair, False, False),
        "bf16": partial(together, pair, True, True),
        # As accelerate's --dynamo_backend does it.
        "compiled": partial(together, torch.compile(pair), True, False),
        "beco": beco,
    }


def training(quick: bool) -> Iterator[Row]:
    """The small backbone as `make demo` trains it, and the paper's ResNet-50 with two small pictures."""
    pairs, demo = (2 if quick else 12), PRESETS["demo"]
    size, side = 8, 112
    of = steps(demo, size, side)
    for name, step in of.items():
        if not quick or name != "compiled":  # that takes a minute
            step()
    floor = "co-training step / one network's"
    for what, step in ((floor, "full"), ("the same without mixing and online labels", "unmixed")):
        memory = peak_memory(of[step]) / peak_memory(of["plain"])
        row = measure(f"{what}, {size} x {side}", of[step], of["plain"], pairs, memory=memory)
        row.notes["images_per_second"] = size / row.seconds[0]
        yield row
    for what, step in (("BECO's plain step / ours", "full"), ("BECO's plain step / ours in bf16", "bf16")):
        yield measure(f"{what}, {size} x {side}", of["beco"], of[step], pairs, goal=">= 1.3")
    yield from loading(of["full"], size, side, pairs)
    if quick:
        return
    what = f"our step compiled / as it is, {size} x {side}"
    yield measure(what, of["compiled"], of["full"], pairs)
    size, side = 2, 256
    of = steps(replace(PRESETS["voc-resnet50"], backbone="scratch:resnet50"), size, side)
    for step in ("beco", "full", "bf16"):
        of[step]()
    for what, step in (("BECO's plain step / ours", "full"), ("BECO's plain step / ours in bf16", "bf16")):
        yield measure(f"{what}, ResNet-50, {size} x {side}", of["beco"], of[step], 5, goal=">= 1.3")


def loading(step: Callable[[], None], size: int, side: int, pairs: int) -> Iterator[Row]:
    """A batch of the loader, in this process, over the step: the part of a core that feeding it takes."""
    with tempfile.TemporaryDirectory() as out:
        write_rows(draw_rows("objects", 4 * size, 5), Path(out))
        rows, _ = open_rows(out, False, True)
    crops = Crops(side, 0, 0, 255, 21, True)
    feed = iter(
        loader(
            rows, crops, per_process=size, batch=size, start=0, stop=10_000, rank=0, processes=1, workers=0
        )
    )
    next(feed)
    yield measure("loading a batch in one process / the step", partial(next, feed), step, pairs, goal="<= 1")

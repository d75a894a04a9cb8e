"""The co-training step, compared with that of one network and with a plain implementation of BECO's step."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench.timing import Row, measure, peak_memory
from bench.unoptimized import plain_step_loss

from attn2mask.builders.drawn.rows import draw_rows, write_rows
from attn2mask.builders.table_reader import load_table
from attn2mask.training.config import TrainConfig
from attn2mask.training.cotraining import Pair, cotraining_losses, normalize, photometric
from attn2mask.training.data import Crops, Share, Source, loader, open_rows
from attn2mask.training.models import build_network

COMPARED = (  # what, our step, and BECO's
    ("plain BECO step / ours", "full", "plain"),
    ("plain BECO step / ours, both in bf16", "bf16", "plain bf16"),
)


def batch_of(size: int, side: int) -> dict[str, torch.Tensor]:
    """Random pixels and labels in squares of 16 pixels. 7 of 10 pixels are trusted."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 21, (size, side // 16, side // 16)).repeat(16, 1).repeat(16, 2)
    return {
        "pixels": torch.from_numpy(rng.integers(0, 256, (size, 3, side, side), np.uint8)),
        "label": torch.from_numpy(label),
        "trusted": torch.from_numpy(rng.random((size, side, side)) < 0.7),
    }


def steps(config: TrainConfig, size: int, side: int) -> dict[str, Callable[[], None]]:
    """Forward and backward passes of one batch, by name. The networks are not shared."""
    table, batch = load_table("voc"), batch_of(size, side)

    def networks(first: int, count: int) -> list[torch.nn.Module]:
        return [
            build_network(
                config.architecture, config.backbone, table, first + k, side, config.multi_grid
            ).train()
            for k in range(count)
        ]

    pair = Pair(*networks(0, 2)).to(memory_format=torch.channels_last)
    a, b = networks(2, 2)
    (alone,) = networks(4, 1)
    alone = alone.to(memory_format=torch.channels_last)

    def single() -> None:
        colored = photometric(batch["pixels"].float() / 255, config)
        logits = alone(pixel_values=normalize(colored)).logits
        torch.nn.functional.cross_entropy(logits, batch["label"]).backward()
        alone.zero_grad()

    def together(forward: torch.nn.Module, mixing: bool, half: bool) -> None:
        context = torch.autocast("cpu", torch.bfloat16, enabled=half)  # each pass enters it anew
        part = replace(config, no_mixing=not mixing)
        losses = cotraining_losses(context(forward), context(pair.online), batch, part, 255, 0)
        sum(losses).backward()
        pair.zero_grad()

    def plain(half: bool) -> None:
        plain_step_loss(a, b, batch, config, 255, half).backward()
        a.zero_grad(), b.zero_grad()

    return {
        "single": single,
        "full": partial(together, pair, True, False),
        "unmixed": partial(together, pair, False, False),
        "bf16": partial(together, pair, True, True),
        # accelerate's --dynamo_backend does this.
        "compiled": partial(together, torch.compile(pair), True, False),
        "plain": partial(plain, False),
        "plain bf16": partial(plain, True),
    }


def training(quick: bool) -> Iterator[Row]:
    """BECO's step on the small backbone of the demo, and on ResNet-50 with two small images."""
    pairs = 2 if quick else 12
    size, side = 8, 112
    small = TrainConfig(preset="voc-resnet50", backbone="embedded", multi_grid=False)
    of = steps(small.resolve(), size, side)
    for name, step in of.items():
        if not quick or name != "compiled":  # compiling takes a minute
            step()
    base = "co-training step / step of one network"
    for what, step in ((base, "full"), ("the same without mixing and online labels", "unmixed")):
        memory = peak_memory(of[step]) / peak_memory(of["single"])
        row = measure(f"{what}, {size} x {side}", of[step], of["single"], pairs, memory=memory)
        row.notes["images_per_second"] = size / row.seconds[0]
        yield row
    for what, step, plain in COMPARED:
        row = measure(f"{what}, {size} x {side}", of[plain], of[step], pairs, goal=">= 1.3")
        row.notes["images_per_second"] = size / row.seconds[1]
        yield row
    yield from loading(of["full"], size, side, pairs)
    if quick:
        return
    what = f"our step compiled / not compiled, {size} x {side}"
    yield measure(what, of["compiled"], of["full"], pairs)
    size, side = 2, 256
    of = steps(TrainConfig(preset="voc-resnet50", backbone="scratch:resnet50d").resolve(), size, side)
    for step in ("plain", "plain bf16", "full", "bf16"):
        of[step]()
    for what, step, plain in COMPARED:
        yield measure(f"{what}, ResNet-50-D, {size} x {side}", of[plain], of[step], 5, goal=">= 1.3")


def loading(step: Callable[[], None], size: int, side: int, pairs: int) -> Iterator[Row]:
    """A batch of the loader in this process, compared with the step."""
    with tempfile.TemporaryDirectory() as out:
        write_rows(draw_rows("objects", 4 * size, 5), Path(out))
        rows = open_rows(out, False, True).rows
    crops = Crops(TrainConfig(crop_size=side).resolve(), load_table("voc"))
    batches = iter(loader([Source(rows, crops)], Share(size, 0, 10_000), per_process=size, workers=0))
    next(batches)
    yield measure(
        "loading a batch in one process / the step", partial(next, batches), step, pairs, goal="<= 1"
    )

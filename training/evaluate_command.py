"""`attn2mask evaluate`: a checkpoint held against masks, and what came of it as numbers and pictures.

    attn2mask evaluate --checkpoint runs/r50 --dataset VOCdevkit/VOC2012 --split val --out metrics.json

`evaluation.py` does the measuring. Beside `metrics.json` it draws `metrics_iou.png`, a bar for each class,
and `metrics_pictures.png`, the best, the median and the worst pictures.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.options import check_numbers, option
from attn2mask.builders.table_reader import bare_table, load_table
from attn2mask.training.benchmarks import difference, hub_name, recorded_table

if TYPE_CHECKING:
    from torch import nn

    from attn2mask.training.benchmarks import Example
    from attn2mask.training.charts import Shown
    from attn2mask.training.checkpoint import Checkpoint
    from attn2mask.training.inference import ConfusionMatrices

OF_EACH = 2  # pictures on the sheet: so many of the best, the median and the worst
PRINTED = 40  # classes of the printed table, at most


@dataclass(frozen=True)
class EvaluateConfig:
    """The options of `evaluate`."""

    checkpoint: str | None = option("what training made, or a name on the Hub", None, metavar="DIR")
    dataset: str | None = option(
        "VOCdevkit, Cityscapes or ImageNet-S, a folder of images/ and masks/, or rows (a directory or a name "
        "on the Hub)",
        None,
        metavar="PATH",
    )
    split: str | None = option("split of it (the layout's validation split)", None)
    table: str | None = option("the dataset's class table, if it is not the checkpoint's", None)
    out: str = option("the report; pictures go beside it (%(default)s)", "metrics.json", metavar="FILE")
    limit: int | None = option("measure the first N pictures alone", None, metavar="N")
    scales: str = option("see each picture at these sizes (%(default)s)", "1", "how it looks", metavar="S,S")
    flip: bool = option("see it mirrored, too", False, "how it looks")
    window: int | None = option(
        "see larger pictures through windows of N pixels", None, "how it looks", metavar="N"
    )

    def __post_init__(self) -> None:
        for name in ("checkpoint", "dataset"):
            if not getattr(self, name):
                raise UserError(f"--{name} is missing (see `attn2mask evaluate --help`)")
        check_numbers(self, positive=["limit"])
        if self.window is not None and self.window < 32:
            raise UserError(f"--window {self.window}: it must be at least 32")
        if Path(self.out).suffix != ".json":
            raise UserError(f"--out {self.out}: the ending must be .json")
        _ = self.factors

    @property
    def factors(self) -> tuple[float, ...]:
        """`scales` as numbers. Raises UserError where they are none."""
        try:
            factors = tuple(float(scale) for scale in self.scales.split(","))
        except ValueError:
            factors = ()
        if not factors or not all(math.isfinite(factor) and factor > 0 for factor in factors):
            raise UserError(f"--scales {self.scales}: it must be numbers above 0 with commas between them")
        return factors


def run(config: EvaluateConfig) -> None:
    """Measure, write and print. Raises UserError for what the user can mend."""
    import torch

    from attn2mask.training.benchmarks import open_pictures
    from attn2mask.training.charts import iou_chart, prediction_sheet
    from attn2mask.training.checkpoint import load_checkpoint
    from attn2mask.training.inference import report, score

    started = time.time()
    out = Path(config.out)
    if out.is_dir():
        raise UserError(f"--out {out} is a directory")
    checkpoint = load_checkpoint(config.checkpoint)
    table = table_of(config, checkpoint)
    pictures = open_pictures(config.dataset, config.split, table)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise UserError(f"--out {out} can't be written")
    networks = [network for network in (checkpoint.network, checkpoint.peer) if network is not None]
    looks = {"scales": config.factors, "flip": config.flip, "window": config.window}
    scores = score(
        networks,
        checkpoint.processor,
        pictures,
        table,
        **looks,
        device="cuda" if torch.cuda.is_available() else "cpu",
        picked=range(min(len(pictures), config.limit or len(pictures))),
    )
    found = report(scores, table)
    protocol = {**asdict(config), "table": table.name, "seconds": round(time.time() - started, 1)}
    protocol["hub"] = hub_name(config.dataset)
    out.write_text(json.dumps({**found, "evaluated": protocol}, indent=2) + "\n")
    made = [out, out.with_name(f"{out.stem}_iou.png")]
    iou_chart(found, made[-1])
    rows = extremes(scores, networks, checkpoint.processor, pictures, **looks)
    if rows:
        made.append(out.with_name(f"{out.stem}_pictures.png"))
        prediction_sheet(rows, table, made[-1])
    print(f"{config.dataset} in the classes of {table.name}")
    print(as_text(found))
    print(f"\nmade in {time.time() - started:.0f} s: {', '.join(map(str, made))}")
    print(f"next: look at {made[-1]}" + (f", or `{thorough(config)}`" if config.factors == (1.0,) else ""))


def table_of(config: EvaluateConfig, checkpoint: Checkpoint) -> ClassTable:
    """The dataset's class table: the one that `--table` names or that a build recorded, else the
    checkpoint's. Raises UserError where the checkpoint knows other classes.
    """
    if config.table is not None:
        table = load_table(config.table)
    elif (recorded := recorded_table(config.dataset)) is not None:
        table = recorded
    else:
        ignore = getattr(checkpoint.network.config, "semantic_loss_ignore_index", None)
        table = bare_table(checkpoint.table_name or "the checkpoint's table", checkpoint.names, ignore)
    if checkpoint.names != table.names:
        raise UserError(
            f"checkpoint {config.checkpoint} knows other classes than {table.name}: "
            f"{difference(checkpoint.names, table.names)}"
        )
    return table


def extremes(
    scores: ConfusionMatrices,
    networks: Sequence[nn.Module],
    processor: Any,
    pictures: Sequence[Example],
    **looks: Any,
) -> list[Shown]:
    """The best, the median and the worst pictures as rows of a sheet; `looks` as for `segment`."""
    from attn2mask.training.charts import Shown
    from attn2mask.training.inference import segment

    ranked = sorted(
        ((iou, index) for index, iou in scores.pictures.items() if not math.isnan(iou)), reverse=True
    )
    middle = max(0, (len(ranked) - OF_EACH) // 2)
    parts = {
        "best": ranked[:OF_EACH],
        "median": ranked[middle : middle + OF_EACH],
        "worst": ranked[-OF_EACH:],
    }
    chosen: dict[int, str] = {}
    for kind, part in parts.items():
        for iou, index in part:
            chosen.setdefault(index, f"{kind}: mean IoU {100 * iou:.1f} %")
    rows = []
    for index, title in chosen.items():
        example = pictures[index]
        found = segment(networks, processor, example.image, **looks)
        rows.append(Shown(f"{title}\n{example.name}", example.image, example.target, found))
    return rows


def as_text(found: dict[str, Any]) -> str:
    """What `report` returns as a table in per cent: a line for each class (of many, the best and the worst),
    a column for the mean of the networks and, where there are two, for each.
    """
    from attn2mask.training.charts import shown_classes

    columns = {"both": found, **found["networks"]} if len(found["networks"]) > 1 else {"IoU": found}
    names = list(found["per_class_iou"])
    if len(names) > PRINTED:
        names = [name for name, _ in shown_classes(found["per_class_iou"], PRINTED)]
    lines = {name: [column["per_class_iou"][name] for column in columns.values()] for name in names}
    lines["mean IoU"] = [column["mean_iou"] for column in columns.values()]
    lines["pixel accuracy"] = [column["pixel_accuracy"] for column in columns.values()]
    width = max(map(len, lines)) + 2
    text = [f"{'%':{width}}" + "".join(f"{name:>8}" for name in columns)]
    for name, values in lines.items():
        cells = ("-" if value is None else f"{100 * value:.1f}" for value in values)
        text.append(f"{name:{width}}" + "".join(f"{cell:>8}" for cell in cells))
    if (told := found.get("mean_iou_given_labels")) is not None:
        text.append(f"mean IoU where each picture's classes are told: {100 * told:.1f}")
    left_out = len(found["per_class_iou"]) - len(names)
    text.append(
        f"{found['num_images']:,} pictures" + (f"; {left_out} more classes in the report" if left_out else "")
    )
    return "\n".join(text)


def thorough(config: EvaluateConfig) -> str:
    """The command that measures the same at several scales."""
    words = ["attn2mask", "evaluate", "--checkpoint", config.checkpoint, "--dataset", config.dataset]
    for name in ("split", "table", "limit", "window"):
        if (value := getattr(config, name)) is not None:
            words += [f"--{name}", str(value)]
    out = Path(config.out)
    out = out.with_stem(f"{out.stem}_scales")
    return shlex.join([*words, "--scales", "0.5,0.75,1,1.25,1.5", "--flip", "--out", str(out)])

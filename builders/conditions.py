"""The conditions under which images are painted. They may change an image by rounding.

An image depends on its options, seed, index and attempt. How its numbers are rounded depends on more: on the
device, the number format, the number of threads, the kernels of the CPU, and the number of images of a batch.
So each shard records them, and a build that goes on under other ones says which rows may differ.
"""

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attn2mask.builders.painter import Painter

NAMES = {
    "device": "device",
    "dtype": "number format",
    "threads": "threads",
    "cpu_capability": "CPU kernels",
    "batch_size": "batch size",
}
_HOW = "by rounding, in the last bit or more"
_SHOWN = 4  # ranges of rows in a message; the report has all


def painting_conditions(painter: "Painter", batch_size: int) -> dict[str, Any]:
    """The conditions of this process: the `device` (the model of the GPU, or "cpu"), the `dtype` of the
    weights, the number of `threads` of torch, its `cpu_capability` such as AVX2, and the `batch_size`.
    """
    import torch

    from attn2mask.builders.devices import device_name

    return {
        "device": device_name(painter.device),
        "dtype": str(painter.pipe.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "batch_size": batch_size,
    }


def rows_by_conditions(made: Iterable[tuple[range, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The conditions of ranges of rows: one entry for all rows of equal conditions, in the order of their
    first rows. Beside the conditions, an entry has `rows`, its ranges as a text: "0 to 63, 128 to 191".
    """
    ranges: dict[str, list[range]] = {}
    for rows, conditions in made:
        of_these = ranges.setdefault(json.dumps(conditions), [])
        if of_these and of_these[-1].stop == rows.start:
            rows = range(of_these.pop().start, rows.stop)
        of_these.append(rows)
    return [
        {"rows": ", ".join(f"{rows.start} to {rows.stop - 1}" for rows in of_these), **json.loads(conditions)}
        for conditions, of_these in ranges.items()
    ]


def last_bit_warning(
    path: object, entries: Iterable[Mapping[str, Any]], conditions: Mapping[str, Any]
) -> str | None:
    """The message that rows which are made now, under `conditions`, may differ in the last bit from what the
    conditions of the `entries` would give; None if all are equal. An entry is one of `rows_by_conditions`,
    and its `rows` are empty where none were made yet.
    """
    parts = []
    for entry in entries:
        if differ := [name for name in NAMES if entry.get(name) != conditions.get(name)]:
            values = ", ".join(f"{NAMES[n]} {entry.get(n)} (now {conditions.get(n)})" for n in differ)
            what = f"rows {_shortened(entry['rows'])} were made" if entry["rows"] else "the build was begun"
            parts.append(f"{what} with {values}")
    if not parts:
        return None
    return f"{path}: {'; '.join(parts)}: images that are made now may differ {_HOW}"


def several_conditions(path: object, entries: Iterable[Mapping[str, Any]]) -> str | None:
    """The message that a finished build has rows of several conditions; None if it has not."""
    entries = list(entries)
    if len(entries) < 2:
        return None
    differ = [name for name in NAMES if len({json.dumps(entry.get(name)) for entry in entries}) > 1]
    parts = (
        f"rows {_shortened(entry['rows'])} with {', '.join(f'{NAMES[n]} {entry.get(n)}' for n in differ)}"
        for entry in entries
    )
    return f"{path}: images may differ {_HOW}, from those of an undisturbed build: {'; '.join(parts)}"


def _shortened(rows: str) -> str:
    ranges = rows.split(", ")
    more = f" and {len(ranges) - _SHOWN} more ranges" if len(ranges) > _SHOWN else ""
    return ", ".join(ranges[:_SHOWN]) + more

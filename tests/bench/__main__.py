"""`make bench`: the cost of recording, labeling, building, training and evaluation, as ratios of times.

    make bench                                   # about 25 minutes on two idle cores
    make bench QUICK=1                           # about 5 minutes
    PYTHONPATH=tests python -m bench --only recording crf

All times are measured in pairs (`timing.py`). Writes bench.json and bench.png.
"""

import argparse
import json
import os
import platform
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from bench import building, evaluation, growth, labeling, opening, recording, training
from bench.timing import Row
from matplotlib.figure import Figure

from attn2mask.builders.provenance import provenance


def as_text(row: Row) -> str:
    low, high = row.interval
    first, second = row.seconds
    notes = ", ".join(f"{k.replace('_', ' ')} {_number(v)}" for k, v in row.notes.items())
    return (
        f"{row.what:58}{row.ratio:8.3f}  {f'{low:.3f} to {high:.3f}':15}{row.goal:>9}{row.pairs:6}"
        f"  {first:.3f} / {second:.3f}" + (f"\n    {notes}" if notes else "")
    )


def _number(value: float | str | bool) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def figure(rows: list[Row], file: Path) -> None:
    chart = Figure(figsize=(9, 0.35 * len(rows) + 1), layout="constrained")
    axes = chart.subplots()
    for place, row in enumerate(rows):
        axes.plot(row.interval, [place, place], color="tab:blue")
        axes.plot(row.ratio, place, "o", color="tab:blue")
        if row.goal[:2] in ("<=", ">="):
            axes.plot(float(row.goal[3:]), place, "<" if row.goal[0] == "<" else ">", color="tab:orange")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [row.what for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("ratio of times: median and 95 % interval; orange: goal")
    chart.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="measure few pairs at small sizes")
    parser.add_argument(
        "--model", default="embedded", help="painter, as in `attn2mask build` (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench"), help="folder of the results (default: %(default)s)"
    )
    parser.add_argument("--only", nargs="+", metavar="PART", help="measure only these parts (default: all)")
    options = parser.parse_args()
    parts = {
        "recording": partial(recording.embedded, options.model),
        "architecture": recording.architecture,
        "transformers": recording.transformers,
        "crf": partial(labeling.crf, options.model),
        "build": partial(building.hidden, options.model),
        "spread": building.spread,
        "processes": partial(building.processes, options.model),
        "growth": growth.growth,
        "opening": opening.opening,
        "training": training.training,
        "evaluation": evaluation.evaluation,
    }
    if unknown := set(options.only or ()) - set(parts):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; the parts are {', '.join(parts)}")

    started, rows = time.time(), []
    print(f"{'what':58}{'ratio':>8}  {'95 % interval':15}{'goal':>9}{'pairs':>6}  seconds", flush=True)
    for name, part in parts.items():
        if not options.only or name in options.only:
            for row in part(options.quick):
                print(as_text(row), flush=True)
                rows.append(row)
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "device": device}
    took = round(time.time() - started)
    report = {
        "quick": options.quick,
        "model": options.model,
        "seconds": took,
        **machine,
        **provenance(),
        "rows": [asdict(row) for row in rows],
    }
    (options.out / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
    figure(rows, options.out / "bench.png")
    print(f"wrote in {took} s: {options.out / 'bench.json'}, {options.out / 'bench.png'}")


if __name__ == "__main__":
    main()

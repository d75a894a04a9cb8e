"""Timing of two functions in pairs: one runs right after the other, and the order alternates. A machine that
is busy or slows down then changes both.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm


@dataclass(frozen=True)
class Row:
    """A line of the table: the time of one function divided by the time of another.

    Attributes:
        ratio: the median of the ratios of all pairs.
        interval: the bootstrap 95 % interval of the ratio.
        seconds: the median times of the two functions on this machine.
        goal: the bound that the ratio should meet; "" where there is none.
        notes: other values that were measured.
    """

    what: str
    ratio: float
    interval: tuple[float, float]
    pairs: int
    seconds: tuple[float, float]
    goal: str = ""
    notes: dict[str, float | str | bool] = field(default_factory=dict)


def measure(
    what: str, first: Callable[[], object], second: Callable[[], object], pairs: int, goal: str = "", **notes
) -> Row:
    """Time `first` and `second` in pairs. Both must have been called before, to warm up."""
    seconds = {first: [], second: []}
    for pair in tqdm(range(pairs), desc=what, leave=False):
        for timed in (first, second) if pair % 2 else (second, first):
            started = time.perf_counter()
            timed()
            seconds[timed].append(time.perf_counter() - started)
    return compare(what, seconds[first], seconds[second], goal, **notes)


def compare(what: str, first: list[float], second: list[float], goal: str = "", **notes) -> Row:
    """The row for times in seconds that were measured in pairs."""
    ratios = np.divide(first, second)
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    medians = float(np.median(first)), float(np.median(second))
    ratio = float(np.median(ratios))
    return Row(what, ratio, (float(low), float(high)), len(ratios), medians, goal, notes)


def peak_memory(step: Callable[[], object]) -> int:
    """The peak of the bytes that torch allocates during a step, beyond those allocated before."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    held = highest = 0
    for event in trace.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest

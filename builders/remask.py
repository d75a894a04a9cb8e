"""`attn2mask remask`: the same pictures with masks by other rules, from the scores that a build stored.

    attn2mask remask data/voc --out data/voc-fixed --threshold fixed --beta 0.3

What was decided while painting (steps, resolutions, normalization) stays; threshold, dense CRF and
reliability may change. With unchanged rules the masks are the same bit for bit. It resumes like a build, and
can follow one that has grown.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from attn2mask.builders.arguments import check_numbers, option, parse, run_command
from attn2mask.builders.build import BOOL, default_workers, make_dataset, provenance, run_name, with_options
from attn2mask.builders.errors import UserError
from attn2mask.builders.rules import PRESETS, Rules
from attn2mask.builders.sample import Sample
from attn2mask.builders.shards import BuildDirectory, Shard, plan

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor


@dataclass(frozen=True)
class RemaskConfig:
    """The options of `remask`; rules that are not given stay those of the build."""

    dir: str = option("a build with stored scores", positional=True)
    out: str | None = option("directory of the new dataset (DIR-remasked)", None, metavar="DIR")
    preset: Literal["paper", "replication", "default"] | None = option(
        "threshold, CRF and reliability of this preset", None
    )
    threshold: Literal["otsu", "agreement", "fixed"] | None = option("from score to class", None)
    beta: float | None = option("of the fixed threshold, (1 - beta) / 2", None, metavar="X")
    reliability: Literal["agreement", "two-threshold", "margin"] | None = option(
        "which pixels to trust", None
    )
    graded: bool | None = option("reliability in 256 levels", None, **BOOL)
    workers: int | None = option("labeling processes (one a core, but one)", None, metavar="N")

    def __post_init__(self) -> None:
        check_numbers(self, positive=["workers"], shares=["beta"])


def run(config: RemaskConfig) -> None:
    """Make the new dataset, or what is missing of it. Raises UserError for what the user can mend."""
    source = BuildDirectory(Path(config.dir))
    old = source.record()
    if not old["identity"].get("store_scores"):
        raise UserError(f"{source.path} holds no scores: build it with --store-scores to remask it later")
    rules = source.rules
    if config.preset is not None:
        preset = PRESETS[config.preset]
        names = ("threshold", "beta", "crf", "reliability", "graded")
        rules = replace(rules, **{name: getattr(preset, name) for name in names})
    rules = with_options(rules, config)
    directory = BuildDirectory(Path(config.out or f"{source.path}-remasked"))
    directory.check_free()
    unmade = [s for s in plan(old["num_images"], old["identity"]["shard_size"]) if source.state(s) != "made"]
    if unmade:
        raise UserError(
            f"{source.path} is not complete ({source.shard_file(unmade[0])}): run its build again"
        )

    from attn2mask.builders.workers import labeling_pool

    record = {
        **old,
        "command": "remask",
        "identity": old["identity"] | {"rules": asdict(rules)},
        **provenance(),
    }
    with (
        directory.locked(rank=0, run=run_name(1)),
        labeling_pool(config.workers or default_workers()) as pool,
    ):
        make_dataset(directory, record, source.table, True, partial(_samples, source, rules, pool))


def _samples(
    source: BuildDirectory,
    rules: Rules,
    pool: "ProcessPoolExecutor",
    shard: Shard,
    settled: Callable[[], object],
) -> Iterator[Sample]:
    from attn2mask.builders.label import label

    table = source.table
    tasks = []
    for row in source.rows(shard):
        count = len(row["classes"])
        scores = np.asarray(row["scores"], np.uint8) if count else np.zeros((0, 1, 1), np.uint8)
        picture = row["image"]["bytes"]
        task = pool.submit(label, picture, scores, row["peaks"], row["classes"], row["words"], rules, table)
        tasks.append((row, scores, task))
    for row, scores, task in tasks:
        labels = task.result()
        kept = list(labels.kept)
        settled()
        yield Sample(
            sample_id=row["sample_id"],
            image=labels.image,
            mask=labels.mask,
            reliability=labels.reliability,
            prompt=row["prompt"],
            caption=row["caption"],
            classes=tuple(row["classes"][k] for k in kept),
            words=tuple(row["words"][k] for k in kept),
            seed=row["seed"],
            peaks=tuple(row["peaks"][k] for k in kept),
            scores=scores[kept],
            dropped=labels.dropped,
            rejected=(),
            foreground=labels.foreground,
            reliable=labels.reliable,
        )


def main(argv: Sequence[str]) -> int:
    """`attn2mask remask`."""
    description = "The same pictures with masks by other rules, without painting."
    return run_command(lambda: run(parse(RemaskConfig, argv, "attn2mask remask", description)))

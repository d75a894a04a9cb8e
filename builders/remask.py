"""`attn2mask remask`: labels the images of a build again by other rules, from its stored scores.

    attn2mask remask data/voc --out data/voc-fixed --threshold fixed --beta 0.3

Threshold, dense CRF and reliability may change; the rules that were applied while painting stay. With
unchanged rules the masks are the same bit for bit. Where a class was dropped from a row, the pixels that the
mask of the row ignores stay ignored. It resumes as a build does, also if the build has grown.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from attn2mask.builders.build import RUN, local_option, make_dataset, run_name
from attn2mask.builders.errors import UserError
from attn2mask.builders.options import fill, option, to_yaml
from attn2mask.builders.provenance import provenance
from attn2mask.builders.rules import (
    CONSTANTS,
    RULES,
    RuleOptions,
    Rules,
    complete,
    load_rules,
    preset_for,
    rules_preset,
)
from attn2mask.builders.sample import Sample
from attn2mask.builders.shards import BuildDirectory, Shard

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemaskConfig(RuleOptions):
    """The options of `attn2mask remask`. None stands for the rule of the build."""

    GROUPS: ClassVar = (RUN, RULES, CONSTANTS)

    dir: str = option("a dataset that was built with --store-scores", positional=True)
    out: str | None = local_option("directory of the new dataset", default_text="DIR-remasked", metavar="DIR")
    workers: int | None = local_option(
        "number of labeling processes", at_least=1, default_text="one for each core but one"
    )

    preset: str | None = rules_preset("the rules of the build")

    def rules(self, built: Rules, model: str) -> Rules:
        """The rules of the new masks, given those of the build and its painter. Raises UserError if options
        contradict each other, or if the preset does not exist or is not for the painter.
        """
        filled = complete(self, built if self.preset is None else load_rules(preset_for(model, self.preset)))
        return replace(built, **{f.name: getattr(filled, f.name) for f in fields(RuleOptions)})


def run(config: RemaskConfig) -> None:
    """Make the new dataset, or its missing shards. Raises UserError for mistakes of the user."""
    source = BuildDirectory(Path(config.dir))
    old = source.record()
    if not old["identity"].get("store_scores"):
        raise UserError(
            f"{source.path} holds no scores: remask needs a dataset that was built with --store-scores"
        )
    rules = config.rules(source.rules, old["identity"]["model"])
    directory = BuildDirectory(Path(config.out or f"{source.path}-remasked"))
    directory.check_free()
    logger.info("Labeling the images of %s again", source.path)
    source.check_complete()

    from attn2mask.builders.workers import default_workers, labeling_pool

    identity = old["identity"] | asdict(rules)
    record = {**old, "command": "remask", "identity": identity, **provenance()}
    resolved = fill(config, asdict(rules))
    options = {"remask.yaml": to_yaml(resolved, "attn2mask remask --config remask.yaml")}
    file = source.path / "build.yaml"
    if file.exists():
        try:
            options["build.yaml"] = file.read_text("utf-8")
        except ValueError as error:
            raise UserError(f"{file} is damaged: run the command that built {source.path} again") from error
    with (
        directory.locked(rank=0, run=run_name(1)),
        labeling_pool(config.workers or default_workers()) as pool,
    ):
        make_dataset(directory, record, options, source.table, True, partial(_samples, source, rules, pool))


def _samples(
    source: BuildDirectory,
    rules: Rules,
    pool: "ProcessPoolExecutor",
    shard: Shard,
    settled: Callable[[], object],
) -> Iterator[Sample]:
    from attn2mask.builders.label import relabel

    tasks, dropped_of = [], source.dropped(shard)
    for row in source.rows(shard):
        dropped = dropped_of.get(row["sample_id"], [])
        tasks.append((row, dropped, pool.submit(relabel, row, rules, source.table, dropped)))
    for row, dropped, task in tasks:
        labels = task.result()
        settled()
        yield labels.sample(row, (*dropped, *labels.dropped))

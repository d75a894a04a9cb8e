"""`attn2mask remask`: labels the images of a build again by other rules, from its stored attention.

    attn2mask remask data/voc --out data/voc-fixed --threshold fixed --beta 0.3
    attn2mask remask data/voc --out data/voc-daam --preset daam-like

From stored scores, threshold, dense CRF and reliability may change; from stored maps (`build --store-maps`),
also the map sizes, the propagation and the normalization. The recorded steps were fixed while painting. No
background words can be added, since their maps are not stored. With unchanged rules the masks are the same
bit for bit. Where a class was dropped from a row, the pixels that the
mask of the row ignores stay ignored. It resumes as a build does, also if the build has grown.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from attn2mask.builders.build import RUN, local_option, make_dataset
from attn2mask.builders.errors import UserError
from attn2mask.builders.locks import run_name
from attn2mask.builders.options import SAME_COMMAND, fill, flag_of, option, to_yaml
from attn2mask.builders.provenance import provenance
from attn2mask.builders.quality import Quality
from attn2mask.builders.records import OPTION_FILES
from attn2mask.builders.rules import (
    CONSTANTS,
    FIXED,
    RULES,
    RecordingOptions,
    RuleOptions,
    Rules,
    complete,
    load_rules,
    preset_for,
    rules_of,
    rules_preset,
)
from attn2mask.builders.sample import OPTIONAL, Sample, optional_columns
from attn2mask.builders.shards import BuildDirectory, Shard

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemaskConfig(RuleOptions, RecordingOptions):
    """The options of `attn2mask remask`. None stands for the rule of the build."""

    GROUPS: ClassVar = (RUN, RULES, CONSTANTS)
    RESUMES: ClassVar = SAME_COMMAND

    dir: str = option("a dataset that was built with --store-scores or --store-maps", positional=True)
    out: str | None = local_option("directory of the new dataset", default_text="DIR-remasked", metavar="DIR")
    overlay: bool | None = option(
        "store the mask drawn over the image as column overlay",
        None,
        RUN,
        default_text="as the build",
    )
    workers: int | None = local_option(
        "number of labeling processes", at_least=1, default_text="one for each core but one"
    )

    preset: str | None = rules_preset("the rules of the build")

    def rules(self, built: Rules, model: str, stored: Iterable[str] = OPTIONAL) -> Rules:
        """The rules of the new masks, given those of the build, its painter, and the columns in `OPTIONAL`
        that it stored.

        Raises UserError if options contradict each other, if the preset does not exist or is not for the
        painter, and if the rules need attention that was not stored.
        """
        chosen = built if self.preset is None else load_rules(preset_for(model, self.preset))
        rules = rules_of(complete(self, chosen))
        changed = changed_recording(built, rules)
        of_preset = "" if self.preset is None else f" of --preset {self.preset}"
        if fixed := [name for name in changed if name in FIXED]:
            raise UserError(
                f"remask cannot take {_values(fixed, rules)}{of_preset}: the recorded steps and the side of"
                f" the self-attention were fixed while painting ({_values(fixed, built)})"
            )
        if changed and rules.background_words:
            raise UserError(
                f"remask cannot take {_values(changed, rules)}{of_preset}: with --background-words, scores"
                " need the attention of the background words, which rows do not hold"
            )
        if changed and "maps" not in stored:
            raise UserError(
                f"remask cannot take {_values(changed, rules)}{of_preset} from scores alone, which have"
                f" {_values(changed, built)}: build with --store-maps"
            )
        if changed and rules.propagation_power and "self_attention" not in stored:
            raise UserError(
                f"remask cannot take --propagation-power {rules.propagation_power}{of_preset} without the"
                " self-attention: build with --store-maps --store-self-attention"
            )
        return rules


def changed_recording(built: Rules, rules: Rules) -> list[str]:
    """The options of recording that differ between two sets of rules."""
    return [f.name for f in fields(RecordingOptions) if getattr(built, f.name) != getattr(rules, f.name)]


def _values(names: Iterable[str], rules: Rules) -> str:
    return ", ".join(f"{flag_of(name)} {getattr(rules, name)}" for name in names)


def run(config: RemaskConfig) -> None:
    """Make the new dataset, or its missing shards. Raises UserError for mistakes of the user."""
    source = BuildDirectory(Path(config.dir))
    old = source.record()
    stored = optional_columns(old["identity"])
    if "scores" not in stored:
        raise UserError(
            f"{source.path} holds no scores: remask needs a dataset that was built with --store-scores or"
            " --store-maps"
        )
    rules = config.rules(source.rules, old["identity"]["model"], stored)
    directory = derived_directory(source, config.out, "remasked")
    logger.info("Labeling the images of %s again", source.path)
    source.check_complete()

    from attn2mask.builders.workers import default_workers, labeling_pool

    overlay = bool(old["identity"].get("overlay") if config.overlay is None else config.overlay)
    identity = old["identity"] | asdict(rules) | {"overlay": overlay}
    old.pop("begun_under", None)  # no image is painted; the manifests keep under what each was
    commands = [*old.get("commands", [old.get("command")]), "remask"]
    record = {**old, "command": "remask", "commands": commands, "identity": identity, **provenance()}
    resolved = fill(config, asdict(rules) | {"overlay": overlay})
    options = copied_options(source) | {
        "remask.yaml": to_yaml(resolved, "attn2mask remask --config remask.yaml")
    }
    filters = source.report().get("filters")
    quality = Quality(source.table, optional_columns(identity), None, old["identity"].get("min_presence"))
    with (
        directory.locked(rank=0, run=run_name(1)),
        labeling_pool(config.workers or default_workers()) as pool,
    ):
        # The scores stay while the options of recording do.
        latent_side = source.latent_side if changed_recording(source.rules, rules) else None
        samples = partial(_samples, source, rules, latent_side, overlay, pool)
        make_dataset(
            directory,
            record,
            options,
            source.table,
            lambda shard, settled: quality.measure(samples(shard, settled)),
            lambda shard: (source.manifest(shard) or {}).get("made_under", {}),
            further={"filters": filters} if filters else {},
        )


def derived_directory(source: BuildDirectory, out: str | None, suffix: str) -> BuildDirectory:
    """The directory of a dataset that is made of another one: `out`, or that of the source with a suffix.

    Raises UserError if it is that of the source, and as `BuildDirectory.check_free`.
    """
    directory = BuildDirectory(Path(out or f"{source.path}-{suffix}"))
    if directory.path.resolve() == source.path.resolve():
        raise UserError(f"--out {directory.path} is the dataset itself: choose another directory")
    directory.check_free()
    return directory


def copied_options(source: BuildDirectory) -> dict[str, str]:
    """The texts of the files of options that a dataset has, by their names. Raises UserError for one that
    cannot be read.
    """
    options = {}
    for file in (source.path / name for name in OPTION_FILES):
        if file.exists():
            try:
                options[file.name] = file.read_text("utf-8")
            except ValueError as error:
                raise UserError(
                    f"{file} is damaged: run the command that built {source.path} again"
                ) from error
    return options


def _samples(
    source: BuildDirectory,
    rules: Rules,
    latent_side: int | None,
    overlay: bool,
    pool: "ProcessPoolExecutor",
    shard: Shard,
    settled: Callable[[], object],
) -> Iterator[Sample]:
    """The rows of a shard with new labels, and with new scores if `latent_side` is given. `overlay` says
    whether the masks are also drawn over the images.
    """
    from attn2mask.builders.label import relabel, rescored

    tasks, dropped_of = [], source.dropped(shard)
    for row in source.rows(shard):
        dropped = dropped_of.get(row["sample_id"], [])
        if latent_side is not None:
            row |= rescored(row, rules, latent_side)
        needed = {name: value for name, value in row.items() if name not in ("maps", "self_attention")}
        tasks.append((row, dropped, pool.submit(relabel, needed, rules, source.table, dropped, overlay)))
    for row, dropped, task in tasks:
        labels = task.result()
        settled()
        yield labels.sample(row, (*dropped, *labels.dropped))

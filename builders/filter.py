"""`attn2mask filter`: keeps the rows of a build that fit, and records which it dropped and why.

    attn2mask filter data/voc --out data/voc-good --min-reliable 0.7 --drop-duplicates
    attn2mask filter data/voc --out data/seen --score-model google/siglip-base-patch16-224 --min-presence 0.2

All rows are measured first, and then those that fit are written. Images and masks stay as they are. The rows
get the columns `reliable` and `image_hash`, and those of `--score-model`. What was measured stays in the
folder `.measured`, so that a run that was interrupted resumes; it also resumes if the build has grown.
"""

import logging
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pyarrow.parquet import ParquetFile
from tqdm import tqdm

from attn2mask.builders.build import RUN, local_option, make_dataset
from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.files import refuse_link, sha256_of, write_file
from attn2mask.builders.image_hash import DISTANCE, near_duplicates
from attn2mask.builders.images import decode_png
from attn2mask.builders.locks import run_name
from attn2mask.builders.options import SAME_COMMAND, CheckedOptions, option, to_yaml
from attn2mask.builders.provenance import provenance
from attn2mask.builders.quality import Quality, absent
from attn2mask.builders.remask import copied_options, derived_directory
from attn2mask.builders.sample import Sample, optional_columns
from attn2mask.builders.seals import sealed, unsealed
from attn2mask.builders.shards import BuildDirectory, Shard

logger = logging.getLogger(__name__)

ROWS = "rows that are kept"
MEASURED = ".measured"
_CARRIED = ("image_hash", "clip_score", "presence")  # measures that are columns, and need no second look
_criterion = partial(option, default=None, group=ROWS)


@dataclass(frozen=True)
class FilterConfig(CheckedOptions):
    """The options of `attn2mask filter`."""

    GROUPS: ClassVar = (RUN, ROWS)
    RESUMES: ClassVar = SAME_COMMAND

    dir: str = option("a dataset that build, remask or filter made", positional=True)
    out: str | None = local_option("directory of the new dataset", default_text="DIR-filtered", metavar="DIR")
    min_reliable: float | None = _criterion("least share of reliable pixels, 0 to 1", at_least=0, at_most=1)
    min_clip_score: float | None = _criterion(
        "least agreement of image and prompt, a cosine from -1 to 1", at_least=-1, at_most=1
    )
    min_presence: float | None = _criterion(
        "classes of a lower presence, 0 to 1, become untrusted; a row without others is dropped",
        at_least=0,
        at_most=1,
    )
    drop_duplicates: bool = option("drop rows whose image is like that of an earlier row", False, ROWS)
    drop: str | None = _criterion("drop the rows of this file: sample ids, one in each line", metavar="FILE")
    score_model: str | None = _criterion(
        "folder or model of the Hub, like CLIP or SigLIP, that scores the agreement and the presence",
        default_text="the scores of the build",
        metavar="MODEL",
    )


def run(config: FilterConfig) -> None:
    """Make the new dataset, or its missing shards. Raises UserError for mistakes of the user, and if no row
    is left.
    """
    source = BuildDirectory(Path(config.dir))
    old = source.record()
    directory = derived_directory(source, config.out, "filtered")
    before = _threshold_of(source, config, old["identity"])
    logger.info("Reading the rows of %s", source.path)
    source.check_complete()
    report = source.report()
    if not report:
        raise UserError(f"{source.path} has no report.json: run the command that made it again")
    listed = read_ids(config.drop, source) if config.drop else frozenset()
    scorer = None
    if config.score_model is not None:
        from attn2mask.builders.score_model import RowScorer, load_score_model

        logger.info("Loading the model of scores %s", config.score_model)
        scorer = RowScorer(load_score_model(config.score_model), source.table)

    least = max((value for value in (before, config.min_presence) if value is not None), default=None)
    criteria: dict[str, Any] = {
        "min_reliable": config.min_reliable,
        "min_clip_score": config.min_clip_score,
        "min_presence": None if config.min_presence is None else least,
        "duplicate_distance": DISTANCE if config.drop_duplicates else None,
    }
    criteria = {name: value for name, value in criteria.items() if value is not None}
    identity = {
        **old["identity"],
        **({} if least is None else {"min_presence": least}),
        **(scorer.model.facts if scorer else {}),
        "store_quality": True,
        "filter": {
            **criteria,
            **({"drop": f"sha256:{sha256_of(Path(config.drop))}"} if config.drop else {}),
            **({"before": old["identity"]["filter"]} if "filter" in old["identity"] else {}),
        },
    }
    quality = Quality(source.table, optional_columns(identity), scorer, least)
    with directory.locked(rank=0, run=run_name(1)), _nothing_left_behind(directory):
        directory.check_identity(identity, whole=True)
        rows = measured(source, quality, directory.path / MEASURED)
        dropped = dropped_rows(rows, listed=listed, **criteria)
        names = {name for of_reason in dropped.values() for name in of_reason}
        kept = [row for row in rows if row["sample_id"] not in names]
        counts = "; ".join(f"{reason}: {len(of_reason)}" for reason, of_reason in dropped.items())
        if not kept:
            raise UserError(f"no row of the {len(rows)} in {source.path} is left ({counts}): ask for less")
        print(f"{len(kept)} of {len(rows)} rows are kept{f' ({counts})' if counts else ''}")
        old.pop("begun_under", None)  # no image is painted; the manifests keep under what each was
        record = {
            **old,
            "command": "filter",
            "commands": [*old.get("commands", [old.get("command")]), "filter"],
            "num_images": len(kept),
            "identity": identity,
            **provenance(),
        }
        done = {"rows": len(rows), "kept": len(kept), **criteria, "dropped": dropped}
        make_dataset(
            directory,
            record,
            copied_options(source)
            | {"filter.yaml": to_yaml(config, "attn2mask filter --config filter.yaml")},
            source.table,
            partial(_samples, source, kept, report, Quality(source.table, quality.stored, None, least)),
            partial(_painted_under, source, kept),
            further={"filters": [*report.get("filters", []), done]},
        )


def _threshold_of(source: BuildDirectory, config: FilterConfig, identity: Mapping[str, Any]) -> float | None:
    """The presence below which classes of the build are untrusted already; None if none are. Raises UserError
    if the options need scores that the build lacks, or cannot have new ones.
    """
    before = identity.get("min_presence")
    if config.score_model is not None and before is not None:
        raise UserError(
            f"--score-model: {source.path} has classes that are untrusted by the scores of"
            f" {identity['score_model']}: filter the dataset that was made without --min-presence"
        )
    needed = config.min_clip_score is not None or config.min_presence is not None
    if needed and config.score_model is None and "score_model" not in identity:
        raise UserError(
            f"--min-clip-score and --min-presence need scores, which {source.path} lacks: give --score-model"
        )
    return before


def read_ids(file: str, source: BuildDirectory) -> frozenset[str]:
    """The sample ids in a text file, one in each line. Raises UserError if it cannot be read, and for an id
    that no row has.
    """
    try:
        lines = Path(file).read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"--drop {file} cannot be read: {first_line(error)}") from error
    ids = dict.fromkeys(line.strip() for line in lines if line.strip())
    there: set[str] = set()
    for shard in source.shards:
        there.update(
            ParquetFile(source.shard_file(shard)).read(["sample_id"]).column("sample_id").to_pylist()
        )
    if unknown := [name for name in ids if name not in there]:
        more = f", nor {len(unknown) - 1} more of its ids" if len(unknown) > 1 else ""
        raise UserError(f"--drop {file}: {source.path} has no row {unknown[0]!r}{more}: correct the file")
    return frozenset(ids)


def dropped_rows(
    rows: Sequence[Mapping[str, Any]],
    listed: Collection[str] = (),
    min_reliable: float | None = None,
    min_clip_score: float | None = None,
    min_presence: float | None = None,
    duplicate_distance: int | None = None,
) -> dict[str, list[str]]:
    """The sample ids of the rows that do not fit, by reason; a row may have several.

    Args:
        rows: the measures of all rows, in order: `sample_id`, `reliable`, `image_hash`, and `clip_score` and
            `presence` where these are asked for.
        listed: sample ids that are dropped.
        min_reliable, min_clip_score: the least values.
        min_presence: rows with classes are dropped if the presence of each is lower.
        duplicate_distance: near-duplicates of earlier rows are dropped (see `image_hash.py`). Rows that have
            another reason do not count as earlier ones.
    """
    faults: dict[str, Callable[[Mapping[str, Any]], bool]] = {}
    if listed:
        faults["listed"] = lambda row: row["sample_id"] in listed
    if min_reliable is not None:
        faults[f"reliable below {min_reliable:g}"] = lambda row: row["reliable"] < min_reliable
    if min_clip_score is not None:
        faults[f"clip_score below {min_clip_score:g}"] = lambda row: row["clip_score"] < min_clip_score
    if min_presence is not None:
        faults[f"presence of every class below {min_presence:g}"] = lambda row: (
            0 < len(row["presence"]) == len(absent(row, min_presence))
        )
    dropped = {
        reason: [row["sample_id"] for row in rows if at_fault(row)] for reason, at_fault in faults.items()
    }
    if duplicate_distance is not None:
        out = {name for names in dropped.values() for name in names}
        left = [row for row in rows if row["sample_id"] not in out]
        repeated = near_duplicates([row["image_hash"] for row in left], duplicate_distance)
        dropped["near-duplicate of an earlier row"] = [left[k]["sample_id"] for k in np.flatnonzero(repeated)]
    return {reason: names for reason, names in dropped.items() if names}


def measured(source: BuildDirectory, quality: Quality, folder: Path) -> list[dict[str, Any]]:
    """The measures of all rows of a build: `sample_id`, the number of the `shard`, the `position` in it, and
    what `quality` measures. They are kept in `folder`, one file for each shard.
    """
    folder.mkdir(exist_ok=True)
    refuse_link(folder)
    found: list[dict[str, Any]] = []
    shards = source.shards
    with tqdm(total=shards[-1].rows.stop, desc=f"measuring {source.path}", unit=" images", delay=1) as bar:
        for shard in shards:
            file = folder / f"{shard.number:05d}.json"
            # The measures depend on these values, and on the rows.
            key = {
                "sha256": (source.manifest(shard) or {}).get("sha256"),
                "min_presence": quality.min_presence,
                "scores": quality.scorer.model.facts if quality.scorer else None,
            }
            kept = unsealed(file.read_bytes()) if file.is_file() else None
            if kept is None or kept["key"] != key:
                samples = quality.measure(sample_of(row) for row in source.rows(shard))
                names = ("sample_id", "reliable", *_CARRIED)
                rows = [{name: row[name] for name in names if name in row} for row in _rows(samples, bar)]
                kept = {"key": key, "rows": rows}
                write_file(file, sealed(kept))
            else:
                bar.update(len(shard.rows))
            found += [
                {**row, "shard": shard.number, "position": position}
                for position, row in enumerate(kept["rows"])
            ]
    return found


def _rows(samples: Iterable[Sample], bar: Any) -> Iterator[dict[str, Any]]:
    for sample in samples:
        bar.update()
        yield sample.row


def sample_of(row: dict[str, Any], dropped: Sequence[str] = (), rejected: Sequence[str] = ()) -> Sample:
    """The sample of a row as a shard holds it. See `Sample` for `dropped` and `rejected`."""
    mask, reliability = (decode_png(row[name]["bytes"]) for name in ("mask", "reliability"))
    foreground = float(np.isin(mask, row["classes"]).mean())
    return Sample(row, dropped, rejected, foreground, float(reliability.mean()) / 255)


def _samples(
    source: BuildDirectory,
    kept: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
    quality: Quality,
    shard: Shard,
    settled: Callable[[], object],
) -> Iterator[Sample]:
    """The rows of a shard of the new dataset, which are those of `kept` at its indices."""

    def read() -> Iterator[Sample]:
        shards = source.shards
        for number, group in groupby(kept[shard.rows.start : shard.rows.stop], lambda row: row["shard"]):
            wanted = {row["position"]: row for row in group}
            for position, row in enumerate(source.rows(shards[number])):
                if position in wanted:
                    name = row["sample_id"]
                    measures = wanted[position]
                    row |= {column: measures[column] for column in _CARRIED if column in measures}
                    reasons = (report[kind].get(name, ()) for kind in ("dropped", "rejected"))
                    yield sample_of(row, *reasons)

    for sample in quality.measure(read()):
        settled()
        yield sample


def _painted_under(source: BuildDirectory, kept: Sequence[Mapping[str, Any]], shard: Shard) -> dict[str, Any]:
    """The conditions under which the images of a new shard were painted. Where those of its rows differ, a
    value names all of them.
    """
    shards = source.shards
    numbers = dict.fromkeys(row["shard"] for row in kept[shard.rows.start : shard.rows.stop])
    found = [(source.manifest(shards[number]) or {}).get("made_under", {}) for number in numbers]
    values = {name: sorted({each.get(name) for each in found}, key=str) for name in found[0]}
    return {name: own[0] if len(own) == 1 else " or ".join(map(str, own)) for name, own in values.items()}


@contextmanager
def _nothing_left_behind(directory: BuildDirectory) -> Iterator[None]:
    """After a mistake of the user, remove what was measured and the locks, which this process holds, unless
    there is a dataset, and the directory if it is empty then.
    """
    try:
        yield
    except UserError:
        if not directory.record_file.exists():
            shutil.rmtree(directory.path / MEASURED, ignore_errors=True)
            with suppress(OSError):  # Windows removes no file that is open
                for file in (".lock-0", ".held-by-0"):
                    (directory.path / file).unlink(missing_ok=True)
                directory.path.rmdir()
        raise

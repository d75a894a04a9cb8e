"""The directory of a build: its shards with their manifests, its record, and its locks.

    build.json                  the record: all that the rows depend on; written first
    data/train-00000.parquet    a shard; written under a hidden name, synced and renamed
    manifest/00000.json         its size, its checksum and its report; written after the shard
    report.json, README.md      totals and a short text; only if the build is complete
    .lock-0, .held-by-0         locks of the processes (see `locks.py`)

A shard counts as made if its manifest is valid and its checksum is right. So after `kill -9` at any moment,
each shard is either complete or made again.

Each JSON file has a seal, a checksum over its values, so that a change by hand is noticed. The metadata of
each shard have a digest of the record's `identity` and `table`, which ties the two together. Folders of drawn
rows have the same files; their record is draw.json, and they have no report. A published build has its shards
beside build.json and no manifests; `shards` in its report.json holds their sizes and checksums.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import pyarrow
from pyarrow.parquet import ParquetFile, read_metadata
from tqdm import tqdm

from attn2mask.builders.classes import CaptionStyle, ClassTable, LabelClass
from attn2mask.builders.conditions import last_bit_warning, rows_by_conditions
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import (
    lock_of,
    refuse_link,
    refuse_pattern,
    replacing,
    sha256_of,
    write_file,
)
from attn2mask.builders.locks import locked
from attn2mask.builders.rules import Rules
from attn2mask.builders.seals import sealed, unsealed

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

START = 600  # seconds that a process waits for process 0 to write build.json
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # other errors hide a file that is there
MOST_SHARDS = 100_000  # the numbers in their names have five digits
RECORD, DRAWN_RECORD = "build.json", "draw.json"  # the records of builds and of drawn rows
DIGEST = "attn2mask_record"  # the key of the record's digest in the metadata of a shard

State = Literal["missing", "damaged", "made"]


@dataclass(frozen=True)
class Shard:
    """Shard `number` has the samples with the indices `rows`."""

    number: int
    rows: range


def plan(num_images: int, shard_size: int) -> list[Shard]:
    """All shards of a build; the last one may be smaller. Raises UserError if there are too many."""
    if num_images > MOST_SHARDS * shard_size:
        raise UserError(
            f"{num_images} rows need over {MOST_SHARDS} files of {shard_size} rows: use a larger --shard-size"
        )
    starts = range(0, num_images, shard_size)
    return [Shard(n, range(s, min(s + shard_size, num_images))) for n, s in enumerate(starts)]


@dataclass(frozen=True)
class Origin:
    """What ties a shard to its record.

    Attributes:
        digest: SHA-256 over `identity` and `table` of the record; None in a foreign shard.
        names: the class names by mask id; None where there is no table.
    """

    digest: str | None
    names: tuple[str, ...] | None


def origin_of(shard: Path) -> Origin:
    """The origin of a shard by its metadata. Raises OSError or ArrowException for a damaged one."""
    metadata = read_metadata(shard).metadata or {}
    digest, features = (metadata.get(key) for key in (DIGEST.encode(), b"huggingface"))
    names = None
    with suppress(LookupError, TypeError, ValueError):
        names = tuple(json.loads(features or "")["info"]["features"]["classes"]["feature"]["names"])
    return Origin(digest and digest.decode("utf-8", "replace"), names)


@dataclass(frozen=True)
class BuildDirectory:
    """The files of a build under `path`, or of drawn rows, whose `record_name` is `DRAWN_RECORD`."""

    path: Path
    record_name: str = RECORD

    @property
    def record_file(self) -> Path:
        return self.path / self.record_name

    @property
    def data(self) -> Path:
        """The folder of the shards."""
        return self.path / "data" if self.published is None else self.path

    def shard_file(self, shard: Shard) -> Path:
        return self.data / f"train-{shard.number:05d}.parquet"

    def manifest_file(self, shard: Shard) -> Path:
        return self.path / "manifest" / f"{shard.number:05d}.json"

    @cached_property
    def published(self) -> dict[str, Any] | None:
        """report.json of a copy of a published build; None for another directory. Raises UserError if the
        copy has none, and as `report`.
        """
        if (self.path / "data").exists() or not any(self.path.glob("train-*.parquet")):
            return None
        report = self.report()
        if "shards" not in report:
            raise UserError(f"{self.path} lacks report.json, which has the checksums: download it again")
        return report

    def record(self) -> dict[str, Any]:
        """The content of build.json. Raises UserError if there is none, if it cannot be read, if it is
        damaged or was changed by hand, and if an earlier version of this package wrote it.
        """
        try:
            content = self.record_file.read_bytes()
        except _ABSENT as error:
            raise UserError(f"{self.path} holds no build (it has no {self.record_name})") from error
        except OSError as error:
            raise _unreadable(self.record_file, error) from error
        record = self._unsealed(self.record_file, content)
        match record:
            case {"num_images": int(rows), "identity": {"shard_size": int(size)}}:
                if 0 < rows <= MOST_SHARDS * size and isinstance(record.get("versions", {}), dict):
                    return record
        raise self._damaged()

    def report(self) -> dict[str, Any]:
        """The content of report.json; empty if there is none. Raises UserError if it is damaged or was
        changed by hand.
        """
        file = self.path / "report.json"
        try:
            return self._unsealed(file, file.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from error

    @property
    def origin(self) -> Origin:
        """What the shards must have as their origin. Raises UserError as `record` and `table`."""
        record = self.record()
        content = json.dumps([record["identity"], record.get("table")])
        names = self._table(record).names if "table" in record else None
        return Origin(hashlib.sha256(content.encode()).hexdigest(), names)

    @property
    def shards(self) -> list[Shard]:
        """All shards of the build, made or not. Raises UserError if there is no valid record."""
        record = self.record()
        return plan(record["num_images"], record["identity"]["shard_size"])

    @property
    def table(self) -> ClassTable:
        """The class table of the rows when they were made. Raises UserError if the record is damaged."""
        return self._table(self.record())

    def _table(self, record: dict[str, Any]) -> ClassTable:
        try:
            values = _tuples(record["table"])
            values["classes"] = tuple(LabelClass(**label) for label in values["classes"])
            if style := values.get("caption_style"):
                values["caption_style"] = CaptionStyle(**style)
            table = ClassTable(**values)
            _ = table.palette
        except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
            raise self._damaged() from error
        return table

    @property
    def rules(self) -> Rules:
        """The rules of the masks. Raises UserError if the record is damaged."""
        try:
            identity = self.record()["identity"]
            return Rules(**{f.name: identity[f.name] for f in fields(Rules)})
        except KeyError as error:
            raise UserError(
                f"{self.record_file} lacks {error}: restore it from a copy, or, if an older version"
                " of attn2mask made it, build again in another directory"
            ) from error
        except TypeError as error:
            raise self._damaged() from error

    @property
    def latent_side(self) -> int:
        """The shorter side of the latents of the images. Raises UserError if the record is damaged."""
        side = self.record().get("latent_side")
        if not isinstance(side, int):
            raise self._damaged()
        return side

    def _damaged(self) -> UserError:
        return UserError(
            f"{self.record_file} is damaged: restore it from a copy, or make it again in another directory"
        )

    def _unsealed(self, file: Path, content: bytes) -> dict[str, Any]:
        """The values of build.json or report.json. Raises UserError if they are not as they were written."""
        if (values := unsealed(content)) is not None:
            return values
        try:
            values = json.loads(content)
        except (ValueError, RecursionError):
            values = None
        what = "was changed after it was written" if isinstance(values, dict) else "is damaged"
        if isinstance(values, dict) and "seal" not in values and values.get("format_version") == 1:
            raise UserError(
                f"{file} is of an earlier version of attn2mask, which wrote no checksums into it: use that"
                " version, or make the rows again in another directory"
            )
        raise UserError(f"{file} {what}: restore it from a copy, or make it again in another directory")

    def rows(self, shard: Shard) -> Iterator[dict[str, Any]]:
        """The rows of a shard. Images are `{"bytes": PNG file}`, classes are mask ids, and attention maps are
        arrays.
        """
        for batch in ParquetFile(self.shard_file(shard)).iter_batches(batch_size=16):
            attention = [name for name in ("maps", "self_attention") if name in batch.schema.names]
            for index, row in enumerate(batch.drop_columns(attention).to_pylist()):
                yield row | {name: _with_arrays(batch.column(name)[index]) for name in attention}

    def check_free(self) -> None:
        """Raises UserError if the directory holds files, but no build, and as `refuse_pattern`."""
        refuse_pattern(self.path, f"--out {self.path}")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path} is a file")
        if any(self.path.glob("[!.]*")) and not self.record_file.exists():
            raise UserError(
                f"--out {self.path} is not empty, and holds no {self.record_name}: choose another directory"
            )
        if self.published is not None:
            raise UserError(f"--out {self.path} is a copy of a published dataset: choose another directory")

    @contextmanager
    def locked(self, rank: int, run: str) -> Iterator[None]:
        """Create the directory, and keep other runs out of it until the block ends or this process dies.

        All processes of one run give the same name `run`. Raises UserError if another run is working there.
        """
        with locked(self.path, rank, run, "build"):
            yield

    def claim(
        self, record: dict[str, Any], options: Mapping[str, str], rank: int, exact: bool = False
    ) -> None:
        """Write `record` as build.json and `options`, texts by file name, beside it. Process 0 writes; the
        others wait for it.

        Under other conditions than those of the rows that are there (`begun_under` in the record), a warning
        names these rows. Raises UserError if `identity` has changed or `num_images` has shrunk, and with
        `exact` instead of that warning.
        """
        record = _as_read(record)
        file = self.record_file
        if rank:
            deadline = time.monotonic() + START
            claimed = ("identity", "num_images")
            while not (file.exists() and all(self.record()[key] == record[key] for key in claimed)):
                if time.monotonic() > deadline:
                    raise UserError(f"process 0 of this build did not start within {START} seconds")
                time.sleep(0.1)
            self._check_conditions(record, self.record().get("begun_under"), exact)
            return
        if file.exists():
            before = self.record()
            self.check_identity(record["identity"], whole=True)
            if record["num_images"] < before["num_images"]:
                rows = f"--num-images {before['num_images']}, which can only grow"
                raise UserError(f"{self.path} was made with {rows}, but it is {record['num_images']} now")
            old, new = before.get("versions", {}), record["versions"]
            if changed := [name for name in new if new[name] != old.get(name)]:
                started, now = (", ".join(f"{n} {of.get(n)}" for n in changed) for of in (old, new))
                logger.warning("%s was started with %s; resuming with %s", self.path, started, now)
            if self._check_conditions(record, None, exact) and "begun_under" in before:
                record["begun_under"] = before["begun_under"]
        # First build.json, by which the next run knows this directory if the disk is full now.
        write_file(file, sealed(record))
        for name, text in options.items():
            write_file(self.path / name, text.encode())

    def _check_conditions(self, record: dict[str, Any], begun: dict[str, Any] | None, exact: bool) -> bool:
        """Compare the conditions of `record` with those of the rows that are there; without rows, with those
        under which the build was `begun`. Returns whether rows are there. Warns and raises as `claim`.
        """
        shards = plan(record["num_images"], record["identity"]["shard_size"])
        made = [shard for shard, state in self.states(shards, verify=exact) if state == "made"]
        now = record.get("begun_under")
        if now is not None and len(made) < len(shards):
            there = ((shard.rows, (self.manifest(shard) or {}).get("made_under", {})) for shard in made)
            entries = rows_by_conditions(there) or ([{"rows": "", **begun}] if begun else [])
            message = last_bit_warning(self.path, entries, now)
            if message and exact:
                raise UserError(f"{message}, which --exact refuses: use these values, or another --out")
            if message:
                logger.warning(message)
        return bool(made)

    def check_identity(self, identity: dict[str, Any], whole: bool = False) -> None:
        """Raises UserError if there is a build.json, and a value of `identity` differs from it; if `identity`
        is `whole`, also if it lacks a value.
        """
        if not self.record_file.exists():
            return
        before, now = (_flat(part) for part in (self.record()["identity"], _as_read(identity)))
        there, here = (part.get("prompt_rules", 1) for part in (before, now))
        if there != here:
            raise UserError(
                f"{self.path} was begun under {'older' if there < here else 'newer'} prompt rules (version "
                f"{there}, now {here}), and a dataset never mixes two versions: use another --out"
            )
        keys = now | before if whole else now
        changed = [key for key in keys if now.get(key) != before.get(key)]
        different = [f"{key} (there {before.get(key)!r}, now {now.get(key)!r})" for key in changed]
        if different:
            raise UserError(
                f"{self.path} was made with other values: {'; '.join(different)}: use these, or another --out"
            )

    def state(self, shard: Shard, verify: bool = True) -> State:
        """The state of one shard (see `states`)."""
        return next(self.states([shard], verify))[1]

    def states(self, shards: Sequence[Shard], verify: bool = True) -> Iterator[tuple[Shard, State]]:
        """Whether each of the shards is there with all its rows, and as it was written. Without `verify`, the
        hashes of the files are not computed, and only the first shard is compared with the record.

        Raises UserError for a shard that belongs to another record, and as `record`.
        """
        origin, compared = self.origin, False
        bar = tqdm(shards, "verifying the shards", unit="shard", disable=not verify, leave=False, delay=1)
        for shard in bar:
            state = self._state(shard, verify)
            if state == "made" and (verify or not compared):
                state, compared = self._compared(shard, origin), True
            yield shard, state

    def _state(self, shard: Shard, verify: bool) -> State:
        """The state of a shard by its manifest, its size and (with `verify`) its hash."""
        file, manifest = self.shard_file(shard), self.manifest(shard)
        if manifest is None:
            return "missing"
        try:
            if file.stat().st_size != manifest["bytes"]:
                return "damaged"
            if verify and sha256_of(file) != manifest["sha256"]:
                return "damaged"
        except (FileNotFoundError, NotADirectoryError):
            return "missing"
        except IsADirectoryError:
            return "damaged"
        except OSError as error:
            raise _unreadable(file, error) from error
        return "made"

    def _compared(self, shard: Shard, origin: Origin) -> State:
        """The state of a shard whose bytes are right. Raises UserError if its origin is another one."""
        file = self.shard_file(shard)
        try:
            found = origin_of(file)
        except (OSError, pyarrow.ArrowException) as error:
            if isinstance(error, OSError) and error.errno:  # of the system, not about the content
                raise _unreadable(file, error) from error
            return "damaged"
        what = ""
        if origin.names is not None and found.names != origin.names:
            what = "the class names"
        elif found.digest != origin.digest:
            what = "the options or the class table"
        if what:
            raise UserError(
                f"{file} was made with other values than {self.record_file} has ({what} differ): restore both"
                " from a copy, or make it again in another directory"
            )
        return "made"

    def check_complete(self) -> None:
        """Raises UserError unless every shard of the build, and report.json if it is there, are as they were
        written.
        """
        self.report()
        for shard, state in self.states(self.shards):
            if state != "made":
                what = f"{self.shard_file(shard)} is {state}"
                raise UserError(f"{self.path} is not complete, {what}: run the command that made it again")

    def manifest(self, shard: Shard) -> dict[str, Any] | None:
        """The manifest of a shard; None if it is missing, damaged, or has another number of rows. That of a
        published build has no report but the reasons of `dropped`. Raises UserError if it cannot be read.
        """
        if (report := self.published) is not None:
            found = report["shards"][shard.number : shard.number + 1]
            manifest = {**found[0], "dropped": report["dropped"]} if found else None
        else:
            file = self.manifest_file(shard)
            try:
                manifest = unsealed(file.read_bytes())
            except _ABSENT:
                manifest = None
            except OSError as error:
                raise _unreadable(file, error) from error
        return manifest if manifest is not None and manifest.get("rows") == len(shard.rows) else None

    def dropped(self, shard: Shard) -> dict[str, list[str]]:
        """The reasons why classes of prompts are not in rows, by the sample ids of these rows: at least those
        of a shard.
        """
        return (self.manifest(shard) or {}).get("dropped", {})

    def check_data(self, shards: Iterable[Shard]) -> None:
        """Raises UserError if data/ has another shard than these, since `load_dataset` would read it, too."""
        own = {self.shard_file(shard) for shard in shards}
        foreign = sorted(file for file in self.data.glob("train-*") if file not in own)
        if foreign:
            raise UserError(f"{foreign[0]} is not a shard of this build: move it away, and try again")

    def missing(self, shards: Iterable[Shard]) -> list[Shard]:
        """The shards that are still to be made. If there are any, report.json and README.md are removed, and
        damaged shards, too, with a warning.
        """
        states = list(self.states(list(shards)))
        missing = [shard for shard, state in states if state != "made"]
        old = [self.path / name for name in ("report.json", "README.md") if missing]
        for shard in missing:
            old += [self.manifest_file(shard), self.shard_file(shard)]
        for shard in (shard for shard, state in states if state == "damaged"):
            logger.warning("%s is damaged; making it again", self.shard_file(shard))
        for file in old:
            file.unlink(missing_ok=True)
        return missing

    def write_shard(
        self,
        shard: Shard,
        features: "datasets.Features",
        rows: Iterable[dict[str, Any]],
        report: dict[str, Any],
    ) -> None:
        """Write the rows as a shard, then its manifest with the `report`. A failure leaves no file behind."""
        digest = self.origin.digest
        for folder in (self.path / "data", self.path / "manifest"):
            folder.mkdir(exist_ok=True)
            refuse_link(folder)
        with replacing(self.shard_file(shard)) as stream:
            write_parquet(stream, features, rows, {DIGEST: digest})
            stream.seek(0)
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
            size = stream.tell()
        manifest = {"rows": len(shard.rows), "bytes": size, "sha256": checksum, **report}
        write_file(self.manifest_file(shard), sealed(manifest))

    def manifests(self, shards: Iterable[Shard]) -> list[dict[str, Any]] | None:
        """The manifests of all shards; None if one is missing."""
        found = [self.manifest(shard) for shard in shards]
        return None if None in found else found

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Let one process at a time into the block."""
        with lock_of(self.path / ".finish"):
            yield


def write_parquet(
    stream: IO[bytes],
    features: "datasets.Features",
    rows: Iterable[dict[str, Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write rows and `metadata` as Parquet, in row groups of 16, so that a reader can stream the images."""
    from datasets.arrow_writer import ParquetWriter

    with ParquetWriter(features=features, stream=stream, writer_batch_size=16) as writer:
        for row in rows:
            writer.write(features.encode_example(row))
        writer.write_examples_on_file()  # which begins the file
        if metadata is not None:
            writer.pa_writer.add_key_value_metadata(metadata)
        writer.finalize(close_stream=False)


def _with_arrays(value: pyarrow.Scalar) -> Any:
    """A nested value of Parquet as Python reads it, but lists of lists of float16 in it are arrays."""
    kind = value.type
    if not value.is_valid:
        return None
    if pyarrow.types.is_struct(kind):
        return {name: _with_arrays(inner) for name, inner in value.items()}
    if not pyarrow.types.is_list(kind):
        return value.as_py()
    if pyarrow.types.is_list(kind.value_type) and pyarrow.types.is_float16(kind.value_type.value_type):
        return value.values.flatten().to_numpy().reshape(len(value), -1)
    return [_with_arrays(inner) for inner in value]


def _unreadable(file: Path, error: OSError) -> UserError:
    return UserError(f"{file} cannot be read: {error.strerror or error}")


def _tuples(value: Any) -> Any:
    """Values from JSON with tuples in place of lists, as frozen dataclasses have them."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _as_read(values: dict[str, Any]) -> dict[str, Any]:
    """Values as JSON returns them: tuples become lists."""
    return json.loads(json.dumps(values))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat

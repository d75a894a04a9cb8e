"""The directory of a build: its shards with their manifests, its record, and its locks.

    build.json                  the record: all that the rows depend on; written first
    data/train-00000.parquet    a shard; written under a hidden name, synced and renamed
    manifest/00000.json         its checksum and its report, with their own checksum; written after the shard
    report.json, README.md      totals and a short text; only if the build is complete
    .lock-0, .held-by-0         locks of the processes (see `locks.py`)

A shard counts as made if its manifest is valid and its checksum is right. So after `kill -9` at any moment,
each shard is either complete or made again.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import pyarrow
from pyarrow.parquet import ParquetFile

from attn2mask.builders.classes import CaptionStyle, ClassTable, LabelClass
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import lock_of, refuse_link, refuse_pattern, replacing, write_file
from attn2mask.builders.locks import locked
from attn2mask.builders.rules import Rules
from attn2mask.builders.seals import seal_of

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

START = 600  # seconds that a process waits for process 0 to write build.json
MOST_SHARDS = 100_000  # the numbers in their names have five digits


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
class BuildDirectory:
    """The files of a build under `path`."""

    path: Path

    def shard_file(self, shard: Shard) -> Path:
        return self.path / "data" / f"train-{shard.number:05d}.parquet"

    def manifest_file(self, shard: Shard) -> Path:
        return self.path / "manifest" / f"{shard.number:05d}.json"

    def record(self) -> dict[str, Any]:
        """The content of build.json. Raises UserError if there is none, or if it is damaged."""
        file = self.path / "build.json"
        try:
            record = json.loads(file.read_bytes())
        except OSError as error:
            raise UserError(f"{self.path} holds no build (its build.json cannot be read)") from error
        except (ValueError, RecursionError):
            record = None
        match record:
            case {"num_images": int(rows), "identity": {"shard_size": int(size)}}:
                if 0 < rows <= MOST_SHARDS * size and isinstance(record.get("versions", {}), dict):
                    return record
        raise self._damaged()

    @property
    def shards(self) -> list[Shard]:
        """All shards of the build, made or not. Raises UserError if there is no valid record."""
        record = self.record()
        return plan(record["num_images"], record["identity"]["shard_size"])

    @property
    def table(self) -> ClassTable:
        """The class table of the rows when they were made. Raises UserError if the record is damaged."""
        try:
            values = _tuples(self.record()["table"])
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
                f"{self.path / 'build.json'} lacks {error}: restore it from a copy, or, if an older version"
                " of attn2mask made it, build into another directory"
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
            f"{self.path / 'build.json'} is damaged: restore it from a copy, or build into another directory"
        )

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
        if any(self.path.glob("[!.]*")) and not (self.path / "build.json").exists():
            raise UserError(f"--out {self.path} is not empty, and no build made it: choose another directory")

    @contextmanager
    def locked(self, rank: int, run: str) -> Iterator[None]:
        """Create the directory, and keep other runs out of it until the block ends or this process dies.

        All processes of one run give the same name `run`. Raises UserError if another run is working there.
        """
        with locked(self.path, rank, run, "build"):
            yield

    def claim(self, record: dict[str, Any], options: Mapping[str, str], rank: int) -> None:
        """Write `record` as build.json and `options`, texts by file name, beside it. Process 0 writes; the
        others wait for it. Raises UserError if `identity` has changed or `num_images` has shrunk.
        """
        record = _as_read(record)
        file = self.path / "build.json"
        if rank:
            deadline = time.monotonic() + START
            claimed = ("identity", "num_images")
            while not (file.exists() and all(self.record()[key] == record[key] for key in claimed)):
                if time.monotonic() > deadline:
                    raise UserError(f"process 0 of this build did not start within {START} seconds")
                time.sleep(0.1)
            return
        if file.exists():
            before = self.record()
            self.check_identity(record["identity"])
            if record["num_images"] < before["num_images"]:
                rows = f"--num-images {before['num_images']}, which can only grow"
                raise UserError(f"{self.path} was made with {rows}, but it is {record['num_images']} now")
            old, new = before.get("versions", {}), record["versions"]
            if changed := [name for name in new if new[name] != old.get(name)]:
                started, now = (", ".join(f"{n} {of.get(n)}" for n in changed) for of in (old, new))
                logger.warning("%s was started with %s; resuming with %s", self.path, started, now)
        # First build.json, by which the next run knows this directory if the disk is full now.
        write_file(file, json.dumps(record, indent=1).encode())
        for name, text in options.items():
            write_file(self.path / name, text.encode())

    def check_identity(self, identity: dict[str, Any]) -> None:
        """Raises UserError if there is a build.json, and a value of `identity` differs from it."""
        if not (self.path / "build.json").exists():
            return
        before, now = (_flat(part) for part in (self.record()["identity"], _as_read(identity)))
        there, here = (part.get("prompt_rules", 1) for part in (before, now))
        if there != here:
            raise UserError(
                f"{self.path} was begun under {'older' if there < here else 'newer'} prompt rules (version "
                f"{there}, now {here}), and a dataset never mixes two versions: use another --out"
            )
        changed = [key for key in now if now[key] != before.get(key)]
        different = [f"{key} (there {before.get(key)!r}, now {now[key]!r})" for key in changed]
        if different:
            raise UserError(
                f"{self.path} was made with other values: {'; '.join(different)}: use these, or another --out"
            )

    def state(self, shard: Shard, verify: bool = True) -> Literal["missing", "damaged", "made"]:
        """Whether a shard is there with all its rows, and as it was written. Without `verify`, the hash of
        its file is not computed.
        """
        manifest = self.manifest(shard)
        if manifest is None:
            return "missing"
        if not verify:
            return "made" if self.shard_file(shard).is_file() else "damaged"
        with suppress(OSError), open(self.shard_file(shard), "rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() == manifest["sha256"]:
                return "made"
        return "damaged"

    def check_complete(self) -> None:
        """Raises UserError unless every shard of the build is there as it was written."""
        for shard in self.shards:
            if (state := self.state(shard)) != "made":
                what = f"{self.shard_file(shard)} is {state}"
                raise UserError(f"{self.path} is not complete, {what}: run the command that made it again")

    def manifest(self, shard: Shard) -> dict[str, Any] | None:
        """The manifest of a shard; None if it is missing, damaged, or has another number of rows."""
        try:
            manifest = json.loads(self.manifest_file(shard).read_bytes())
            sound = manifest.pop("seal") == seal_of(manifest)
        except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):
            return None
        return manifest if sound and manifest["rows"] == len(shard.rows) else None

    def dropped(self, shard: Shard) -> dict[str, list[str]]:
        """The reasons why classes of prompts are not in rows of a shard, by the sample ids of these rows."""
        return (self.manifest(shard) or {}).get("dropped", {})

    def check_data(self, shards: Iterable[Shard]) -> None:
        """Raises UserError if data/ has another shard than these, since `load_dataset` would read it, too."""
        own = {self.shard_file(shard) for shard in shards}
        foreign = sorted(file for file in (self.path / "data").glob("train-*") if file not in own)
        if foreign:
            raise UserError(f"{foreign[0]} is not a shard of this build: move it away, and try again")

    def missing(self, shards: Iterable[Shard]) -> list[Shard]:
        """The shards that are still to be made. If there are any, report.json and README.md are removed, and
        damaged shards, too, with a warning.
        """
        states = [(shard, self.state(shard)) for shard in shards]
        missing = [shard for shard, state in states if state != "made"]
        old = [self.path / name for name in ("report.json", "README.md") if missing]
        for shard in (shard for shard, state in states if state == "damaged"):
            logger.warning("%s is damaged; making it again", self.shard_file(shard))
            old += [self.manifest_file(shard), self.shard_file(shard)]
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
        for folder in (self.path / "data", self.path / "manifest"):
            folder.mkdir(exist_ok=True)
            refuse_link(folder)
        with replacing(self.shard_file(shard)) as stream:
            write_parquet(stream, features, rows)
            stream.seek(0)
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
            size = stream.tell()
        manifest = {"rows": len(shard.rows), "bytes": size, "sha256": checksum, **report}
        manifest["seal"] = seal_of(manifest)
        write_file(self.manifest_file(shard), json.dumps(manifest, indent=1).encode())

    def manifests(self, shards: Iterable[Shard]) -> list[dict[str, Any]] | None:
        """The manifests of all shards; None if one is missing."""
        found = [self.manifest(shard) for shard in shards]
        return None if None in found else found

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Let one process at a time into the block."""
        with lock_of(self.path / ".finish"):
            yield


def write_parquet(stream: IO[bytes], features: "datasets.Features", rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as Parquet, in row groups of 16, so that a reader can stream the images."""
    from datasets.arrow_writer import ParquetWriter

    with ParquetWriter(features=features, stream=stream, writer_batch_size=16) as writer:
        for row in rows:
            writer.write(features.encode_example(row))
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

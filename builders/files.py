"""Files: atomic writing, checksums, and locks that end with their process."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path

from filelock import FileLock

from attn2mask.builders.errors import UserError


def write_file(file: Path, content: bytes) -> None:
    """Replace a file in one step: after a crash, the disk holds either the old or the new content."""
    with replacing(file) as stream:
        stream.write(content)


@contextmanager
def replacing(file: Path) -> Iterator[BufferedRandom]:
    """A stream for the new content of a file, which is replaced in one step when the block has succeeded."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # a killed process leaves one; it may also be a symbolic link
        with open(temporary, "x+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a directory
        folder = os.open(file.parent, os.O_DIRECTORY)
        with suppress(OSError):  # not every file system can sync a directory
            os.fsync(folder)
        os.close(folder)


def set_usual_mode(folder: Path) -> None:
    """Give all files in a folder the permissions of the user's umask: the library safetensors lets nobody
    else read what it writes.
    """
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(0o666 & ~umask)


def lock_of(file: Path) -> FileLock:
    """The lock of a file, for `with` or `acquire`, which ends with its process. Raises as `refuse_link`."""
    refuse_link(file)
    return FileLock(file)


def refuse_link(path: Path) -> None:
    """Raises UserError if a path inside an output directory is a symbolic link."""
    if path.is_symlink():
        raise UserError(f"{path} is a symbolic link, which may lead out of the directory: remove the link")


def refuse_pattern(path: Path, name: str) -> None:
    """Raises UserError if `load_dataset` would not take the path of a folder of rows literally. `name` names
    it in the message.
    """
    if str(path).startswith("~") or re.search(r"[*?\[\]]|::", str(path.absolute())):
        raise UserError(
            f"{name}: the library datasets reads *, ?, [, ] and :: in a path as a pattern, and ~ at its start"
            " as a home folder: choose a path without them"
        )


def is_hidden(path: Path) -> bool:
    """Whether a part of a relative path is hidden, or is a folder that macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def digest(path: Path, pattern: str = "*", ends: int | None = None) -> str:
    """SHA-256 over name and content of a file, or of all files in a folder that match and are not hidden.

    With `ends`, only the size and the first and last `ends` bytes of each file count. This is quick for large
    folders, but changes elsewhere in a file are not noticed.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob(pattern) if file.is_file())
    total = hashlib.sha256()
    for file in files:
        name = file.relative_to(path)
        if not any(part.startswith(".") for part in name.parts):
            total.update(f"{name} {_content_digest(file, ends)}\n".encode())
    return f"sha256:{total.hexdigest()}"


def sha256_of(file: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal digits. Raises OSError."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _content_digest(file: Path, ends: int | None) -> str:
    if ends is None:
        return sha256_of(file)
    with open(file, "rb") as content:
        size = os.fstat(content.fileno()).st_size
        total = hashlib.sha256(f"{size} ".encode() + content.read(ends))
        content.seek(max(size - ends, 0))
        total.update(content.read(ends))
        return total.hexdigest()

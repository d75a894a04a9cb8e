"""Files: atomic writing, checksums, and locks that end with their process."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


def write_file(file: Path, content: bytes) -> None:
    """Write a file so that it is always either the old or the new one, also on the disk."""
    with replacing(file) as stream:
        stream.write(content)


@contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a killed process; also what leads elsewhere
        with open(temporary, "x+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(file.parent, os.O_RDONLY)
    with suppress(OSError):  # not every file system can sync a directory
        os.fsync(folder)
    os.close(folder)


def no_link(path: str, flags: int) -> int:
    """Opens a file of one's own: what a link of its name leads to is not touched."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def digest(path: Path, pattern: str = "*") -> str:
    """SHA-256 over name and content of a file, or of all files in a folder that match and are not hidden."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob(pattern) if file.is_file())
    total = hashlib.sha256()
    for file in files:
        name = file.relative_to(path)
        if not any(part.startswith(".") for part in name.parts):
            with open(file, "rb") as content:
                total.update(f"{name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{total.hexdigest()}"

"""Locks of output directories: all processes of one run may work in a directory, and no other run may.

    .lock-0, .held-by-0     the lock of the process of rank 0, and the name of the run that holds it

A lock ends with its process, also after `kill -9`.
"""

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import Timeout

from attn2mask.builders.errors import UserError
from attn2mask.builders.files import lock_of, write_file

logger = logging.getLogger(__name__)

# Seconds that a process waits for its own lock, and for other processes to name theirs.
PATIENCE = 2


def run_name(processes: int) -> str:
    """A name of this run, the same for all processes of one launch."""
    if processes > 1:
        return f"launched from {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def locked(folder: Path, rank: int, run: str, kind: str, patience: float | None = None) -> Iterator[None]:
    """Create a directory, and keep other runs out of it until the block ends or this process dies.

    Args:
        rank: the number of this process in its run.
        run: the name of the run, which all of its processes give.
        kind: what works in such directories, for messages: "build", "training".
        patience: seconds to wait for another run to end; `PATIENCE` if it is None.

    Raises UserError if another run is working there, and as `refuse_link`.
    """
    patience = PATIENCE if patience is None else patience
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / f".lock-{rank}"
    lock = lock_of(own)
    with suppress(Timeout):
        lock.acquire(timeout=0)
    if not lock.is_locked:
        logger.info("Waiting for another %s in %s to end, at most %g s", kind, folder, patience)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            raise _busy(folder, own, kind) from None
    try:
        write_file(_holder_file(own), run.encode())
        for other in folder.glob(".lock-*"):
            if other != own and not _free_or_held_by(run, other, patience):
                raise _busy(folder, other, kind)
        yield
    finally:
        lock.release()


def _busy(folder: Path, lock: Path, kind: str) -> UserError:
    return UserError(
        f"another {kind} is working in {folder}: {_holder(lock)}; wait for its end, or choose another"
        " directory"
    )


def _free_or_held_by(run: str, lock: Path, patience: float) -> bool:
    """Whether a lock is free, or a process of `run` holds it, which may write its name a moment later."""
    deadline = time.monotonic() + patience
    while _holder(lock) != run:
        with suppress(Timeout), lock_of(lock).acquire(timeout=0):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _holder_file(lock: Path) -> Path:
    # Not the lock itself, which Windows lets nobody read.
    return lock.with_name(lock.name.replace(".lock-", ".held-by-"))


def _holder(lock: Path) -> str:
    try:
        return _holder_file(lock).read_text()
    except OSError:
        return "its name is not known yet"

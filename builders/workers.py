"""The pool of labeling processes: the dense CRF and PNG encoding run in it while the painter paints.

These are processes and not threads, because much of the work holds the interpreter's lock. Each has one torch
thread, so that N processes use N cores. They import neither diffusers nor datasets, so that they start fast
and need little memory.
"""

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

import torch

from attn2mask.builders.cores import usable_cores
from attn2mask.builders.errors import UserError
from attn2mask.builders.interrupts import starting_processes

MOST_WORKERS = 16  # more labeling processes would only wait for the painter


def default_workers(local_processes: int = 1) -> int:
    """The number of labeling processes of one painting process: its share of the cores that may be used,
    minus one, 1 to 16.
    """
    return min(max(usable_cores() // local_processes - 1, 1), MOST_WORKERS)


@contextmanager
def labeling_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool for `label`. When the block ends, tasks that have not started are canceled.

    Raises UserError if a process of the pool died.
    """
    pool = ProcessPoolExecutor(workers, _Context(), _start)
    ended = threading.Event()
    threading.Thread(target=_watch, args=(pool, ended), daemon=True).start()
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError(
            "a labeling process died, most likely because memory was full: "
            "run the same command again with fewer --workers"
        ) from error
    except KeyboardInterrupt:  # they may still be starting, which takes seconds
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        ended.set()
        pool.shutdown(cancel_futures=True)


class _Process(SpawnProcess):
    def start(self) -> None:
        with starting_processes():
            super().start()


class _Context(SpawnContext):
    Process = _Process  # type: ignore[assignment]


def _watch(pool: ProcessPoolExecutor, ended: threading.Event) -> None:
    # The pool would wait forever for the rest of a result whose process was killed. Killing the others and
    # closing the queue raises BrokenProcessPool. The names are private to CPython; a test checks them.
    while not ended.wait(1):
        processes = list((pool._processes or {}).values())
        if wait([process.sentinel for process in processes], 0) and not ended.wait(2):
            if not pool._broken:
                for process in processes:
                    process.kill()
                break_off(pool._result_queue)  # type: ignore[attr-defined]
            return


def break_off(queue: Any) -> None:
    """Close this process's end for writing of a queue whose other writers are dead. Then its reader, which
    may wait for the rest of a result, gets an EOFError.
    """
    # The owner of the queue closes the writer as well, possibly at the same time. A handle must be closed
    # once.
    writer = queue._writer
    own, writer._handle = type(writer)(writer._handle, readable=False), None
    own.close()


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Windows, where no signals are blocked
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    atexit.register(os._exit, 0)  # the build waits for this process, and torch takes a second to end


def _end_with_parent() -> None:
    # A parent killed by SIGKILL cannot end its pool, which would wait for work forever.
    multiprocessing.parent_process().join()
    os._exit(1)

"""The processes that label: the dense CRF and PNG encoding run here while the painter paints.

Processes, not threads, since much of it holds the interpreter's lock; each has one torch thread, so that N of
them use N cores. They import neither diffusers nor datasets, which keeps their start short and their
memory small.
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

import torch

from attn2mask.builders.errors import UserError

# More labeling processes than this only wait for the painter.
MOST_WORKERS = 16


def default_workers(local_processes: int = 1) -> int:
    """Labeling processes for one painting process: its share of the machine's cores but one, at most 16."""
    return min(max((os.cpu_count() or 1) // local_processes - 1, 1), MOST_WORKERS)


@contextmanager
def labeling_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool for `label`; what is still queued is given up when the block is left by an exception.

    Raises UserError where a process of the pool died.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start)
    ended = threading.Event()
    threading.Thread(target=_watch, args=(pool, ended), daemon=True).start()
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError(
            "a labeling process died, most likely for lack of memory: "
            "run the same command again with fewer --workers"
        ) from error
    finally:
        ended.set()
        pool.shutdown(cancel_futures=True)


def _watch(pool: ProcessPoolExecutor, ended: threading.Event) -> None:
    """Break a pool that can't notice that it is broken: a process killed while it hands over an image leaves
    half a message, and the pool waits for the rest for as long as anybody could write it.
    """
    while not ended.wait(1):
        processes = list((pool._processes or {}).values())
        if wait([process.sentinel for process in processes], 0) and not ended.wait(2):
            if not pool._broken:
                for process in processes:
                    process.kill()
                pool._result_queue._writer.close()
            return


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    atexit.register(os._exit, 0)  # a builder waits for its pool's end, and taking torch apart lasts a second


def _end_with_parent() -> None:
    # A parent killed by SIGKILL cannot end its pool, which would wait for work forever.
    multiprocessing.parent_process().join()
    os._exit(1)

"""The processes that label: the dense CRF and PNG encoding run here while the painter paints.

Processes, not threads, since much of it holds the interpreter's lock; each has one torch thread, so that N of
them use N cores. They import neither diffusers nor datasets, which keeps their start short and their
memory small.
"""

import atexit
import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait

import numpy as np
import torch
from PIL import Image

from attn2mask.builders.errors import UserError
from attn2mask.builders.labeling import faults, label_picture, to_ids
from attn2mask.builders.labels import ClassTable
from attn2mask.builders.rules import Rules


@dataclass(frozen=True)
class Labelled:
    """One picture's labels as PNG bytes; `kept` are the positions of its classes that passed the gate."""

    image: bytes
    mask: bytes
    reliability: bytes
    kept: tuple[int, ...]
    dropped: tuple[str, ...]
    foreground: float
    reliable: float


def label(
    image: np.ndarray | bytes,
    scores: np.ndarray,
    peaks: Sequence[float],
    classes: Sequence[int],
    words: Sequence[str],
    rules: Rules,
    table: ClassTable,
) -> Labelled:
    """Label a picture (H, W, 3) uint8, or its PNG, from its scores (K, h, w) uint8.

    A class that fails the gate is dropped and the rest is labelled again without it, so that the row's own
    scores always give the row's own mask. Where no class is left nothing is known: the mask is all ignore,
    the reliability 0.
    """
    png = image if isinstance(image, bytes) else encode(image)
    image = np.array(Image.open(io.BytesIO(png)).convert("RGB")) if isinstance(image, bytes) else image
    kept, dropped = list(range(len(classes))), []
    mask = np.full(image.shape[:2], table.ignore_index, np.uint16 if table.ignore_index > 255 else np.uint8)
    reliability = np.zeros(image.shape[:2], np.uint8)
    foreground = 0.0
    while kept:
        labels = label_picture(image, scores[kept], rules, table.background is not None)
        bad = faults(labels, [peaks[k] for k in kept], [words[k] for k in kept])
        if not bad:
            mask, reliability = to_ids(labels.mask, [classes[k] for k in kept], table), labels.reliability
            foreground = float((labels.mask > 0).mean())
            break
        dropped += bad.values()
        kept = [k for position, k in enumerate(kept) if position not in bad]
    return Labelled(
        image=png,
        mask=encode(mask),
        reliability=encode(reliability),
        kept=tuple(kept),
        dropped=tuple(dropped),
        foreground=foreground,
        reliable=float(reliability.mean()) / 255,
    )


def encode(picture: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as an RGB PNG, (H, W) uint8 or uint16 as a grey one of 8 or 16 bits."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def labelling_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
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
            "a labelling process died, most likely for lack of memory: "
            "run the same command again with fewer --workers"
        ) from error
    finally:
        ended.set()
        pool.shutdown(cancel_futures=True)


def _watch(pool: ProcessPoolExecutor, ended: threading.Event) -> None:
    """Break a pool that can't notice that it is broken: a process killed while it hands over a picture leaves
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

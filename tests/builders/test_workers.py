"""The pool of labeling processes."""

import os

import numpy as np
import pytest

from attn2mask.builders.errors import UserError
from attn2mask.builders.images import encode_png
from attn2mask.builders.label import label
from attn2mask.builders.rules import load_rules
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.workers import MOST_WORKERS, default_workers, labeling_pool


@pytest.mark.parametrize(
    ("cores", "local_processes", "workers"),
    [(1, 1, 1), (8, 1, 7), (8, 4, 1), (8, 8, 1), (256, 1, MOST_WORKERS)],
)
def test_the_number_of_processes(monkeypatch, cores, local_processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(os, "cpu_count", lambda: 512)  # of the whole machine
    assert default_workers(local_processes) == workers


def test_the_pool_has_the_private_attributes_that_watching_it_needs():
    """`_watch` reads them. Python may rename them in any release, because they are private."""
    image = np.zeros((16, 16, 3), np.uint8)
    with labeling_pool(1) as pool:
        scores = np.zeros((0, 1, 1), np.uint8)
        labeled = pool.submit(label, image, scores, [], [], [], load_rules("embedded"), load_table("voc"))
        assert labeled.result().image == encode_png(image)
        (process,) = pool._processes.values()
        assert process.is_alive()
        assert isinstance(process.sentinel, int)
        assert pool._broken is False
        assert pool._result_queue._writer.closed is False
        assert isinstance(pool._result_queue._writer._handle, int)


def test_a_process_that_dies_ends_in_one_line():
    with pytest.raises(UserError, match="a labeling process died"), labeling_pool(1) as pool:
        pool.submit(os._exit, 1).result(timeout=60)

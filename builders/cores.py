"""How many CPU cores this process may use, which decides how many helpers it starts."""

import os


def usable_cores() -> int:
    """The cores that this process may run on. A container or a job of a cluster often has fewer than the
    machine.
    """
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def local_processes() -> int:
    """The number of processes of this run on this machine, as torchrun and accelerate tell them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))

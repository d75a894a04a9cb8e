"""The folders in which libraries of Hugging Face keep rows and models: whether one of them cannot be used."""

import errno
import os
import traceback
from pathlib import Path

from attn2mask.builders.errors import FULL, causes

_LOADERS = ("datasets.builder", "datasets.load", "huggingface_hub.")
_REFUSED = (*FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def cache_fault(error: BaseException) -> str | None:
    """The message that a cache of Hugging Face cannot be used, if this is what caused `error`; else None.

    Libraries and callers chain their own errors to that of the system. A full disk has no name there: it was
    that of a cache if the error came out of a library that loads rows or models.
    """
    for cause in causes(error):
        if not isinstance(cause, OSError) or cause.errno not in _REFUSED:
            continue
        full = cause.errno in FULL
        for variable, folder in _caches().items():
            inside = cause.filename is not None and _concerns(Path(os.fsdecode(cause.filename)), folder)
            if inside or (full and cause.filename is None and _was_loading(cause)):
                return (
                    f"the cache {folder} of rows and models cannot be used: {os.strerror(cause.errno)}:"
                    f" {'free some space there' if full else 'make it a folder that you can write'}, or set"
                    f" {variable} to another folder"
                )
    return None


def _was_loading(error: BaseException) -> bool:
    """Whether an error came out of a library that loads rows or models into a cache."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__", "").startswith(_LOADERS) for frame in frames)


def _caches() -> dict[str, Path]:
    """The folders of the caches, by the variables of the environment that choose them."""
    import datasets
    from huggingface_hub import constants

    places = {
        "HF_DATASETS_CACHE": datasets.config.HF_DATASETS_CACHE,
        "HF_HUB_CACHE": constants.HF_HUB_CACHE,
        "HF_HOME": constants.HF_HOME,
    }
    return {name: Path(place).absolute() for name, place in places.items()}


def _concerns(path: Path, cache: Path) -> bool:
    """Whether a path lies in a cache, or is a folder above it that cannot be made."""
    path = path.absolute()
    return path.is_relative_to(cache) or (cache.is_relative_to(path) and not path.is_dir())

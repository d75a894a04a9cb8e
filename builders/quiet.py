"""Silence for the libraries of Hugging Face while something is loaded."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import transformers.utils.logging as transformers_logging


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' loading reports, retries and progress bars, which no user can act on."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()

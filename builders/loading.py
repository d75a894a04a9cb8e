"""Loading of models with the libraries of Hugging Face: silence, and weights that are all there."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers.utils.logging as transformers_logging

from attn2mask.builders.errors import UserError


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


def check_all_loaded(source: str, network: Any, report: dict[str, Any]) -> None:
    """Raise UserError if weights were missing, by the report of `from_pretrained(output_loading_info=True)`.
    `source` is what messages call the model.
    """
    if missing := report["missing_keys"]:
        raise UserError(
            f"{source}: the weights lack {len(missing)} tensors of a {type(network).__name__}, such as"
            f" {min(missing)}"
        )

"""Runs a command: reads its options, calls its function, and returns its exit status.

Messages go through the logger "attn2mask" to standard error; results go to standard output.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import TextIOWrapper
from typing import Any, TextIO

from safetensors import SafetensorError
from tqdm import tqdm

from attn2mask.builders.caches import cache_fault
from attn2mask.builders.errors import FULL, UserError, is_memory_error, printable, system_error_number
from attn2mask.builders.interrupts import STATUS, happened, line
from attn2mask.builders.options import Options, parse

logger = logging.getLogger("attn2mask")


class _Handler(logging.Handler):
    """Writes to standard error, above the progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        lead = f"attn2mask: {record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(f"{lead}{printable(record.getMessage())}", file=sys.stderr)


class _Printable:
    """A stream of text that no written name can control (see `printable`)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(printable(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run_command(
    options: type[Options], run: Callable[[Options], object], argv: Sequence[str], prog: str, description: str
) -> int:
    """Parse `argv` into `options`, and run the command.

    Returns the exit status: 0; 2 after a mistake that the user can correct, which is one line on standard
    error; 130 after Ctrl-C.
    """
    handler = _Handler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal may lack the characters of a name
            stream.reconfigure(errors="backslashreplace")
    resumes = getattr(options, "RESUMES", "")
    try:
        with redirect_stdout(_Printable(sys.stdout)):
            run(parse(options, argv, prog, description))
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, KeyboardInterrupt) or happened():  # a library may turn it into another error
            if text := line(resumes):
                logger.info("%s", text)
            return STATUS
        message = _message(error, resumes, getattr(options, "SAVES_MEMORY", ""))
        if message is None:
            raise
        logger.error("%s", message)
    else:
        return 0
    finally:
        logger.removeHandler(handler)
    return 2


def _message(error: Exception, resumes: str, saves_memory: str) -> str | None:
    """One line for an error that a user can correct; None for others, which are faults of this package."""
    if is_memory_error(error):
        return f"there is too little memory: {saves_memory}"
    if isinstance(error, UserError | OSError) and (message := cache_fault(error)):
        return message
    if isinstance(error, UserError):
        return str(error)
    number = system_error_number(error) if isinstance(error, OSError | SafetensorError) else None
    if number is None:
        return None
    advice = f"; free some space, and {resumes or 'run the command again'}" if number in FULL else ""
    where = getattr(error, "filename", None) or "writing"
    return f"{where}: {os.strerror(number)}{advice}"

"""Ctrl-C: one line and exit status 130, at any moment of a command, and no process that lives on.

The first Ctrl-C raises KeyboardInterrupt, so that files and processes are closed as the code says. Python
cannot deliver this exception everywhere: in a destructor it prints a traceback and goes on, and a library
that is being imported may turn it into another error. There, and at the second Ctrl-C, the process ends at
once. Nothing is lost then, since files are replaced in one step.

The module imports next to nothing, because it must be ready before all other modules.
"""

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn

STATUS = 130  # of shells for a process that Ctrl-C ended
LAUNCHED = "ATTN2MASK_LAUNCHED"  # set in processes of a launcher of this package, which prints the line


class _State:
    launched = LAUNCHED in os.environ  # read at the start: the launcher sets it for its processes later
    happened = False  # whether Ctrl-C was pressed
    printed = False  # whether its line was printed


def catch_interrupts() -> None:
    """Handle Ctrl-C in this process from here on, unless it was started to ignore it."""
    if signal.getsignal(signal.SIGINT) != signal.default_int_handler:
        return
    signal.signal(signal.SIGINT, _interrupted)
    sys.excepthook, sys.unraisablehook = _uncaught, _unraisable


def happened() -> bool:
    """Whether Ctrl-C was pressed."""
    return _State.happened


def line(resumes: str = "") -> str | None:
    """What to print after Ctrl-C; None if the launcher of this process prints it. `resumes` says how to go
    on. `end_now` does not print it again.
    """
    if _State.launched:
        return None
    _State.printed = True
    return "attn2mask: interrupted" + (f"; {resumes}" if resumes else "")


def end_now() -> None:
    """End this process and those that it started, with the status of Ctrl-C and, once, its line."""
    if not _State.printed and (text := line()):
        bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
        os.write(2, f"{os.linesep if bars else ''}{text}{os.linesep}".encode())
    if multiprocessing := sys.modules.get("multiprocessing"):
        for child in multiprocessing.active_children():
            child.kill()
    os._exit(STATUS)


def end_after_interrupt() -> NoReturn:
    """End this process with the status of Ctrl-C, after the functions that were registered for its end. What
    remains of Python is not taken down, since threads of libraries that still run may abort the process then.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(STATUS)


def ignore_interrupts() -> None:
    """Ignore Ctrl-C from here on: the command has ended, and what is left takes a moment."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def starting_processes() -> Iterator[None]:
    """A block that starts processes. They never get Ctrl-C, which a terminal sends to them as well: the
    process that started them ends them. If Ctrl-C is pressed in the block, it counts at its end.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    pressed: list[int] = []
    try:
        handler = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    except ValueError:  # not the main thread, which alone gets Ctrl-C
        handler = None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # new processes inherit this mask
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        if pressed:
            signal.raise_signal(signal.SIGINT)


def _interrupted(number: int, frame: FrameType | None) -> None:
    if _State.happened:
        end_now()
    _State.happened = True
    raise KeyboardInterrupt


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if _State.happened:
        end_now()
    sys.__excepthook__(kind, error, trace)


def _unraisable(found: Any) -> None:
    if _State.happened:
        end_now()
    sys.__unraisablehook__(found)

"""Errors: mistakes that a user can correct, and one-line texts of the errors of libraries."""

import errno
import re
import textwrap
from collections.abc import Iterator

FULL = (errno.ENOSPC, errno.EDQUOT)  # error numbers of a full disk
_TOO_LITTLE_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory|out of memory|std::bad_alloc"
    r"|can't start new thread|failed to map segment",
    re.IGNORECASE,
)

# Control characters, except for line breaks and tabs, and the marks that turn the direction of a text. With
# them, names from elsewhere could move the cursor of a terminal, or hide what follows.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class UserError(Exception):
    """A mistake that the user can correct. The message is one line: what is wrong, where, and how to fix it.
    Line breaks in it become spaces. The command line prints it and exits with status 2.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))


def printable(text: str) -> str:
    """`text` with a replacement character for each character that would control a terminal."""
    return _CONTROL.sub("\ufffd", text)


def first_line(error: BaseException) -> str:
    """The first line of the error that caused `error`, at most 200 characters; its type if it has no text."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return textwrap.shorten(lines[0], 200, placeholder=" ...")


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, the one that caused it, and so on."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def is_memory_error(error: BaseException) -> bool:
    """Whether too little memory caused an error. torch, numpy, Pillow, Arrow and the system each say it in
    their own way.
    """
    return any(
        isinstance(cause, MemoryError)
        or (
            isinstance(cause, RuntimeError | ImportError)
            and _TOO_LITTLE_MEMORY.search(str(cause)) is not None
        )
        or (not isinstance(cause, UserError) and system_error_number(cause) == errno.ENOMEM)
        for cause in causes(error)
    )


def system_error_number(error: BaseException) -> int | None:
    """The error number of the operating system, or None. Errors of safetensors have it only in their text."""
    in_text = re.search(r"\(os error (\d+)\)", str(error))
    return int(in_text[1]) if in_text else getattr(error, "errno", None)

"""Errors: mistakes that a user can correct, and what the libraries' errors say in one line."""

import re
import textwrap


class UserError(Exception):
    """A mistake in what the user gave, with one line that says what is wrong, where, and how to fix it.

    The command line prints this line and exits with status 2. Line breaks in what the user gave are removed.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))


def first_line(error: BaseException) -> str:
    """The first line of the error that caused `error`, at most 200 characters; its type where it has none."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return textwrap.shorten(lines[0], 200, placeholder=" ...")


def system_error_number(error: BaseException) -> int | None:
    """The operating system's error number; None where there is none. safetensors gives it as text only."""
    in_text = re.search(r"\(os error (\d+)\)", str(error))
    return int(in_text[1]) if in_text else getattr(error, "errno", None)

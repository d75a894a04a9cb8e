"""Errors: mistakes that a user can correct, and one-line texts of the errors of libraries."""

import re
import textwrap


class UserError(Exception):
    """A mistake that the user can correct. The message is one line: what is wrong, where, and how to fix it.
    Line breaks in it become spaces. The command line prints it and exits with status 2.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))


def first_line(error: BaseException) -> str:
    """The first line of the error that caused `error`, at most 200 characters; its type if it has no text."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return textwrap.shorten(lines[0], 200, placeholder=" ...")


def system_error_number(error: BaseException) -> int | None:
    """The error number of the operating system, or None. Errors of safetensors have it only in their text."""
    in_text = re.search(r"\(os error (\d+)\)", str(error))
    return int(in_text[1]) if in_text else getattr(error, "errno", None)

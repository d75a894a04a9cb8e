"""A command is one frozen dataclass; flags and YAML are read into it by one parser.

`HfArgumentParser` makes the flags from the fields. On top of it come groups in the help, one positional
argument, `--config FILE.yaml` whose values go through the same checks as flags (and lose against them), and
mistakes as `UserError`.
"""

import argparse
import errno
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from safetensors import SafetensorError
from transformers import HfArgumentParser

from attn2mask.builders.classes import SURROGATE
from attn2mask.builders.errors import UserError

Command = TypeVar("Command")


def option(help: str, default: Any = MISSING, group: str = "options", **argument: Any) -> Any:
    """A dataclass field that is a flag; `positional=True` makes it the positional argument instead."""
    return field(default=default, metadata={"help": help, "group": group, **argument})


class CommandParser(HfArgumentParser):
    """Options stand in their groups, in the hyphenated form alone; a mistake raises UserError."""

    def __init__(self, command: type, prog: str, description: str):
        self._named_groups: dict[str, argparse._ArgumentGroup] = {}
        self.positional: str | None = None
        super().__init__(
            command,
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=110),
        )
        self.add_argument("--config", metavar="FILE", help="YAML file of these options; flags win over it")

    def add_argument(
        self, *names: str, group: str | None = None, positional: bool = False, **argument: Any
    ) -> argparse.Action:
        if positional:
            self.positional = names[0].removeprefix("--")
            del argument["required"]
            return super().add_argument(self.positional, nargs="?", **argument)
        if group is None:
            return super().add_argument(*names, **argument)
        if group not in self._named_groups:
            self._named_groups[group] = self.add_argument_group(group)
        hyphenated = [name for name in names if "_" not in name]
        return self._named_groups[group].add_argument(*hyphenated, **argument)

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def parse(command: type[Command], argv: Sequence[str], prog: str, description: str) -> Command:
    """Read `argv`, and the YAML file that its `--config` names, into the dataclass `command`.

    Raises UserError for an unknown key or flag, a value of the wrong kind or a missing positional argument.
    """
    parser = CommandParser(command, prog, description)
    # Intermixed: an optional positional may stand after flags.
    given = parser.parse_intermixed_args(argv)
    if given.config is not None:
        from_file = _flags(
            parser, given.config, taken=getattr(given, parser.positional or "", None) is not None
        )
        given = parser.parse_intermixed_args([*from_file, *argv])
    values = vars(given)
    del values["config"]
    if parser.positional is not None and values[parser.positional] is None:
        parser.error(f"{parser.positional.upper()} is missing")
    for name, value in values.items():
        if isinstance(value, str) and ("\0" in value or SURROGATE.search(value)):
            parser.error(f"{name.replace('_', '-')} is {value!r}, which is no text")
    return command(**values)


def check_numbers(
    config: Any, positive: Sequence[str] = (), not_negative: Sequence[str] = (), shares: Sequence[str] = ()
) -> None:
    """Raises UserError for an option of `config` that is given and out of its range (`shares`: 0 to 1)."""
    for names, least, most, said in (
        (positive, 1, math.inf, "must be at least 1"),
        (not_negative, 0, math.inf, "must not be negative"),
        (shares, 0, 1, "must lie between 0 and 1"),
    ):
        for name in names:
            value = getattr(config, name)
            if value is not None and not (least <= value <= most and value < math.inf):
                raise UserError(f"--{name.replace('_', '-')} {value}: it {said}")


def _flags(parser: CommandParser, file: str, taken: bool) -> list[str]:
    """The YAML file as flags, without its positional argument where the command line has one (`taken`)."""
    try:
        values = yaml.safe_load(Path(file).read_text())
        if not isinstance(values, dict):
            raise UserError(f"--config {file} must hold lines of `option: value`")
        values = {
            str(key).replace("-", "_"): value if isinstance(value, (list, dict, type(None))) else str(value)
            for key, value in values.items()
        }
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"--config {file} cannot be read: {' '.join(str(error).split())}") from error
    known = {action.dest for action in parser._actions} - {"help", "config"}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(
            f"--config {file}: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    flags = []
    for key, value in values.items():
        if isinstance(value, (list, dict)):
            raise UserError(f"--config {file}: {key} must be one value")
        if value is not None and not (taken and key == parser.positional):
            flags.append(value if key == parser.positional else f"--{key.replace('_', '-')}={value}")
    return flags


def _number(error: Exception) -> int | None:
    """The system's number of what went wrong; safetensors gives it in words. None of anything else."""
    in_words = re.search(r"\(os error (\d+)\)", str(error))
    return int(in_words[1]) if in_words else getattr(error, "errno", None)


def run_command(command: Callable[[], None]) -> int:
    """Run a command; what a user can mend ends in one line on stderr. Returns the exit status (0, 2, 130)."""
    # Threads that wait by spinning, torch's default, take the cores of the labeling processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        command()
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        print("attn2mask: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except (OSError, SafetensorError) as error:
        number = _number(error)
        if number is None:
            raise
        full = number in (errno.ENOSPC, errno.EDQUOT)
        advice = "; make room and run the same command again: it goes on where it stopped" if full else ""
        message = f"{getattr(error, 'filename', None) or 'writing'}: {os.strerror(number)}{advice}"
    else:
        return 0
    print(f"attn2mask: error: {message}", file=sys.stderr)
    return 2

"""Options of a command: one frozen dataclass, read from flags or from a YAML file.

Each field is made by `option` and carries all that is known of it. `HfArgumentParser` makes the flags from
the fields. This module adds groups, positional arguments, `--config FILE`, presets, and one-line errors.

    config = parse(BuildConfig, ["voc", "--num-images", "24"], "attn2mask build", "Make a dataset.")
    text = to_yaml(config, "attn2mask build --config build.yaml")  # what `--config FILE` reads
"""

import argparse
import math
from collections.abc import Collection, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

import yaml
from transformers.hf_argparser import HfArgumentParser, string_to_bool

from attn2mask.builders.classes import SURROGATE
from attn2mask.builders.errors import UserError
from attn2mask.builders.yaml_reader import load_yaml

Options = TypeVar("Options")

_FACTS = "facts"
_TRUTH_VALUES = set("yes true t y 1 no false f n 0".split())  # those that HfArgumentParser knows
_METAVARS = {int: "N", float: "X", string_to_bool: "BOOL"}


@dataclass(frozen=True)
class Facts:
    """What is known of an option beside its type and default.

    Attributes:
        group: the heading in `--help`.
        positional: whether it is a positional argument. A list may be the first of them; it takes all words
            but those that the others need.
        identity: whether the result depends on it, so that a resumed run must have the same value.
        stored: whether it is written into the YAML beside the artefact, unlike folders and processes.
        at_least, at_most, above: the range of a number; `above` excludes the bound itself.
        required: whether a command must be given it, on the command line or in YAML.
        default_text: how `--help` names the default of an option whose default is None.
        card: its name in cards.
    """

    group: str = "options"
    positional: bool = False
    identity: bool = False
    stored: bool = True
    at_least: float = -math.inf
    at_most: float = math.inf
    above: float = -math.inf
    required: bool = False
    default_text: str | None = None
    card: str | None = None


def option(help: str, default: Any = MISSING, group: str = "options", **more: Any) -> Any:
    """A dataclass field that is an option. `more` has values of `Facts`; all others go to argparse."""
    known = {f.name: more.pop(f.name) for f in fields(Facts) if f.name in more}
    return field(default=default, metadata={"help": help, _FACTS: Facts(group, **known), **more})


LAUNCH = "processes and publishing"
_launch_option = partial(option, default=None, group=LAUNCH, stored=False)


def facts_of(command: type) -> dict[str, Facts]:
    """The facts of every option of a command, by its name."""
    return {f.name: f.metadata[_FACTS] for f in fields(command)}


def identity_of(config: Any) -> dict[str, Any]:
    """The options that the result depends on, with their values; None where nothing was chosen."""
    return {name: getattr(config, name) for name, facts in facts_of(type(config)).items() if facts.identity}


class CheckedOptions:
    """The base of the options of a command. Raises UserError for a value out of range or of no choice.

    `RESUMES` says how an interrupted command goes on; it is empty if the command starts anew. `SAVES_MEMORY`
    says what takes less memory, and what that costs.
    """

    RESUMES: ClassVar[str] = ""
    SAVES_MEMORY: ClassVar[str] = "end other programs, or use smaller images"

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]
            given, choices = getattr(self, f.name), f.metadata.get("choices")
            for value in given if isinstance(given, list) else [given]:
                fault = None
                if choices and isinstance(value, str) and value not in choices:
                    fault = f"choose from {', '.join(choices)}"
                elif isinstance(value, int | float) and not isinstance(value, bool):
                    fault = _range_fault(value, f.metadata[_FACTS])
                if fault:
                    raise UserError(f"{flag_of(f.name)} {value}: {fault}")


def _range_fault(value: float, facts: Facts) -> str | None:
    least, most = facts.at_least, facts.at_most
    if not math.isfinite(value):
        return "it must be a finite number"
    if value <= facts.above:
        return f"it must be above {facts.above:g}"
    if least <= value <= most:
        return None
    if -math.inf < least and most < math.inf:
        return f"it must lie between {least:g} and {most:g}"
    if value > most:
        return f"it must be at most {most:g}"
    return "it must not be negative" if least == 0 else f"it must be at least {least:g}"


@dataclass(frozen=True, kw_only=True)
class LaunchOptions(CheckedOptions):
    """The options of a command that several processes can run, and whose result can be published."""

    num_processes: int | None = _launch_option(
        "start this many processes with accelerate", at_least=1, default_text="this process alone"
    )
    accelerate_config: str | None = _launch_option(
        "start the processes of this configuration of accelerate", metavar="FILE"
    )
    push_to_hub: str | None = _launch_option(
        "publish the finished result as this repository of the Hub", metavar="REPO"
    )


def flag_of(name: str) -> str:
    """An option's flag: "num_images" -> "--num-images"."""
    return f"--{name.replace('_', '-')}"


SAME_COMMAND = "run the same command again to resume"

# Presets


@cache
def preset_names(folder: Path) -> tuple[str, ...]:
    """The names of the presets in a folder of YAML files."""
    return tuple(sorted(file.stem for file in folder.glob("*.yaml")))


def preset_option(values: str, folder: Path, default: str | None, group: str, **more: Any) -> Any:
    """The option that chooses a preset in `folder`; `values` names what the preset sets."""
    text = f"take the values of all {values} that are not given from this preset"
    return option(text, default, group, choices=preset_names(folder), **more)


@cache
def read_preset(folder: Path, name: str) -> dict[str, Any]:
    """The options that a preset sets, with their values."""
    return yaml.safe_load((folder / f"{name}.yaml").read_text("utf-8"))


def fill(config: Options, values: dict[str, Any]) -> Options:
    """`config` with `values` for those of its options that are still None."""
    unset = [name for name in facts_of(type(config)) if getattr(config, name) is None]
    return replace(config, **{name: values[name] for name in unset if name in values})  # type: ignore[type-var]


# YAML


def stored_options(config: Any) -> dict[str, Any]:
    """The options that are stored beside an artefact, with their values."""
    return {name: getattr(config, name) for name, facts in facts_of(type(config)).items() if facts.stored}


def to_yaml(config: Any, comment: str, **changed: Any) -> str:
    """The stored options, without None, as flat YAML that `--config` reads. `comment` is the first line, and
    `changed` replaces values.
    """
    values = {name: value for name, value in (stored_options(config) | changed).items() if value is not None}
    return f"# {comment}\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


# Command line


class CommandParser(HfArgumentParser):
    """The options of one dataclass in groups. `--help` shows their hyphenated forms; those with underscores
    are taken, too. A mistake raises UserError. A class may give the order of its groups as `GROUPS`.
    """

    def __init__(self, command: type, prog: str, description: str):
        self.facts = facts_of(command)
        self.positionals: list[argparse.Action] = []
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=110),
        )
        self._headings = {"options": self._optionals}
        for heading in getattr(command, "GROUPS", ()):
            self._heading(heading)
        self._add_dataclass_arguments(command)
        self.dataclass_types = [command]
        self.add_argument(
            "--config", metavar="FILE", help="read options from this YAML file; flags win over it"
        )
        words = (f"{a.metavar} [{a.metavar} ...]" if a.nargs == "*" else a.metavar for a in self.positionals)
        self.usage = " ".join([prog, *map(str, words), "[--option VALUE ...]"])

    def add_argument(self, *names: str, **argument: Any) -> argparse.Action:
        facts = argument.pop(_FACTS, None)
        if facts is None:
            return super().add_argument(*names, **argument)
        if facts.positional:
            name = names[0].removeprefix("--")
            # Optional for argparse, since a YAML file may hold it.
            argument.pop("required", None)
            argument["nargs"] = "*" if "nargs" in argument else "?"
            argument.setdefault("metavar", name.upper())
            self.positionals.append(super().add_argument(name, **argument))
            return self.positionals[-1]
        if argument.get("nargs") == "+":  # `--metrics A B`, and `--metrics=A --metrics=B`
            argument["action"] = "extend"
        if argument.get("type") is string_to_bool:  # `--graded`, `--graded true` and `--graded false`
            argument |= {"nargs": "?", "const": True}
        if metavar := _METAVARS.get(argument.get("type")):
            argument.setdefault("metavar", metavar)
        default = _default_text(facts, argument.get("default"))
        argument["help"] += " (required)" if facts.required else f" (default: {default})"
        hyphenated = [name for name in names if "_" not in name]
        return self._heading(facts.group).add_argument(*hyphenated, **argument)

    def _heading(self, name: str) -> argparse._ArgumentGroup:
        if name not in self._headings:
            self._headings[name] = self.add_argument_group(name)
        return self._headings[name]

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def _default_text(facts: Facts, default: Any) -> str:
    if facts.default_text is not None:
        return facts.default_text
    if isinstance(default, bool):
        return "on" if default else "off"
    return "none" if default in (None, "") else "%(default)s"


def parse(command: type[Options], argv: Sequence[str], prog: str, description: str) -> Options:
    """Read `argv`, and the YAML file that its `--config` names, into the dataclass `command`.

    Raises UserError for an unknown key or flag, a value of the wrong kind and a missing positional argument.
    """
    parser = CommandParser(command, prog, description)
    values = _values(parser, argv)
    if values["config"] is not None:
        given = {name for name, value in values.items() if value}
        values = _values(parser, [*_flags(parser, values["config"], given), *argv])
    del values["config"]
    for action in parser.positionals:
        if values[action.dest] in (None, []):
            parser.error(f"{action.metavar} is missing")
    for name, facts in parser.facts.items():
        if facts.required and not values[name]:
            parser.error(f"{flag_of(name)} is missing")
    for name, value in values.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and ("\0" in text or SURROGATE.search(text)):
                parser.error(f"{name.replace('_', '-')} is {text!r}, which is no text")
    return command(**values)


def _values(parser: CommandParser, argv: Sequence[str]) -> dict[str, Any]:
    """The value of each option by its name: what `argv` gives, or the default."""
    argv = [_hyphenated(word, parser._option_string_actions) for word in argv]
    # The word after a switch is its value only if it is a truth value.
    switches = {flag for a in parser._actions if a.type is string_to_bool for flag in a.option_strings}
    argv = [
        f"{word}=true" if word in switches and after.lower() not in _TRUTH_VALUES else word
        for word, after in zip_longest(argv, argv[1:], fillvalue="")
    ]
    # Intermixed: positional arguments, which are optional for argparse, may stand after flags.
    values = vars(parser.parse_intermixed_args(argv))
    # A list took all words. The arguments after it get theirs from its end.
    if parser.positionals and isinstance(words := values[parser.positionals[0].dest], list):
        for action in reversed(parser.positionals[1:]):
            if values[action.dest] is None and len(words) > 1:
                values[action.dest] = words.pop()
    return values


def _hyphenated(word: str, flags: Collection[str]) -> str:
    """`--num_images=3` as `--num-images=3`. Words that are no flag stay as they are."""
    name, equals, value = word.partition("=")
    hyphenated = name.replace("_", "-")
    return f"{hyphenated}{equals}{value}" if name.startswith("--") and hyphenated in flags else word


def _flags(parser: CommandParser, file: str, given: set[str]) -> list[str]:
    """The YAML file as words of a command line. Lists that are `given` there already are left out; so are
    all positional arguments if any of them is.
    """
    try:
        values = load_yaml(Path(file).read_text("utf-8"))
        if not isinstance(values, dict):
            raise UserError(f"--config {file} must hold lines of `option: value`")
        values = {str(key).replace("-", "_"): value for key, value in values.items()}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"--config {file} cannot be read: {' '.join(str(error).split())}") from error
    actions = {action.dest: action for action in parser._actions}
    known = set(actions) - {"help", "config"}
    if unknown := ", ".join(sorted(set(values) - known)):
        raise UserError(f"--config {file}: unknown {unknown}; known are {', '.join(sorted(known))}")
    lists = {name for name, action in actions.items() if action.nargs in ("*", "+")}
    words: dict[str, list[str]] = {}
    for key, value in ((key, value) for key, value in values.items() if value is not None):
        parts = value if isinstance(value, list) and key in lists else [value]
        if any(isinstance(part, (list, dict)) for part in parts):
            wanted = "a list of values" if key in lists else "one value"
            raise UserError(f"--config {file}: {key} must be {wanted}")
        words[key] = [str(part) for part in parts]
    positionals = [action.dest for action in parser.positionals]
    kept = [key for key in words if key not in positionals and not (key in lists and key in given)]
    flags = [f"{flag_of(key)}={word}" for key in kept for word in words[key]]
    if given.isdisjoint(positionals):
        flags += [word for name in positionals for word in words.get(name, ())]
    return flags

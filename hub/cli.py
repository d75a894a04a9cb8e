"""`attn2mask`: the command line. `commands.yaml` lists the commands.

A command imports its modules when it runs, so that `--help` is quick. The scripts `builders/build.py`,
`training/train.py` and `training/adapt.py` call `main` in `__main__.py` with the name of their command.
"""

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import yaml

from attn2mask import __version__
from attn2mask.builders.errors import printable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of `attn2mask`.

    Attributes:
        heading: the group in `attn2mask --help`.
        arguments: its positional arguments, for `attn2mask --help`.
        summary: what it does, as an imperative clause.
        start: the line that it logs first, with options in braces.
        options: the dataclass of its options, as "package.module:name".
        run: the function that runs it with these options, as "package.module:name".
        publishes: what `--push-to-hub` publishes, if the command has this option: a dataset or a model.
    """

    heading: str
    arguments: str = ""
    summary: str
    start: str
    options: str
    run: str
    publishes: Literal["dataset", "model"] | None = None


COMMANDS = {
    name: Command(heading=heading, **facts)
    for heading, commands in yaml.safe_load(
        Path(__file__).with_name("commands.yaml").read_text("utf-8")
    ).items()
    for name, facts in commands.items()
}


def overview(names: Iterable[str]) -> str:
    """The commands `names` with their summaries, under their headings."""
    commands = {name: COMMANDS[name] for name in names}
    lines = []
    for heading in dict.fromkeys(command.heading for command in commands.values()):
        lines += ["", f"{heading}:"]
        lines += [
            f"  {f'{name} {command.arguments}':30} {command.summary}"
            for name, command in commands.items()
            if command.heading == heading
        ]
    return "\n".join(lines)


def usage() -> str:
    """The text of `attn2mask --help`."""
    return f"""usage: attn2mask COMMAND [--option VALUE ...]

Make semantic segmentation datasets without pixel labels, and train on them. A text-to-image diffusion model
paints images from captions. Its cross-attention labels their pixels.
{overview(COMMANDS)}

`attn2mask COMMAND --help` lists the options of a command. `--config FILE` reads them from a YAML file.
`attn2mask --version` prints the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `attn2mask ARGV`.

    Returns the exit status: 0; 2 after a mistake of the user; 130 after Ctrl-C. Raises SystemExit after
    `COMMAND --help`, and with the status of processes that it started.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"attn2mask {__version__}")
        return 0
    name, rest = find_command(argv)
    if name is not None:
        return run_as(name, rest)
    family = [name for name in COMMANDS if name.split()[0] == argv[0]]
    if family and (len(argv) == 1 or argv[1] in ("-h", "--help")):
        print(f"usage: attn2mask {argv[0]} ... [--option VALUE ...]\n{overview(family)}")
        return 0
    wrong = " ".join(argv[:2]) if family else argv[0]
    near = get_close_matches(wrong, COMMANDS, n=1, cutoff=0.7)
    advice = f"did you mean {near[0]!r}? " if near else ""
    commands = ", ".join(family or COMMANDS)
    message = f"there is no command {wrong!r}; {advice}the commands are {commands}"
    print(f"attn2mask: error: {printable(message)}", file=sys.stderr)
    return 2


def find_command(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The name of the command, one or two words, and the rest of `argv`. The name is None if none fits."""
    for name in COMMANDS:
        words = name.split()
        if list(argv[: len(words)]) == words:
            return name, list(argv[len(words) :])
    return None, list(argv)


def run_as(name: str, argv: Sequence[str]) -> int:
    """Run the command `name` with the options in `argv`. Returns and raises as `main`."""
    from attn2mask.builders.command import run_command
    from attn2mask.hub.launch import end_with_launcher, is_launched, launch, logs_start, run_launched

    command = COMMANDS[name]

    def run(config: Any) -> None:
        if logs_start():
            logger.info(command.start.format(**vars(config)))
        processes, file = (getattr(config, key, None) for key in ("num_processes", "accelerate_config"))
        if (processes or 1) == 1 and file is None:
            run_here(command, config)
            return
        if not is_launched():
            launch([*name.split(), *argv], processes, file)
        run_launched(partial(run_here, command, config))

    end_with_launcher()
    summary = f"{command.summary[0].upper()}{command.summary[1:]}."
    return run_command(load(command.options), run, argv, f"attn2mask {name}", summary)


def load(place: str) -> Any:
    """The object at "package.module:name" of attn2mask."""
    module, name = place.split(":")
    return getattr(import_module(f"attn2mask.{module}"), name)


def run_here(command: Command, config: Any) -> None:
    """Run the command in this process, and publish what it made if its options say so.

    Whether it can be published is checked first. One process publishes: the first one of a training, and the
    one that completes a build.
    """
    run, is_model = load(command.run), command.publishes == "model"
    if getattr(config, "push_to_hub", None) is None or (is_model and int(os.environ.get("RANK", 0))):
        run(config)
        return
    from attn2mask.builders.table_reader import load_table
    from attn2mask.hub.artifacts import check_config_name, gather_builds, gather_model
    from attn2mask.hub.publish import Target, check_access, publish

    target = Target(config.push_to_hub)
    if not is_model:
        check_config_name(load_table(config.table).name)
    check_access(command.publishes, target)
    made = run(config)
    if is_model:
        publish(partial(gather_model, Path(config.output_dir)), target)
    elif (made.path / "report.json").exists():
        with made.finishing():
            publish(partial(gather_builds, [made.path]), target)

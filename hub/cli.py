"""`attn2mask`: the command line.

A command imports its modules when it runs, so that `--help` is quick. The scripts `builders/build.py`,
`training/train.py` and `training/adapt.py` call `main` with the name of their command.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from attn2mask import __version__

logger = logging.getLogger(__name__)

DATASETS = "Make datasets"
MODELS = "Train and evaluate models"
SHARING = "Look at results and publish them"
TRIAL = "Try everything"


@dataclass(frozen=True)
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
    arguments: str
    summary: str
    start: str
    options: str
    run: str
    publishes: str | None = None


COMMANDS = {
    "build": Command(
        DATASETS,
        "TABLE",
        "paint images from captions and label them from the painter's attention",
        "Building a dataset with the class table {table}",
        "builders.build:BuildConfig",
        "builders.build:run",
        "dataset",
    ),
    "remask": Command(
        DATASETS,
        "DIR",
        "make the masks of a dataset again with other rules, without painting",
        "Making new masks for {dir}",
        "builders.remask:RemaskConfig",
        "builders.remask:run",
    ),
    "aliases": Command(
        DATASETS,
        "TABLE",
        "propose synonyms and hyponyms from WordNet for your own class table",
        "Looking up the classes of {table} in WordNet",
        "builders.words.aliases:AliasesConfig",
        "builders.words.aliases:run",
    ),
    "draw": Command(
        DATASETS,
        "WORLD",
        "draw scenes with exact masks, to evaluate on or to train on",
        "Drawing {num_images} scenes of the world {world}",
        "builders.drawn.rows:DrawConfig",
        "builders.drawn.rows:run",
    ),
    "train": Command(
        MODELS,
        "",
        "co-train two segmenters on a dataset",
        "Training on {dataset}",
        "training.config:TrainConfig",
        "training.train:train",
        "model",
    ),
    "adapt": Command(
        MODELS,
        "",
        "adapt a painter to the images of another domain with DreamBooth-LoRA",
        "Adapting the painter {model} to {data}",
        "training.adaptation.config:AdaptConfig",
        "training.adapt:adapt",
        "model",
    ),
    "evaluate": Command(
        MODELS,
        "",
        "evaluate a trained segmenter on images with masks",
        "Evaluating {checkpoint} on {dataset}",
        "training.evaluate_command:EvaluateConfig",
        "training.evaluate_command:run",
    ),
    "show": Command(
        SHARING,
        "DIR",
        "draw a sheet of rows: image, class maps, mask, reliability, prompt",
        "Drawing rows of {dir}",
        "builders.show:ShowConfig",
        "builders.show:run",
    ),
    "preview": Command(
        SHARING,
        "DIR",
        "serve a local page: rows, masks by other rules, the card, predictions",
        "Opening {dir}",
        "hub.preview:PreviewConfig",
        "hub.preview:run",
    ),
    "publish dataset": Command(
        SHARING,
        "BUILD ... REPO",
        "publish builds as configs of one dataset on the Hugging Face Hub",
        "Publishing to the dataset {repo}",
        "hub.publish:PublishDatasetConfig",
        "hub.publish:run_dataset",
    ),
    "publish model": Command(
        SHARING,
        "DIR REPO",
        "publish a segmenter or a painter's adapter on the Hugging Face Hub",
        "Publishing {dir} to the model {repo}",
        "hub.publish:PublishModelConfig",
        "hub.publish:run_model",
    ),
    "demo": Command(
        TRIAL,
        "",
        "build, train and evaluate at a small scale, offline",
        "Running the demo in {out}",
        "hub.demo:DemoConfig",
        "hub.demo:demo",
    ),
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
    commands = ", ".join(family or COMMANDS)
    print(f"attn2mask: error: there is no command {wrong!r}; the commands are {commands}", file=sys.stderr)
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
    from attn2mask.hub.launch import logs_start

    command = COMMANDS[name]
    summary = f"{command.summary[0].upper()}{command.summary[1:]}."

    def run(config: Any) -> None:
        if logs_start():
            logger.info(command.start.format(**vars(config)))
        if wants_processes(config):
            run_in_processes(command, config, [*name.split(), *argv])
        else:
            run_here(command, config)

    return run_command(load(command.options), run, argv, f"attn2mask {name}", summary)


def load(place: str) -> Any:
    """The object at "package.module:name" of attn2mask."""
    module, name = place.split(":")
    return getattr(import_module(f"attn2mask.{module}"), name)


def wants_processes(config: Any) -> bool:
    """Whether the options ask for processes of accelerate."""
    several = (getattr(config, "num_processes", None) or 1) > 1
    return several or getattr(config, "accelerate_config", None) is not None


def run_in_processes(command: Command, config: Any, argv: Sequence[str]) -> None:
    """Start the processes that run `attn2mask ARGV`, or run as one of them."""
    from attn2mask.hub.launch import is_launched, launch, run_launched

    if not is_launched():
        launch(argv, config.num_processes, config.accelerate_config)
    run_launched(lambda: run_here(command, config))


def run_here(command: Command, config: Any) -> None:
    """Run the command in this process, and publish what it made if its options say so."""
    function: Callable = load(command.run)
    if getattr(config, "push_to_hub", None) is None:
        function(config)
    elif command.publishes == "dataset":
        build_and_publish(config, function)
    else:
        train_and_publish(config, function)


def build_and_publish(config: Any, build: Callable) -> None:
    """Build, and publish the dataset once it is complete. Whether it can be published is checked first."""
    from attn2mask.builders.table_reader import load_table
    from attn2mask.hub.artifacts import check_config_name
    from attn2mask.hub.publish import Target, check_access, publish_dataset

    target = Target(config.push_to_hub)
    check_config_name(load_table(config.table).name)
    check_access("dataset", target)
    directory = build(config)
    # Of several processes, the last one to finish finds the build complete.
    if (directory.path / "report.json").exists():
        with directory.finishing():
            publish_dataset([directory.path], target)


def train_and_publish(config: Any, train: Callable) -> None:
    """Train or adapt, and publish the model. Whether it can be published is checked first."""
    if int(os.environ.get("RANK", 0)):
        train(config)
        return
    from attn2mask.hub.publish import Target, check_access, publish_model

    target = Target(config.push_to_hub)
    check_access("model", target)
    train(config)
    publish_model(Path(config.output_dir), target)


if __name__ == "__main__":
    sys.exit(main())

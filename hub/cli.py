"""`attn2mask`: the command line.

A command imports its module when it runs, so that `--help` is quick. The scripts `builders/build.py`,
`training/train.py` and `training/adapt.py` call `main` with their command's name.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command: the heading that it stands under, what it does, and where its options and its function are.

    `published` is what `--push-to-hub` publishes.
    """

    heading: str
    argument: str
    summary: str
    options: str
    run: str
    published: str | None = None


DATASETS, MODELS, HUB = (
    "Make and look at datasets",
    "Train and measure models",
    "Publish, and everything at once",
)
COMMANDS = {
    "build": Command(
        DATASETS, "TABLE", "paint images from captions and label them from the painter's attention",
        "builders.build:BuildConfig", "builders.build:run", "dataset",
    ),
    "show": Command(
        DATASETS, "DIR", "draw a sheet of rows: image, class maps, mask, reliability, prompt",
        "builders.show:ShowConfig", "builders.show:run",
    ),
    "remask": Command(
        DATASETS, "DIR", "make the masks again by other rules, without painting",
        "builders.remask:RemaskConfig", "builders.remask:run",
    ),
    "aliases": Command(
        DATASETS, "TABLE", "propose synonyms and hyponyms from WordNet for the classes of your own table",
        "builders.words.aliases:AliasesConfig", "builders.words.aliases:run",
    ),
    "draw": Command(
        DATASETS, "WORLD", "draw scenes with exact masks, to measure on or to train on for comparison",
        "builders.drawn.rows:DrawConfig", "builders.drawn.rows:run",
    ),
    "train": Command(
        MODELS, "", "co-train two segmenters on a dataset",
        "training.config:TrainConfig", "training.train:train", "model",
    ),
    "adapt": Command(
        MODELS, "", "adapt a painter to images of a distant domain with DreamBooth-LoRA",
        "training.adaptation.config:AdaptConfig", "training.adapt:adapt", "model",
    ),
    "evaluate": Command(
        MODELS, "", "measure a trained segmenter on images with masks",
        "training.evaluate_command:EvaluateConfig", "training.evaluate_command:run",
    ),
    "publish": Command(
        HUB, "dataset|model", "publish datasets or a model on the Hugging Face Hub, in one commit",
        "", "",
    ),
    "preview": Command(
        HUB, "DIR", "serve a local page: rows, masks by other rules, the card, an image of yours segmented",
        "hub.preview:PreviewConfig", "hub.preview:run",
    ),
    "demo": Command(
        HUB, "", "run everything at a small scale, offline, and measure it",
        "hub.demo:DemoConfig", "hub.demo:demo",
    ),
}  # fmt: skip


def usage() -> str:
    """What `attn2mask --help` prints."""
    lines = [
        "usage: attn2mask COMMAND ...",
        "",
        "Make semantic segmentation datasets without pixel labels. A text-to-image diffusion model paints images"
        " from captions, and its cross-attention labels them.",
    ]
    for heading in dict.fromkeys(command.heading for command in COMMANDS.values()):
        lines += ["", f"{heading}:"]
        lines += [
            f"  {f'{name} {command.argument}':22} {command.summary}"
            for name, command in COMMANDS.items()
            if command.heading == heading
        ]
    lines += [
        "",
        "`attn2mask COMMAND --help` lists the options of a command. Every command reads them from a YAML file, too:"
        " `--config FILE`.",
        "`attn2mask --version` prints the version.",
    ]
    return "\n".join(lines)


def load(place: str) -> Any:
    """The object at "package.module:name" of attn2mask."""
    module, name = place.split(":")
    return getattr(import_module(f"attn2mask.{module}"), name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `attn2mask ARGV`. Returns the exit status: 0, 2 after a mistake of the user, 130 after Ctrl-C."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"attn2mask {version('attn2mask')}")
        return 0
    if name not in COMMANDS:
        print(
            f"attn2mask: error: there is no command {name!r}; there are {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    if name == "publish":
        from attn2mask.hub.publish import main as publish

        return publish(rest)
    from attn2mask.builders.command import run_command

    command = COMMANDS[name]
    options, summary = load(command.options), f"{command.summary[0].upper()}{command.summary[1:]}."
    return run_command(
        options, lambda config: run(name, command, config, rest), rest, f"attn2mask {name}", summary
    )


def run(name: str, command: Command, config: Any, argv: Sequence[str]) -> None:
    """Run a command with its options: in processes of accelerate if they ask for it, and then publish."""
    if getattr(config, "num_processes", None) or getattr(config, "accelerate_config", None):
        from attn2mask.hub.launch import is_launched, launch

        if not is_launched():
            launch([name, *argv], config.num_processes, config.accelerate_config)
            return
    function: Callable = load(command.run)
    if getattr(config, "push_to_hub", None) is None:
        function(config)
    elif command.published == "dataset":
        build_and_publish(config, function)
    else:
        train_and_publish(config, function)


def build_and_publish(config: Any, build: Callable) -> None:
    """Build, and publish the dataset once it is complete. Publishing is checked first."""
    from attn2mask.builders.table_reader import load_table
    from attn2mask.hub.artifacts import check_config
    from attn2mask.hub.publish import Target, check, publish_dataset

    target = Target(config.push_to_hub)
    check_config(load_table(config.table).name)
    check("dataset", target)
    directory = build(config)
    # Of several processes the last one to finish finds the build complete.
    if (directory.path / "report.json").exists():
        with directory.finishing():
            publish_dataset([directory.path], target)


def train_and_publish(config: Any, train: Callable) -> None:
    """Train or adapt, and publish the model. Publishing is checked first."""
    if int(os.environ.get("RANK", 0)):
        train(config)
        return
    from attn2mask.hub.publish import Target, check, publish_model

    target = Target(config.push_to_hub)
    check("model", target)
    train(config)
    publish_model(Path(config.output_dir), target)


if __name__ == "__main__":
    sys.exit(main())

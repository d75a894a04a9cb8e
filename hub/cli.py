"""`attn2mask`: the command line. A subcommand imports what it needs as it runs, so `--help` is quick."""

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

USAGE = """usage: attn2mask COMMAND ...

Semantic segmentation datasets without pixel labels: a diffusion model paints, its cross-attention labels.

  build TABLE    captions in, a labeled dataset out
  show DIR       a sheet of rows to look at: picture, class maps, mask, reliability, prompt
  remask DIR     the same pictures with masks by other rules, without painting
  aliases TABLE  synonyms and hyponyms for your own classes from WordNet, to be edited
  evaluate       a trained segmenter held against masks: IoU by class, a chart, the best and worst pictures
  preview DIR    a local page: rows and other rules, the card, a picture of yours segmented
  publish        builds as a dataset of the Hub, or a checkpoint as a model, in one commit
  demo           the whole way on a small scale, offline, measured

`attn2mask COMMAND --help` lists a command's options; `attn2mask --version` prints the version."""


def _build(argv: Sequence[str]) -> int:
    from attn2mask.builders.build import main

    return main(argv, "attn2mask build")


def _show(argv: Sequence[str]) -> int:
    from attn2mask.builders.show import main

    return main(argv)


def _remask(argv: Sequence[str]) -> int:
    from attn2mask.builders.remask import main

    return main(argv)


def _aliases(argv: Sequence[str]) -> int:
    from attn2mask.builders.words.aliases import main

    return main(argv)


def _evaluate(argv: Sequence[str]) -> int:
    from attn2mask.training.evaluate_command import main

    return main(argv)


def _preview(argv: Sequence[str]) -> int:
    from attn2mask.hub.preview import main

    return main(argv)


def _publish(argv: Sequence[str]) -> int:
    from attn2mask.hub.publish import main

    return main(argv)


def _demo(argv: Sequence[str]) -> int:
    from attn2mask.hub.demo import main

    return main(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "build": _build,
    "show": _show,
    "remask": _remask,
    "aliases": _aliases,
    "evaluate": _evaluate,
    "preview": _preview,
    "publish": _publish,
    "demo": _demo,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `attn2mask ARGV`; returns the exit status: 0, 2 after a mistake of the user, 130 after Ctrl-C."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command == "--version":
        print(f"attn2mask {version('attn2mask')}")
        return 0
    if command not in COMMANDS:
        print(f"attn2mask: error: no command {command!r}: there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return COMMANDS[command](rest)


if __name__ == "__main__":
    sys.exit(main())

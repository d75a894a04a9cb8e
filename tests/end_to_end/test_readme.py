"""What README.md tells users to type, typed.

Blocks marked with a line `<!-- tested -->` right before them are run, in order and in one directory, so that
later ones find what earlier ones made. In the others, our own commands must parse and `make` targets exist.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from places import ROOT

from attn2mask.builders.build import BuildConfig
from attn2mask.builders.imagenet_s import ImageNetSConfig
from attn2mask.builders.options import parse
from attn2mask.builders.remask import RemaskConfig
from attn2mask.builders.show import ShowConfig
from attn2mask.builders.words.aliases import AliasesConfig
from attn2mask.hub.cli import COMMANDS
from attn2mask.hub.demo import DemoConfig
from attn2mask.hub.preview import PreviewConfig
from attn2mask.hub.publish import parser as publish_options
from attn2mask.training.adaptation.config import AdaptConfig
from attn2mask.training.config import TrainConfig
from attn2mask.training.evaluate_command import EvaluateConfig

README = (ROOT / "README.md").read_text()
MARK = "<!-- tested -->"
CONFIGS = {
    "build": BuildConfig,
    "show": ShowConfig,
    "remask": RemaskConfig,
    "aliases": AliasesConfig,
    "evaluate": EvaluateConfig,
    "preview": PreviewConfig,
    "demo": DemoConfig,
}
SCRIPTS = {
    "builders/build.py": BuildConfig,
    "builders/imagenet_s.py": ImageNetSConfig,
    "training/adapt.py": AdaptConfig,
    "training/train.py": TrainConfig,
}


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its fence, from 1."""

    line: int
    language: str
    text: str
    tested: bool

    def commands(self) -> list[str]:
        """What stands after `$ ` in a console block, lines that a backslash continues joined to theirs."""
        commands: list[str] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                commands.append(line[2:])
            elif commands and commands[-1].endswith("\\"):
                commands[-1] = commands[-1][:-1].rstrip() + " " + line.strip()
            else:
                raise ValueError(f"block of line {self.line}: {line!r} is no command and continues none")
        return commands


def blocks(text: str) -> list[Block]:
    """All fenced blocks. Raises ValueError for one that does not end, and for a mark without a block."""
    found: list[Block] = []
    start, language, marked, before = 0, None, False, ""
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r"\s*```\s*(\w*)", line)
        if fence and language is None:
            start, language, marked, content = number, fence[1], before == MARK, []
            if marked and language not in ("console", "python"):
                raise ValueError(f"line {number}: a block of {language or 'text'} can't be tested")
        elif fence:
            found.append(Block(start, language, "\n".join(content) + "\n", marked))
            language = None
        elif language is not None:
            content.append(line)
        elif before == MARK:
            raise ValueError(f"line {number - 1}: {MARK} does not stand right before a block")
        before = line.strip()
    if language is not None:
        raise ValueError(f"line {start}: the block does not end")
    if before == MARK:
        raise ValueError(f"the last line: {MARK} does not stand right before a block")
    return found


def make_targets(command: str) -> list[str]:
    """The targets that a command line makes; none where it is not make's."""
    words = shlex.split(command, comments=True)
    return [word for word in words[1:] if "=" not in word] if words[:1] == ["make"] else []


def check(command: str) -> bool:
    """Whether the command is ours, or make's; raises where it is one that would not run."""
    words = shlex.split(command, comments=True)
    if words[:1] == ["make"]:
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(make_targets(command)) <= set(targets), f"the Makefile has no such target: {command}"
        return True
    if words[:2] == ["accelerate", "launch"]:
        launch = launch_command_parser().parse_args(words[2:])
        assert launch.config_file is None or (ROOT / launch.config_file).is_file(), f"no such file: {command}"
        assert (ROOT / launch.training_script).is_file(), f"no such script: {command}"
        parse(SCRIPTS[launch.training_script], launch.training_script_args, launch.training_script, "")
        return True
    if words[:1] == ["attn2mask"]:
        assert words[1] in COMMANDS, f"no such command: {command}"
        if words[1] == "publish":
            publish_options(words[2]).parse_args(words[3:])
            return True
        parse(CONFIGS[words[1]], words[2:], words[1], "")
        return True
    return False


CONSOLE = [
    pytest.param(command, id=f"line {block.line}: {command[:60]}")
    for block in blocks(README)
    if block.language == "console"
    for command in block.commands()
]


def test_every_command_is_known():
    assert {*CONFIGS, "publish"} == set(COMMANDS)


@pytest.mark.parametrize("command", CONSOLE)
def test_console_line(command):
    """Ours parses; those of other programs (printf, cd ...) are only run where their block is tested."""
    check(command)


@pytest.mark.parametrize(
    "block", [b for b in blocks(README) if b.language == "python"], ids=lambda b: str(b.line)
)
def test_python_block_compiles(block):
    ast.parse(block.text)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)", README))))
def test_link_leads_to_a_file(path):
    assert (ROOT / path).exists()


def test_tested_blocks_run(tmp_path):
    tested = [block for block in blocks(README) if block.tested]
    assert {block.language for block in tested} == {"console", "python"}
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    for name in ("training", "accelerate_config.yaml"):  # as they stand beside a user in the repository
        (work / name).symlink_to(ROOT / name)
    for block in tested:
        run(block, work, home)


def run(block: Block, work: Path, home: Path) -> None:
    """Run a block in `work`, with the caches of the Hugging Face libraries in `home` and no Hub."""
    if block.language == "python":
        script = work.parent / f"block-{block.line}.py"
        script.write_text(block.text)
        command = [sys.executable, str(script)]
    else:
        lines = [line for line in block.commands() if not make_targets(line)]
        command = ["bash", "-e", "-o", "pipefail", "-c", "\n".join(lines)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    said = (done.stdout + done.stderr)[-3000:]
    assert done.returncode == 0, f"README.md, block of line {block.line}:\n{block.text}\n{said}"


EXAMPLE = f"""
{MARK}
```console
$ make demo      # a comment
$ echo one \\
    two > file
$ test -f file
```
text
```
any text
```
{MARK}
```python
assert open("file").read() == "one two\\n"
```
"""


def test_the_extractor(tmp_path):
    first, second, third = blocks(EXAMPLE)
    assert (first.line, first.language, first.tested) == (3, "console", True)
    assert first.commands() == ["make demo      # a comment", "echo one two > file", "test -f file"]
    assert make_targets(first.commands()[0]) == ["demo"]
    assert (second.language, second.text, second.tested) == ("", "any text\n", False)
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    work.mkdir()
    elsewhere.mkdir()
    for block in (first, third):
        run(block, work, tmp_path)
    with pytest.raises(AssertionError, match="block of line 14"):
        run(third, elsewhere, tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```console\n$ ls\n", "does not end"),
        (f"{MARK}\n\n```console\n$ ls\n```\n", "right before"),
        (f"```\n```\n{MARK}\n", "right before"),
        (f"{MARK}\n```\n$ ls\n```\n", "can't be tested"),
    ],
)
def test_the_extractor_passes_over_nothing(text, said):
    with pytest.raises(ValueError, match=said):
        blocks(text)
    with pytest.raises(ValueError, match="no command"):
        Block(1, "console", "ls\n", True).commands()


@pytest.mark.parametrize(
    "command",
    [
        "attn2mask upload data/voc",
        "make nothing",
        "accelerate launch nothing.py voc",
        "accelerate launch --config_file nothing.yaml builders/build.py voc",
    ],
)
def test_a_command_that_would_not_run_is_found(command):
    with pytest.raises(AssertionError, match="no such"):
        check(command)
    assert not check("printf 'attn2mask'")

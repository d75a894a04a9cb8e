"""The documents: their commands run or parse, their links lead somewhere, and their words are the field's.

Blocks with a line `<!-- tested -->` right before them are run as they are typed, in order and in one folder,
so that later blocks find the files of earlier ones. docs/adapt.md stands alone. The other tested documents
continue the quick start of README.md. In all other blocks, commands of this project must parse and targets of
`make` must exist.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from documents import DOCUMENTS, MARK, Block, blocks, read
from places import ROOT

from attn2mask.builders.options import parse
from attn2mask.hub.cli import COMMANDS, find_command, load

# Tested blocks of the documents of one chain run one after the other in one folder.
CHAINS = [("README.md", "docs/build.md", "docs/train.md", "docs/evaluate.md"), ("docs/adapt.md",)]
MOST_LINES, MOST_WORDS, MOST_COLUMNS = 150, 2000, 110
# The scripts and the dataclasses of their options, which each script imports or defines.
# In examples/dreambooth of its repository.
DIFFUSERS_SCRIPTS = ["train_dreambooth_lora_flux.py", "train_dreambooth_lora_sd3.py"]
SCRIPTS = {
    "builders/build.py": "BuildConfig",
    "builders/imagenet_s.py": "ImageNetSConfig",
    "training/adapt.py": "AdaptConfig",
    "training/train.py": "TrainConfig",
    "training/experiments/ablation.py": "AblationConfig",
    "training/experiments/domain_gap.py": "DomainGapConfig",
    "training/experiments/painter_quality.py": "PainterQualityConfig",
    "training/experiments/prompt_text.py": "PromptTextConfig",
    "training/pretraining/backbone_training.py": "BackboneTrainingConfig",
    "training/pretraining/painter_training.py": "PainterTrainingConfig",
    "training/pretraining/referee_training.py": "RefereeTrainingConfig",
}

# Words that had a private meaning in this project, and "picture", for which the one word is "image".
PRIVATE_WORDS = re.compile(r"\b(?:told|looks|answers?|feeds?|cells?|pictures?)\b", re.IGNORECASE)
# What may stand all the same, by document: old names in the list of renamed options.
LEGITIMATE = {"CHANGELOG.md": ["`adapt --prior-pictures`"]}


def make_targets(command: str) -> list[str]:
    """The targets of a `make` command; empty for any other command."""
    words = shlex.split(command, comments=True)
    return [word for word in words[1:] if "=" not in word] if words[:1] == ["make"] else []


def check(command: str) -> bool:
    """Whether the command is one of this project or of `make`. Raises if such a command would not run."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"\w+=\S*", words[0]):  # a variable of the environment
        del words[0]
    match words:
        case ["make", *_]:
            targets = re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE)
            assert set(make_targets(command)) <= set(targets), f"the Makefile has no such target: {command}"
        case ["attn2mask", name, *rest] | ["python", "-m", "attn2mask", name, *rest]:
            check_subcommand(name, rest, command)
        case ["python", "-m", module, *rest] if module.startswith("attn2mask."):
            check_script(f"{module.removeprefix('attn2mask.').replace('.', '/')}.py", rest, command)
        case ["python", script, *rest] if script.endswith(".py"):
            check_script(script, rest, command)
        case ["torchrun", "--nproc-per-node", _, script, *rest]:
            check_script(script, rest, command)
        case ["accelerate", "launch", *rest]:
            launch = launch_command_parser().parse_args(rest)
            assert launch.config_file is None or (ROOT / launch.config_file).is_file(), (
                f"no such file: {command}"
            )
            check_script(launch.training_script, launch.training_script_args, command)
        case _:
            return False
    return True


def check_subcommand(name: str, argv: list[str], command: str) -> None:
    if name.startswith("--"):
        assert name in ("--help", "--version"), f"no such option: {command}"
        return
    found, rest = find_command([name, *argv])
    assert found is not None, f"no such command: {command}"
    parse(load(COMMANDS[found].options), rest, found, "")


def check_script(script: str, argv: list[str], command: str) -> None:
    if script in DIFFUSERS_SCRIPTS:
        return
    assert script in SCRIPTS, f"no such script: {command}"
    assert (ROOT / script).is_file(), f"no such script: {command}"
    module = script.removesuffix(".py").replace("/", ".")
    parse(load(f"{module}:{SCRIPTS[script]}"), argv, script, "")


CONSOLE = [
    (document, block, command)
    for document in DOCUMENTS
    for block in blocks(read(document))
    if block.language == "console"
    for command in block.commands()
]
UNTESTED = [
    pytest.param(command, id=f"{document}, line {block.line}: {command[:60]}")
    for document, block, command in CONSOLE
    if not block.tested
]
PYTHON = [
    pytest.param(block.text, id=f"{document}, line {block.line}")
    for document in DOCUMENTS
    for block in blocks(read(document))
    if block.language == "python"
]


@pytest.mark.parametrize("command", UNTESTED)
def test_untested_console_line(command):
    """Commands of this project parse. Commands of other programs are not looked at."""
    check(command)


@pytest.mark.parametrize("text", PYTHON)
def test_python_block_compiles(text):
    ast.parse(text)


def test_every_command_is_in_a_document():
    text = "\n".join(read(document) for document in DOCUMENTS)
    for name in COMMANDS:
        assert re.search(rf"attn2mask {name}\b", text), name


def slug(heading: str) -> str:
    """The anchor that GitHub makes for a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document):
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", read(document)):
        target = ROOT / Path(document).parent / path if path else ROOT / document
        assert target.exists(), f"{document}: no such file: {path}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{document}: {target.name} has no heading #{anchor}"


def test_every_guide_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\((docs/[^)#]+)", read("README.md")))
    assert {document for document in DOCUMENTS if document.startswith("docs/")} <= linked


def test_the_readme_is_short():
    text = read("README.md")
    assert len(text.splitlines()) <= MOST_LINES
    assert len(text.split()) <= MOST_WORDS


@pytest.mark.parametrize("document", DOCUMENTS)
def test_lines_fit_the_width(document):
    """Rows of tables can't be broken, so they may be longer, but not in README.md."""
    lines = enumerate(read(document).splitlines(), 1)
    tables = () if document == "README.md" else ("|",)
    long = [number for number, line in lines if len(line) > MOST_COLUMNS and not line.startswith(tables)]
    assert not long, f"{document}: lines with more than {MOST_COLUMNS} columns: {long}"


def private_words(document: str, text: str) -> list[str]:
    """The private words in a text, beside what `LEGITIMATE` lists. Raises if it lists what is not there."""
    for passage in LEGITIMATE.get(document, ()):
        assert passage in text, f"{document} no longer holds {passage}: remove it from LEGITIMATE"
        text = text.replace(passage, "")
    return PRIVATE_WORDS.findall(text)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_words_are_those_of_the_field(document):
    assert private_words(document, read(document)) == []


def test_private_words_are_found():
    found = private_words("README.md", "The Pictures were fed, told_mean_iou, classes told; take a look.")
    assert found == ["Pictures", "told"]


def test_all_tested_blocks_belong_to_a_chain():
    tested = {document for document in DOCUMENTS if any(block.tested for block in blocks(read(document)))}
    assert tested == {document for chain in CHAINS for document in chain}


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain[0])
def test_tested_blocks_run(chain, tmp_path):
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    for name in ("training", "accelerate_config.yaml"):  # a clone, for commands that name a script
        (work / name).symlink_to(ROOT / name)
    for document in chain:
        for block in blocks(read(document)):
            if block.tested:
                run(block, work, home, document)


def run(block: Block, work: Path, home: Path, document: str) -> None:
    """Run a block in `work`, with the caches of the Hugging Face libraries in `home` and without the Hub."""
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
    output = (done.stdout + done.stderr)[-3000:]
    assert done.returncode == 0, f"{document}, block of line {block.line}:\n{block.text}\n{output}"


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
        run(block, work, tmp_path, "EXAMPLE")
    with pytest.raises(AssertionError, match="EXAMPLE, block of line 14"):
        run(third, elsewhere, tmp_path, "EXAMPLE")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```console\n$ ls\n", "does not end"),
        (f"{MARK}\n\n```console\n$ ls\n```\n", "right before"),
        (f"```\n```\n{MARK}\n", "right before"),
        (f"{MARK}\n```\n$ ls\n```\n", "can't be tested"),
    ],
)
def test_the_extractor_passes_over_nothing(text, message):
    with pytest.raises(ValueError, match=message):
        blocks(text)
    with pytest.raises(ValueError, match="no command"):
        Block(1, "console", "ls\n", True).commands()


@pytest.mark.parametrize(
    "command",
    [
        "attn2mask upload data/voc",
        "python -m attn2mask upload data/voc",
        "make nothing",
        "python nothing.py",
        "torchrun --nproc-per-node 2 nothing.py",
        "python -m attn2mask.builders.nothing",
        "accelerate launch nothing.py voc",
        "accelerate launch --config_file nothing.yaml builders/build.py voc",
    ],
)
def test_a_command_that_would_not_run_is_found(command):
    with pytest.raises(AssertionError, match="no such"):
        check(command)
    assert not check("printf 'attn2mask'")

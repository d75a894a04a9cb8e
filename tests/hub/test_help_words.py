"""The words of the command line: the help of all commands, the overview, and what commands log first.

Every option says what it is, its unit or range, and its default.
"""

import math
import re
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest

from attn2mask.builders.options import CommandParser, facts_of, flag_of
from attn2mask.hub.cli import COMMANDS, load, usage

# Words that had a private meaning in this project, and "picture", for which the one word is "image".
PRIVATE_WORDS = re.compile(r"\b(?:told|looks|answers?|feeds?|cells?|pictures?)\b", re.IGNORECASE)
LONGEST_LINE = 110


def help_of(name: str) -> str:
    command = COMMANDS[name]
    return CommandParser(load(command.options), f"attn2mask {name}", command.summary).format_help()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_no_private_words_and_short_lines(name):
    text = help_of(name)
    assert not PRIVATE_WORDS.findall(text)
    assert max(map(len, text.splitlines())) <= LONGEST_LINE
    assert re.fullmatch(
        rf"usage: attn2mask {name}( [A-Z]+( \[[A-Z]+ \.\.\.\])?)* \[--option VALUE \.\.\.\]",
        text.splitlines()[0],
    )


def test_the_overview_has_no_private_words_and_short_lines():
    text = usage() + "".join(command.start for command in COMMANDS.values())
    assert not PRIVATE_WORDS.findall(text)
    assert max(map(len, usage().splitlines())) <= LONGEST_LINE


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_says_what_it_is_and_its_range(name):
    options = load(COMMANDS[name].options)
    hints = get_type_hints(options)
    for option in fields(options):
        text, facts = option.metadata["help"], facts_of(options)[option.name]
        assert re.fullmatch(r"(?:[a-z]|[A-Z]{3}|LoRA |Hub )\S*(?: \S+)*(?<!\.)", text), text
        # The parser adds the default; the text must not.
        assert "(default" not in text
        assert "%(" not in text
        hint = hints[option.name]
        if {int, float} & {hint, *get_args(hint)}:
            assert max(facts.at_least, facts.above) > -math.inf, f"{option.name} is a number without a range"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_names_the_default_of_every_option(name):
    text = " ".join(help_of(name).split())
    options = load(COMMANDS[name].options)
    for option in fields(options):
        facts = facts_of(options)[option.name]
        if not facts.positional:
            described = re.search(rf" {flag_of(option.name)} .*?\((?:default: (.+?)|required)\)", text)
            assert described, option.name
            assert (described[1] is None) == facts.required, option.name
            assert "None" not in str(described[1]) or facts.required, option.name

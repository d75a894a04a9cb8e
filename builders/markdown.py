"""Values as text in Markdown and in code, where nothing in them has an effect.

Text from elsewhere may hold Markdown, HTML, marks of generated blocks, line breaks and control characters.
`escaped` makes text of it, for a paragraph, a heading or a cell of a table. It writes what could have an
effect as HTML entities: unlike backslashes, they mean the same in Markdown, in a table and in HTML.
"""

import json
import re
import shlex
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from attn2mask.builders.errors import printable

NOT_RECORDED = "not recorded"

# Characters with an effect anywhere; an underscore has none between letters or digits.
_SPECIAL = re.compile(r"[\\`*\[\]<>&|~#$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
# The beginning of a list, of a rule or of the line below a heading. A lone hyphen is a cell without a value.
_FIRST = re.compile(r"(?!-$)[-+=](?=[-+=]*(?: |$))|(?<=\d)[.)](?= |$)")
_NUMBER = re.compile(r"\d{1,9}")
# What a code span shows as it is, in a table, too.
_PLAIN_CODE = re.compile(r"[^`|<>&\\\s]+(?: [^`|<>&\\\s]+)*")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Markdown(str):
    """Text that is Markdown already. What is made of it by other methods is plain text again."""

    __slots__ = ()


def one_line(value: Any) -> str:
    """A value as plain text: one line without control characters."""
    if value is None:
        return NOT_RECORDED
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return _SURROGATE.sub("\ufffd", printable(" ".join(text.split())))


def escaped(value: Any) -> Markdown:
    """A value as text in Markdown or HTML. `Markdown` stays as it is."""
    if isinstance(value, Markdown):
        return value
    text = one_line(value)
    number = _NUMBER.match(text)
    first = _FIRST.match(text, number.end() if number else 0)
    text = _SPECIAL.sub(_entity, text[first.end() :] if first else text)
    lead = f"{number[0] if number else ''}{_entity(first)}" if first else ""
    return Markdown(lead + text)


def table_row(values: Iterable[Any]) -> Markdown:
    """The cells of a row of a table."""
    return Markdown(" | ".join(map(escaped, values)))


def code(value: Any) -> Markdown:
    """A value as code; as text if a code span cannot show it."""
    text = one_line(value)
    return Markdown(f"`{text}`") if _PLAIN_CODE.fullmatch(text) else escaped(text)


def link(value: Any, address: str) -> Markdown:
    """A value as a link to an address."""
    return Markdown(f"[{escaped(value)}]({address})")


def url(value: Any) -> Markdown:
    """A value as a part of an address, or as a name of a generated block."""
    return Markdown(quote(one_line(value), safe="/:"))


def python(value: Any) -> Markdown:
    """A value as a string of Python, in a block of code."""
    return Markdown(json.dumps(one_line(value), ensure_ascii=False))


def shell(value: Any) -> Markdown:
    """A value as a word of a command, in a block of code."""
    return Markdown(shlex.quote(one_line(value)))


def _entity(found: re.Match[str]) -> str:
    return {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(found[0], f"&#{ord(found[0])};")

"""Text of any kind comes out of Markdown as itself: a parser finds no element, heading or mark in it."""

import ast
import re
import shlex
from html import unescape

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from attn2mask.builders.markdown import Markdown, code, escaped, link, one_line, python, shell, table_row, url

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "</details>",
    "# heading",
    "a\n# heading",
    "a\n===",
    "<!-- generated: about -->",
    "a\n<!-- /generated: about -->\nb",
    "---",
    "- item",
    "1. item",
    "> quote",
    "```\ncode\n```",
    "~~~",
    "[a](javascript:alert(1))",
    "![a](http://example.com/a.png)",
    "[^1]",
    "a|b",
    "a\\|b",
    "\\",
    "&lt;b&gt;",
    "**a** _b_ __c__ `d` ~~e~~",
    "$x$ \\(y\\)",
    "{{ 1 + 1 }} {% raw %}",
    "\x1b[31mred\x07",
    "\u202eabc",
    "imagenet_s_50",
    "a & b",
    "\ud800",
    "- ",
    "-",
    "+ 1) a",
]
TEXT = st.sampled_from(HOSTILE) | st.text(
    st.sampled_from("<>&|`*_~[]()#!$-+=.1a \\\n\t\x1b\"'/:") | st.characters(), max_size=20
)


def shown(markdown: str) -> tuple[str, list[str]]:
    """The text that a parser finds in Markdown, and the kinds of its parts."""
    text, kinds = "", []
    for token in PARSER.parse(markdown):
        kinds += [token.type]
        for part in token.children or ():
            kinds += [] if part.type in ("text", "text_special") else [part.type]
            text += part.content
    return text, kinds


@given(TEXT)
@example("a\n- b")
def test_text_is_shown_as_itself(value):
    leads = ["A line with "] + [""] * (one_line(value) != "-")  # alone, a hyphen is a cell without a value
    for lead in leads:
        text, kinds = shown(f"{lead}{escaped(value)}")
        assert text == (lead + one_line(value)).strip()
        assert set(kinds) <= {"paragraph_open", "inline", "paragraph_close"}


@given(TEXT)
def test_text_is_shown_as_itself_in_html(value):
    assert re.sub(r"&(#\d+|lt|gt|amp);", lambda entity: unescape(entity[0]), escaped(value)) == one_line(
        value
    )
    assert not set("<>") & set(escaped(value))


@given(TEXT)
def test_a_heading_stays_one(value):
    text, kinds = shown(f"# {escaped(value)}")
    assert text == one_line(value)
    assert set(kinds) <= {"heading_open", "inline", "heading_close"}


@given(st.lists(TEXT, min_size=2, max_size=4), st.booleans())
def test_a_table_has_the_same_columns(values, as_code):
    shown_as = code if as_code else escaped
    head, rule = table_row(["a"] * len(values)), "|".join(["---"] * len(values))
    tokens = PARSER.parse(f"| {head} |\n| {rule} |\n| {table_row(map(shown_as, values))} |\n")
    inline = [token for token in tokens if token.type == "inline"][len(values) :]
    assert ["".join(part.content for part in token.children) for token in inline] == [
        one_line(value) for value in values
    ]
    kinds = {part.type for token in inline for part in token.children}
    assert kinds <= {"text", "text_special", *(["code_inline"] if as_code else [])}


@given(TEXT)
def test_code_is_shown_as_itself(value):
    text, kinds = shown(f"A line with {code(value)} in it")
    assert text.replace("\xa0", " ") == f"A line with {one_line(value)} in it".replace("\xa0", " ")
    assert set(kinds) <= {"paragraph_open", "inline", "paragraph_close", "code_inline"}


@given(TEXT)
def test_code_of_languages_holds_the_same_text(value):
    assert ast.literal_eval(str(python(value))) == one_line(value)
    assert shlex.split(shell(value)) == [one_line(value)]
    for text in (python(value), shell(value), url(value)):
        assert len(text.splitlines()) <= 1


@given(TEXT)
def test_a_link_leads_where_it_says(value):
    text, kinds = shown(str(link(value, f"https://example.com/{url(value)}")))
    assert text == one_line(value)
    assert {"link_open", "link_close"} <= set(kinds) <= {
        "paragraph_open", "inline", "paragraph_close", "link_open", "link_close"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not recorded"),
        (True, "yes"),
        (False, "no"),
        (20_000.0, "20000"),
        (2.5, "2.5"),
        ("imagenet_s_50", "imagenet_s_50"),
        ("_a_", "&#95;a&#95;"),
        ("x|y\nz", "x&#124;y z"),
        ("<!-- generated: a -->", "&lt;!-- generated: a --&gt;"),
        ("- a", "&#45; a"),
        ("1. a", "1&#46; a"),
        ("-", "-"),
        ("-0.5", "-0.5"),
        ("a\x1b[2Jb", "a\ufffd&#91;2Jb"),
        (Markdown("**a**"), "**a**"),
    ],
)
def test_values_as_text(value, text):
    assert escaped(value) == text


def test_what_is_made_of_markdown_is_text_again():
    assert escaped(Markdown("**") + "<b>") == "&#42;&#42;&lt;b&gt;"
    assert escaped(f"{Markdown('**')}") == "&#42;&#42;"

"""Pieces of HTML."""

from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attn2mask.builders.classes import ClassTable, LabelClass
from attn2mask.builders.errors import UserError
from attn2mask.hub.preview.pieces import error_message, legend
from attn2mask.hub.preview.rows import read_row, row_page


def test_large_tables_have_masks_of_16_bits():
    classes = tuple(LabelClass(f"thing {k}", (f"thing{k}",), (), (k % 256, k // 256, 7)) for k in range(300))
    table = ClassTable("many", classes, "background")
    ids = np.array([[0, 299], [299, 65535]], np.uint16)
    text = legend(ids, table, {})
    assert "thing 298 <span>50.0%" in text
    assert "ignored <span>25.0%" in text


class Parts(HTMLParser):
    """The elements of a page with the names of their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.elements.append((tag, [name for name, _ in attributes]))

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", data))

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = ["<img src=x onerror=alert(1)>", "</p><h1>", "<script>alert(1)</script>", '" onload="x', "<!--"]
TEXT = st.sampled_from(HOSTILE) | st.text(
    st.sampled_from("<>&\"'/=! a1\x1b\u202e") | st.characters(exclude_categories=["Cs"]), max_size=12
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT)
def test_foreign_text_stays_text(data, text):
    """In the prompt, the words, the caption, the id of a row and the names of classes."""
    row, table = read_row(data, 0), data.table

    def page(text: str) -> Parts:
        words = [f"{text}{k}" for k in range(len(row["words"]))]
        labels = tuple(replace(label, name=f"{text}{k}") for k, label in enumerate(table.classes))
        changed = row | {"prompt": f" {text}! ", "words": words, "caption": text, "sample_id": f"{text}-0"}
        named = SimpleNamespace(table=replace(table, classes=labels, background=f"{text}b"), rules=data.rules)
        return Parts(row_page(changed, named, data.rules))

    assert page(text).elements == page("word").elements
    assert not set(page(text).text) & set("\x1b\u202e")
    assert Parts(error_message(UserError(text))).elements == [("div", ["class"])]

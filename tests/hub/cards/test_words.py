"""The words of the cards: no private terms, no values that a template misses, and nothing left to render."""

import json
import re
import shutil
from functools import partial

import jinja2
import pytest
from card_text import REPO, changed

from attn2mask.hub.cards.adapter import adapter_card
from attn2mask.hub.cards.dataset import dataset_card
from attn2mask.hub.cards.markdown import TEMPLATES
from attn2mask.hub.cards.segmenter import model_card

PRIVATE = re.compile(
    r"\b(tell|tells|told|looks|looked|answers?|feeds?|cells?|pictures?|learnt|stands?|stood|mend\w*"
    r"|goes on|of its own|of one's own)\b",
    re.IGNORECASE,
)
NAMES = sorted(file.name for file in TEMPLATES.glob("*.md"))


@pytest.fixture
def strict_templates(monkeypatch) -> None:
    """A value that a template uses and that Python does not give is an error."""
    strict = partial(jinja2.Environment, undefined=jinja2.StrictUndefined)
    monkeypatch.setattr("attn2mask.hub.cards.markdown.Environment", strict)


@pytest.fixture
def texts(voc, run, report, adapter, no_figures, strict_templates, tmp_path) -> list[str]:
    """Cards of all kinds: with all records, and with as few as there can be."""
    shutil.copytree(voc, tmp_path / "voc")
    (tmp_path / "voc" / "report.json").unlink()
    remasked = changed(voc, tmp_path / "remasked", "build.json", "command", "remask")
    lora = changed(voc, tmp_path / "lora", "build.json", "identity", "lora", "owner/lora")
    (tmp_path / "run").mkdir()
    shutil.copy(run / "config.json", tmp_path / "run")
    cards = [
        dataset_card({"voc": voc, "other": tmp_path / "voc", "remasked": remasked, "lora": lora}, REPO),
        model_card(run, REPO),
        model_card(run, REPO, [report]),
        model_card(tmp_path / "run", REPO),
        adapter_card(adapter, REPO),
    ]
    (adapter / "training_config.json").write_text(json.dumps({"base_model": "embedded"}))
    return [card.text for card in [*cards, adapter_card(adapter, REPO)]]


def test_cards_hold_no_private_words_and_nothing_left_to_render(texts):
    for text in texts:
        assert PRIVATE.findall(text) == []
        # The prompt of the drawn rows, which holds Jinja, is in no card.
        assert not re.search(r"\{\{|\}\}|\{%|%\}|\{#|None\b", text)
        assert "\n\n\n" not in text


@pytest.mark.parametrize("name", NAMES)
def test_templates_hold_no_private_words(name):
    text = (TEMPLATES / name).read_text("utf-8")
    assert PRIVATE.findall(text) == []


@pytest.mark.parametrize("name", NAMES)
def test_templates_are_clean_markdown(name):
    """Every block has its end, in order, and no line has a space at its end."""
    text = (TEMPLATES / name).read_text("utf-8")
    marks = re.findall(r"<!-- (/?)generated: (.+?) -->", text)
    assert [(end, block) for end, block in marks] == [
        (end, block) for _, block in marks[::2] for end in ("", "/")
    ]
    assert not re.search(r"[ \t]$", text, re.MULTILINE)

"""Text from elsewhere in any field of a record: the card shows it as text, and has the same structure."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from attn2mask.hub.cards import dataset
from attn2mask.hub.cards.adapter import adapter_card
from attn2mask.hub.cards.dataset import ON_HUB, dataset_card
from attn2mask.hub.cards.markdown import compose, split
from attn2mask.hub.cards.segmenter import model_card
from attn2mask.training.benchmarks import hub_name

REPO = "someone/attn2mask-things"
PARSER = MarkdownIt("commonmark").enable("table")
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "</details>",
    "</summary><h1>",
    "cat\n# heading\n",
    "cat\n<!-- generated: about -->\ncat",
    "\n<!-- /generated: config:voc -->\n",
    "\n---\nlicense: mit\n---\n",
    "cat | dog\n| --- |",
    "`cat`\n```\n",
    "[cat](javascript:alert(1)) ![cat](http://example.com/a.png)",
    "{{ 1 + 1 }}",
    "\x1b[31mcat\x07\u202e",
    'it\'s "cat" \\',
]
TEXT = st.sampled_from(HOSTILE) | st.text(
    st.sampled_from("<>&|`*_[]()#-!\n\"'\\ /a1") | st.characters(exclude_categories=["Cs"]), max_size=16
)
few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Values that say which parts a card has.
SWITCHES = ("command", "captions", "threshold", "reliability", "scales")


def with_text(value: Any, text: str, key: str = "") -> Any:
    """A record with the text in place of every text in it, also in place of names of classes and rows."""
    if isinstance(value, dict):
        named = key in ("per_class_iou", "rejected", "dropped", "versions")
        return {
            f"{text}{k}" if named else name: with_text(inner, text, name)
            for k, (name, inner) in enumerate(value.items())
        }
    if isinstance(value, list | tuple):
        return type(value)(with_text(inner, text, key) for inner in value)
    return text if isinstance(value, str) and key not in SWITCHES else value


def structure(card: str) -> list[Any]:
    """The parts of the Markdown of a card, without the text and the code in them."""
    found: list[Any] = []
    for token in PARSER.parse(split(card)[1]):
        found.append((token.type, token.tag, token.content if token.type == "html_block" else ""))
        inline = [part.type for part in token.children or ()]
        found += [kind for kind in inline if kind not in ("text", "text_special", "code_inline", "softbreak")]
    return found


def check(make: Callable[[str, str | None], str], text: str) -> None:
    """`make(text, old)` makes the card of a record with the text in all fields, in place of `old`."""
    made = make(text, None)
    assert structure(made) == structure(make("word", None))
    assert not set(made) & set("\x1b\x07\u202e\u2066\x9b")
    assert make(text, made) == made
    own = f"{made}\nMine: <b>bold</b>.\n"
    assert make(text, own) == own


@few
@given(TEXT)
@example("\x850")
@example("a\u2028b")
@example("cat\n<!-- generated: config:voc -->\ncat")
def test_the_card_of_a_dataset(voc, no_figures, text):
    assume(not ON_HUB.fullmatch(text))
    built = dataset._read_build("voc", voc)

    def make(text: str, old: str | None) -> str:
        names = tuple(f"{text}{k}" for k in range(len(built.statistics.names)))
        labels = zip(built.table.classes, names[1:], strict=True)
        classes = tuple(replace(label, name=name) for label, name in labels)
        build = replace(
            built,
            record=with_text(built.record, text),
            identity=with_text(built.identity, text),
            report=with_text(built.report, text),
            table=replace(built.table, classes=classes, background=names[0]),
            statistics=_renamed(built.statistics, names),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dataset, "_read_build", lambda name, path: build)
            return dataset_card({"voc": voc}, REPO, old).text

    check(make, text)


def _renamed(statistics: Any, names: tuple[str, ...]) -> Any:
    copy = type(statistics)(names)
    vars(copy).update(vars(statistics) | {"names": names})
    return copy


@few
@given(TEXT)
@example("\x850")  # for YAML a line break, for a terminal a control character
@example("a\u2028b")
def test_the_card_of_a_segmenter(run, report, no_figures, tmp_path_factory, text):
    assume(text.strip())  # without text, values are not recorded
    folder = tmp_path_factory.mktemp("text") / "run"

    def make(text: str, old: str | None) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(run, folder)
        for name in ("config.json", "training_config.json"):
            write(folder / name, run / name, text)
        write(folder / "report.json", report, text)
        return model_card(folder, REPO, [folder / "report.json"], old).text

    check(make, text)


@few
@given(TEXT)
def test_the_card_of_an_adapter(adapter, text):
    assume((hub_name(text) is None) and text != "embedded" and text.strip(" ./~"))
    record = adapter / "training_config.json"
    original = record.with_name("original.json")
    if not original.exists():
        shutil.copy(record, original)

    def make(text: str, old: str | None) -> str:
        write(record, original, text)
        return adapter_card(adapter, REPO, old).text

    check(make, text)


def write(file: Path, original: Path, text: str) -> None:
    file.write_text(json.dumps(with_text(json.loads(original.read_text()), text)))


# Those that YAML does not write as an escape become replacement characters.
PLAIN = st.characters(
    exclude_categories=["Cs"], exclude_characters="\x85\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)


@given(st.dictionaries(st.text(PLAIN, max_size=5), st.text(PLAIN, max_size=20), max_size=3))
@example({"names": "cat\n---\nlicense: mit\n---\n"})
@example({"names": "\x1b\u2028\r\n"})
def test_metadata_is_read_as_it_was_written(data):
    assert split(compose(data, "# Title")) == (data, "\n# Title\n")

"""YAML of users: keys that are given twice, and merge keys that multiply."""

import itertools

import pytest
import yaml

from attn2mask.builders.yaml_reader import MOST_MERGED, load_yaml
from attn2mask.hub.cli import main


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: {c: [1, 2], d: null}\n",
        "one: &x {a: 1}\ntwo: {<<: *x, b: 2}\nthree: {<<: *x, a: 3}\n",
        "one: &x {a: 1}\ntwo: &y {<<: *x, a: 2}\nthree: {<<: [*x, *y], a: 4}\n",
        "1: a\n'1': b\n",
        "",
    ],
)
def test_other_yaml_is_read_as_usual(text):
    assert load_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    "text", ["a: 1\nb: 2\na: 3\n", "x: {a: 1, a: 1}", "- {b: 1, c: {a: 1, 'a': 2}}", "&x a: 1\na: 2"]
)
def test_a_key_that_is_given_twice_is_named_with_its_line(text):
    with pytest.raises(yaml.YAMLError, match="the key 'a' is given twice") as error:
        load_yaml(text)
    assert error.value.problem_mark.line == text[: text.rindex("a")].count("\n")


def nested(levels: int) -> str:
    """Merge keys of nine mappings each, of which every level has nine times as many keys."""
    names = "abcdefghijklm"[: levels + 1]
    lines = ["a: &a {k: 1}"]
    for before, name in itertools.pairwise(names):
        lines.append(f"{name}: &{name}\n  <<: [{', '.join([f'*{before}'] * 9)}]")
    return "\n".join(lines)


def test_nested_merge_keys_cost_little():
    assert load_yaml(nested(3))["d"] == {"k": 1}
    with pytest.raises(yaml.YAMLError, match=f"more than {MOST_MERGED:,} keys"):
        load_yaml(nested(12))  # it would take hours, and more memory than there is


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("num_images: 3\nnum_images: 4\n", "the key 'num_images' is given twice"),
        (nested(9), "merge keys (<<)"),
    ],
)
def test_a_config_file_and_a_class_table_are_refused_with_one_line(tmp_path, capsys, content, message):
    file = tmp_path / "it.yaml"
    file.write_text(content)
    assert main(["build", "voc", "--config", str(file)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert main(["build", str(file), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]

"""How a new card is merged into an old one, and what templates put into tables."""

from email.message import Message

import pytest
from card_text import block
from huggingface_hub import DatasetCardData
from jinja2 import Environment, FileSystemLoader

from attn2mask.builders.errors import UserError
from attn2mask.hub.cards.markdown import (
    TEMPLATES,
    as_list,
    compose,
    count,
    duration,
    merge,
    percent,
    project,
    public_path,
    render,
    split,
    version_rows,
)


def made(*names: str, **data: object) -> str:
    """A card with these blocks, and with a hint between the first and the second."""
    first, *others = [block(name, f"# {name} is new") for name in names]
    return compose(data, "\n".join([first, "<!-- Write here. -->\n", *others]))


@pytest.mark.parametrize(
    ("urls", "shown", "install"),
    [
        ([], "`attn2mask`", None),
        (["Changelog, https://example.org/log"], "`attn2mask`", None),
        (["Homepage, https://example.org"], "[attn2mask](https://example.org)", None),
        (
            ["Repository, https://example.org/it", "Homepage, https://example.org"],
            "[attn2mask](https://example.org)",
            "$ pip install 'attn2mask @ git+https://example.org/it'",
        ),
    ],
)
def test_the_project_is_linked_where_the_package_has_an_address(monkeypatch, urls, shown, install):
    installed = Message()
    for line in urls:
        installed["Project-URL"] = line
    monkeypatch.setattr("attn2mask.hub.cards.markdown.metadata", lambda name: installed)
    page = Environment(loader=FileSystemLoader(TEMPLATES)).get_template("project.md").render(**project())
    assert f"This repository was made with {shown}." in page
    assert install in page if install else "pip" not in page


def test_the_paper_is_a_link():
    """The Hub makes the tag `arxiv:` of links, not of BibTeX."""
    assert "](https://arxiv.org/abs/2309.01369)" in (TEMPLATES / "citation.md").read_text("utf-8")


def test_free_text_stays_and_blocks_are_replaced():
    old = compose(
        {}, f"Hello.\n\n{block('a', 'old a, changed by hand')}\nBetween.\n\n{block('b', 'old b')}\nEnd.\n"
    )
    merged = merge(made("a", "new", "b"), old)
    body = split(merged)[1]
    order = ["Hello.", "# a is new", "# new is new", "Between.", "# b is new", "End."]
    assert [body.index(part) for part in order] == sorted(body.index(part) for part in order)
    assert "old" not in body
    assert merge(made("a", "new", "b"), merged) == merged


def test_blocks_that_are_gone_are_removed_but_not_those_of_another_config():
    old = made("about", "config:voc", "gone", "end")
    merged = merge(made("about", "config:streets", "end"), old)
    assert "# config:voc is new" in merged
    assert merged.index("about is new") < merged.index("config:streets is new") < merged.index("end is new")
    assert "gone" not in merged


@pytest.mark.parametrize(
    "old",
    [
        "# A person's card\n\nwith text\n",
        "---\nlicense: mit\n---\n# A person's card\n\nwith text\n",
        "\ufeff---\r\nlicense: mit\r\n---\r\n# A person's card\r\n\r\nwith text\r\n",
    ],
)
def test_a_card_that_a_person_wrote_stays_below(old):
    merged = merge(made("a"), old)
    assert merged.index("a is new") < merged.index("# A person's card\n\nwith text\n")
    assert split(merged)[0].get("license") == ("mit" if "mit" in old else None)
    again = merge(made("a"), merged)
    assert again == merged


def test_marks_without_their_other_half_swallow_nothing():
    old = "<!-- generated: a -->\nmine\n\n" + block("b", "old b") + "<!-- /generated: c -->\nmine too\n"
    merged = merge(made("a", "b"), old)
    assert merged.count("<!-- generated: a -->") == 1
    assert "<!-- /generated: c -->" not in merged
    assert "mine\n" in merged
    assert "mine too" in merged
    assert merge(made("a", "b"), merged) == merged


def test_a_block_that_was_copied_by_hand_is_written_once():
    assert merge(made("a"), made("a") + block("a", "again")).count("generated: a") == 2


def test_without_an_old_card_the_new_one_stays():
    assert merge(made("a", x=1), None) == merge(made("a", x=1), " \n") == made("a", x=1)


def test_metadata_of_a_person_stays():
    old = {
        "tags": ["b", "mine"],
        "license": "mit",
        "extra": {"k": 1},
        "pretty_name": "old",
        "model-index": [1],
    }
    data = split(merge(made("a", tags=["a", "b"], license="unknown", pretty_name="x"), compose(old, "")))[0]
    assert data == {"tags": ["a", "b", "mine"], "license": "mit", "extra": {"k": 1}, "pretty_name": "x"}
    assert split(merge(made("a", license="apache-2.0"), compose(old, "")))[0]["license"] == "apache-2.0"


def test_configs_are_merged_by_name_and_the_default_stays():
    old = {
        "configs": [
            {"config_name": "b", "default": True, "data_files": "old"},
            {"config_name": "c", "mine": 1},
        ],
        "dataset_info": {"config_name": "b", "download_size": 1},
    }
    new = {
        "configs": [{"config_name": "a", "default": True}, {"config_name": "b", "data_files": "new"}],
        "dataset_info": [{"config_name": "a", "download_size": 2}],
    }
    data = split(merge(compose(new, ""), compose(old, "")))[0]
    assert data["configs"] == [
        {"config_name": "b", "default": True, "data_files": "new"},
        {"config_name": "c", "mine": 1},
        {"config_name": "a"},
    ]
    assert [info["config_name"] for info in data["dataset_info"]] == ["b", "a"]


@pytest.mark.parametrize("head", ["a: [", "- a\n- b"])
def test_metadata_that_cannot_be_read_is_one_line(head):
    with pytest.raises(
        UserError, match=r"README\.md starts with metadata that is not .* correct it"
    ) as caught:
        merge(made("a"), f"---\n{head}\n---\ntext\n")
    assert "\n" not in str(caught.value)


def test_a_rendered_card_has_its_metadata_and_its_citation(tmp_path, monkeypatch):
    (tmp_path / "it.md").write_text(
        "---\n{{ card_data }}\n---\n\n# {{ title }} {{ mine }}\n\n{{ citation }}\n"
    )
    (tmp_path / "citation.md").write_text("Cite.\n")
    monkeypatch.setattr("attn2mask.hub.cards.markdown.TEMPLATES", tmp_path)
    text = render(DatasetCardData(license="mit", extra=[1]), "it", "me/{{ x }}", mine="<b>")
    assert text == compose({"license": "mit", "extra": [1]}, "# {{ x }} &lt;b&gt;\n\nCite.")


def test_values_as_text():
    assert (count(1, "row"), count(2000, "row")) == ("1 row", "2,000 rows")
    assert (percent(0.1234), percent(1.0), percent(None)) == ("12.3%", "100.0%", "-")
    assert (duration(59.4), duration(61), duration(4000)) == ("59 s", "1 min 1 s", "1 h 6 min")
    assert (as_list(None), as_list("a"), as_list(("a", "b"))) == ([], ["a"], ["a", "b"])
    record = {"versions": {"torch": "2"}, "git_commit": "0a1b"}
    assert version_rows(record) == [("torch", "2"), ("git commit", "`0a1b`")]
    assert version_rows({}) == [("git commit", None)]


def test_paths_of_this_machine_lose_their_folders():
    assert [public_path(path) for path in ("/a/b", "~/c", "../d")] == ["b", "c", "d"]
    assert [public_path(path) for path in ("a/b", "voc", "owner/name")] == ["a/b", "voc", "owner/name"]

"""The prompts that were read (docs/prompts-read.tsv): all have a verdict, and the code still makes them."""

import csv
from collections import Counter

import pytest
from places import ROOT

from attn2mask.builders.table_reader import load_table
from attn2mask.training.experiments.prompt_text import replaced

FILE = ROOT / "docs" / "prompts-read.tsv"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    lines = [line for line in FILE.read_text("utf-8").splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_300_prompts_have_a_verdict(rows: list[dict[str, str]]):
    assert [int(row["number"]) for row in rows] == list(range(1, 301))
    assert len({row["caption_id"] for row in rows}) == 300
    verdicts = Counter(row["verdict"] for row in rows)
    assert set(verdicts) <= {"right", "wrong"}
    assert verdicts["wrong"] <= 9  # 3 %
    assert all((row["verdict"] == "wrong") == bool(row["fault"]) for row in rows)
    assert all(row["prompt"] != row["caption"] for row in rows)


def test_the_code_still_makes_them(rows: list[dict[str, str]]):
    table, seed = load_table("voc"), int(FILE.read_text("utf-8").split("seed ", 1)[1].split()[0])
    made = [replaced(table, row["caption"], seed, int(row["number"])) for row in rows]
    assert made == [row["prompt"] for row in rows]

"""Counts faults in the text of prompts, with and without the rules of neighbors, and draws prompts to read.

    python training/experiments/prompt_text.py --captions captions.jsonl --out runs/prompt_text

The rules were chosen on the captions of images with an even number. Only those of images with an odd number
are used here. The counts are of patterns that do not use the rules' own lists of words. They find frequent
faults only. Reading finds all: `prompts.tsv` has prompts to read, for classes that take turns.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
from transformers import AutoTokenizer

from attn2mask.builders import prompts
from attn2mask.builders.classes import ClassTable
from attn2mask.builders.command import run_command
from attn2mask.builders.options import CheckedOptions, option
from attn2mask.builders.painter import EMBEDDED
from attn2mask.builders.prompts import PromptSource, augment, find_occurrences
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words.captions import Caption

_SPORTS = r"baseball|tennis|soccer|football|hockey|frisbee|basketball|business|police|camera|snow|fire"
# Patterns of a prompt in which "<>" stands before and after each word that replaced another one.
FAULTS = {
    "homo sapiens": r"<homo sapiens>",
    "a compound is torn: 'baseball homo sapiens'": rf"\b(?:{_SPORTS}) <(?:human|citizen|homo)",
    "a compound is torn: 'locomotive yard'": r"> (?:yard|top|station|stop|lot|shop|house|window|door|seat"
    r"|wing|cake|lover|owner|trainer|enthusiast|board|lights?|shelter|frame|leg)\b",
    "the age of a person is lost": r"\b(?:young|old|older|elderly|little|baby)(?: \w+){0,2}"
    r" <(?:human|citizen|homo)",
    "a pronoun after a neutral word": r"<(?:human|citizen|homo sapiens)>(?: [\w'-]+)* (?:her|his|she|he)\b",
    "a color before a kind": r"\b(?:black|white|brown|gr[ea]y|red|blue|green|orange|yellow|pink)"
    r" <(?:[\w-]+ (?:cat|horse|cow|sheep)|bobcat|maine coon|crow|owl|parrot|seagull|poodle|labrador|retriever"
    r"|holstein|angus|appaloosa)",
    "a measure: 'two human'": r"\b(?:two|three|four|five|several|many) <(?:human|citizen)>",
}
# Patterns of a caption, in which "[]" stands around each word that gets a label.
LABELED = {
    "a statue or image is labeled": r"(?:statue|sculpture|painting|drawing|mural|poster)s? of (?:an? |the )?"
    r"(?:\w+ )?\[|\] (?:statue|sculpture|figurine)",
    "a toy is labeled": r"\b(?:toy|stuffed|lego|cartoon|fake) (?:\w+ )?\[",
    "a wagon is labeled as car": r"\btrain\b[^,.]*\b(?:with|pulling|pulls|has) (?:[\w-]+ ){0,3}\[cars?\]"
    r"|\[cars?\] of (?:an? |the )(?:\w+ )?\[?train",
    "an animal is labeled as person": r"\[(?:baby|mother|adult)\] (?:elephant|giraffe|zebra|bear|cow|sheep)",
}


@dataclass(frozen=True)
class PromptTextConfig(CheckedOptions):
    """The options of `training/experiments/prompt_text.py`."""

    captions: str = option("a .jsonl file with image_id, id and caption", required=True, default=None)
    out: str = option("directory of prompt_text.json and prompts.tsv", "runs/prompt_text", metavar="DIR")
    draws: int = option("number of prompts to draw for reading", 300, at_least=1)
    seed: int = option("random seed", 0, at_least=0)


def held_out(path: Path) -> list[Caption]:
    """The captions of images with an odd number."""
    rows = map(json.loads, path.read_text("utf-8").splitlines())
    return [Caption(" ".join(row["caption"].split()), str(row["id"])) for row in rows if row["image_id"] % 2]


def replaced(table: ClassTable, text: str, seed: int, number: int) -> str:
    """The text with every class word replaced where this is possible."""
    return augment(table, text, np.random.default_rng([seed, number]), 1.0)[0]


def draw(
    table: ClassTable, captions: Sequence[Caption], count: int, seed: int
) -> Iterator[tuple[int, Caption, str]]:
    """Number from 1, caption, and prompt of `count` captions whose prompt differs. Classes take turns."""
    tokenizer = AutoTokenizer.from_pretrained(
        EMBEDDED / "tokenizer", model_max_length=77, trust_remote_code=False
    )
    source = PromptSource(table, captions, [tokenizer], seed=seed, alias_probability=0.0, balance=True)
    index, number, seen = 0, 1, set()
    while number <= count:
        prompt = source.prompt(index, 0)
        index += 1
        text = replaced(table, prompt.caption, seed, number)
        if prompt.source not in seen and text != prompt.caption:
            seen.add(prompt.source)
            yield number, Caption(prompt.caption, prompt.source), text
            number += 1


def count_faults(table: ClassTable, captions: Sequence[Caption], seed: int) -> Counter[str]:
    """The numbers of captions that name a class, of prompts that differ, and of faults of each kind."""
    counts: Counter[str] = Counter()
    for number, caption in enumerate(captions):
        before = [one for one in find_occurrences(table, caption.text) if one.kind == "name"]
        if not before:
            continue
        rng = np.random.default_rng([seed, number])
        text, after = augment(table, caption.text, rng, 0.5)
        marked = caption.text
        for one in reversed(before):
            marked = f"{marked[: one.start]}[{one.text}]{marked[one.end :]}"
        for old, new in reversed(list(zip(before, after, strict=True))):
            if old.text != new.text:
                text = f"{text[: new.start]}<{new.text}>{text[new.end :]}"
        counts["captions that name a class"] += 1
        counts["prompts that differ"] += "<" in text
        for patterns, where in ((FAULTS, text), (LABELED, marked)):
            for name, pattern in patterns.items():
                counts[name] += re.search(pattern, where, re.IGNORECASE) is not None
    return counts


def run(config: PromptTextConfig) -> None:
    """Count, draw, write both files and print a table."""
    table, captions = load_table("voc"), held_out(Path(config.captions))
    with_rules = count_faults(table, captions, config.seed)
    every = table.with_all_aliases()
    with (
        patch.object(prompts, "replacements", lambda noun, is_repeated: noun.label.aliases),
        patch.object(prompts, "things", lambda table, text, found: found),
    ):
        without = count_faults(every, captions, config.seed)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    report = {name: {"without": without[name], "with": with_rules[name]} for name in without}
    (out / "prompt_text.json").write_text(json.dumps(report, indent=2) + "\n")
    lines = [
        f"{number}\t{caption.source}\t{caption.text}\t{text}"
        for number, caption, text in draw(table, captions, config.draws, config.seed)
    ]
    (out / "prompts.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{'':45}{'without rules':>15}{'with rules':>12}")
    for name, numbers in report.items():
        print(f"{name:45}{numbers['without']:15,}{numbers['with']:12,}")


if __name__ == "__main__":
    sys.exit(run_command(PromptTextConfig, run, sys.argv[1:], sys.argv[0], __doc__.splitlines()[0]))

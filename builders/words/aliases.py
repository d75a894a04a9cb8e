"""`attn2mask aliases`: proposes synonyms and hyponyms for the classes of a table, from WordNet.

    attn2mask aliases kitchen.yaml          # writes kitchen-aliases.yaml, for you to edit
    attn2mask build kitchen-aliases.yaml

The proposals are the synonyms and direct hyponyms of the main sense of each class name. Words that mostly
mean another thing, and other senses of a name, become comments. Words of two classes are left out.
"""

import logging
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml

from attn2mask.builders.classes import ClassTable, LabelClass, spelling
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import write_file
from attn2mask.builders.options import CheckedOptions, option
from attn2mask.builders.table_reader import TABLES, load_table, parse_table
from attn2mask.builders.words.english import plural
from attn2mask.builders.words.grammar import nouns
from attn2mask.builders.words.wordnet import Sense, WordNet, find_wordnet
from attn2mask.builders.yaml_reader import load_yaml

logger = logging.getLogger(__name__)

OTHER_SENSES, OTHER_WORDS = 3, 8  # the most other senses of a name, and words of each, that are listed


@dataclass(frozen=True)
class AliasesConfig(CheckedOptions):
    """The options of `attn2mask aliases`."""

    table: str = option("YAML file with your classes", positional=True)
    out: str | None = option("file to write", None, default_text="TABLE-aliases.yaml", metavar="FILE")
    most: int = option("largest number of words to propose for each sense", 20, at_least=1)
    wordnet: str | None = option(
        "folder with index.noun and data.noun", None, default_text="that of Debian or of nltk", metavar="DIR"
    )


@dataclass(frozen=True)
class Proposal:
    """WordNet's proposals for one name of a class: `words` to use, and `remarks` for the person who edits."""

    name: str
    sense: Sense
    words: tuple[str, ...]
    remarks: tuple[str, ...]


def propose(wordnet: WordNet, label: LabelClass, most: int) -> list[Proposal]:
    """Proposals of at most `most` words, one for each main sense of the singular names of a class."""
    own = {spelling(word) for word in (label.name, *label.base, *label.aliases)}
    found: dict[int, Proposal] = {}
    for name in dict.fromkeys((label.name, *nouns(label))):
        main = wordnet.main_sense(name)
        if main is None or main in found:
            continue
        sense = wordnet.sense(main)
        new = [word for word in _words(wordnet, sense) if spelling(word) not in own]
        # The main sense of a synonym is this sense; that of a hyponym is one of the senses below it.
        words = [word for word in new if wordnet.main_sense(word) in (main, *sense.hyponyms)]
        doubtful = [word for word in new if word not in words]
        remarks = [f"mostly another thing: {', '.join(doubtful)}"] if doubtful else []
        if len(words) > most:
            remarks.append(f"more of them: {', '.join(words[most:])}")
        others = (wordnet.sense(offset) for offset in wordnet.senses(name) if offset != main)
        for other in [other for other in others if not other.is_name][:OTHER_SENSES]:
            shown = [word for word in _words(wordnet, other) if spelling(word) != spelling(name)]
            if shown:
                remarks.append(f"another {name} ({other.definition}): {', '.join(shown[:OTHER_WORDS])}")
        found[main] = Proposal(name, sense, tuple(words[:most]), tuple(remarks))
    return list(found.values())


def without_collisions(table: ClassTable, proposals: list[list[Proposal]]) -> list[list[Proposal]]:
    """The proposals of all classes, in the order of the table, without words that two classes would share."""
    forms_of = (
        {form for p in of_class for word in p.words for form in _forms(word)} for of_class in proposals
    )
    counts = Counter(form for forms in forms_of for form in forms)
    kept: list[list[Proposal]] = []
    for of_class in proposals:
        kept.append([])
        seen: set[str] = set()
        for proposal in of_class:
            words, shared = [], []
            for word in proposal.words:
                forms = _forms(word)
                if any(counts[form] > 1 for form in forms):
                    shared.append(word)
                elif forms.isdisjoint(table.lexicon) and forms.isdisjoint(seen):
                    words.append(word)
                    seen |= forms
            remarks = [f"also of another class: {', '.join(shared)}"] if shared else []
            kept[-1].append(replace(proposal, words=tuple(words), remarks=(*remarks, *proposal.remarks)))
    return kept


def written(content: dict[str, Any], proposals: list[list[Proposal]], head: str) -> str:
    """The table `content` as YAML, with the proposals as further aliases, and `head` as first comment."""
    lines = [f"# {head}"]
    for key, value in content.items():
        if key != "classes":
            lines += _yaml({key: value})
            continue
        lines.append("classes:")
        for entry, of_class in zip(value, proposals, strict=True):
            rest = {name: inner for name, inner in entry.items() if name != "aliases"}
            own = entry.get("aliases", [])
            first, *more = _yaml(rest)
            lines += [f"  - {first}", *(f"    {line}" for line in more)]
            listed = any(proposal.words for proposal in of_class) or own
            lines += ["    aliases:" if listed else "    aliases: []"]
            lines += [f"      - {_flow(word)}" for word in own]
            for proposal in of_class:
                lines += _comment(f"{proposal.name}: {proposal.sense.definition}", "")
                lines += [f"      - {_flow(word)}" for word in proposal.words]
                for remark in proposal.remarks:
                    lines += _comment(remark, "  ")
            if not of_class:
                lines.append("      # WordNet does not know this class")
    return "\n".join(lines) + "\n"


def run(config: AliasesConfig) -> None:
    """Write the table with the proposals. Raises UserError for mistakes that the user can correct."""
    if config.table in TABLES:
        raise UserError(f"{config.table} has its aliases already: give a YAML file of your own")
    source = Path(config.table)
    table = load_table(config.table)
    out = Path(config.out) if config.out else source.with_name(f"{source.stem}-aliases{source.suffix}")
    if out.exists():
        raise UserError(f"{out} exists, and may hold your edits: remove it, or choose another --out")
    logger.info("Looking up the words of %s in WordNet", config.table)
    wordnet = find_wordnet(config.wordnet)
    proposals = [propose(wordnet, label, config.most) for label in table.classes]
    proposals = without_collisions(table, proposals)
    head = f"{source.name} with proposals from {wordnet.version}: delete what does not fit your images."
    text = written(load_yaml(source.read_bytes()), proposals, head)
    parse_table(yaml.safe_load(text), str(out))
    write_file(out, text.encode())
    count = sum(len(proposal.words) for of_class in proposals for proposal in of_class)
    unknown = [label.name for label, of_class in zip(table.classes, proposals, strict=True) if not of_class]
    print(f"{out}: {count} words from {wordnet.path} for {len(table.classes) - len(unknown)} classes")
    if unknown:
        print(f"WordNet does not know {', '.join(unknown)}")
    print(f"next: edit {out}, then attn2mask build {shlex.quote(str(out))}")


def _words(wordnet: WordNet, sense: Sense) -> Iterator[str]:
    """The synonyms, then the words of the direct hyponyms, each once, without scientific names."""
    senses = (sense, *map(wordnet.sense, sense.hyponyms))
    for word in dict.fromkeys(word for one in senses for word in one.words):
        if not wordnet.is_scientific(word):
            yield word


def _forms(word: str) -> set[str]:
    return {spelling(word), spelling(plural(word))}


def _comment(text: str, indent: str) -> list[str]:
    return wrap(text, 110, initial_indent=f"      # {indent}", subsequent_indent=f"      # {indent}  ")


def _yaml(mapping: dict[str, Any]) -> list[str]:
    """Lines of YAML, one for each key, unless its value is long."""
    return [line for key, value in mapping.items() for line in f"{_flow(key)}: {_flow(value)}".splitlines()]


def _flow(value: Any) -> str:
    """A value in YAML's flow style, to stand after a key or in a list."""
    text = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=100, sort_keys=False)
    return text.strip()[1:-1]

"""`attn2mask aliases`: synonyms and hyponyms for the classes of a table, proposed from WordNet, to be edited.

    attn2mask aliases kitchen.yaml          # writes kitchen-aliases.yaml
    attn2mask build kitchen-aliases.yaml

The proposals are the synonyms and direct hyponyms of the main sense of each name. What is likely to go wrong
stands in comments instead: words that mostly mean another thing, and a name's other senses. Words that
another class has, or could have, are left out, so that the new table is always one that can be built.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml

from attn2mask.builders.classes import ClassTable, LabelClass, spelling
from attn2mask.builders.errors import UserError
from attn2mask.builders.options import check_ranges, option
from attn2mask.builders.table_reader import TABLES, load_table, parse_table
from attn2mask.builders.words.english import plural
from attn2mask.builders.words.grammar import nouns
from attn2mask.builders.words.wordnet import Sense, WordNet, find_wordnet

# Further senses of a name that are shown, and words of each.
OTHER_SENSES, OTHER_WORDS = 3, 8


@dataclass(frozen=True)
class AliasesConfig:
    """The options of `aliases`."""

    table: str = option("a YAML file with your classes", positional=True)
    out: str | None = option("file to write", None, default_text="TABLE-aliases.yaml", metavar="FILE")
    most: int = option("number of words proposed for a sense", 20, at_least=1)
    wordnet: str | None = option(
        "folder of WordNet",
        None,
        default_text="Debian's or nltk's copy, where one is installed",
        metavar="DIR",
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Proposal:
    """What WordNet says of one name of a class: `words` to take, and `remarks` for who edits them."""

    name: str
    sense: Sense
    words: tuple[str, ...]
    remarks: tuple[str, ...]


def propose(wordnet: WordNet, label: LabelClass, most: int) -> list[Proposal]:
    """Proposals for a class, one for each of the main senses of its name and singular base names."""
    own = {spelling(word) for word in (label.name, *label.base, *label.aliases)}
    found: dict[int, Proposal] = {}
    for name in dict.fromkeys((label.name, *nouns(label))):
        main = wordnet.main_sense(name)
        if main is None or main in found:
            continue
        sense = wordnet.sense(main)
        words, doubtful = [], []
        for word in _words(wordnet, sense):
            if spelling(word) in own:
                continue
            # A synonym's main sense is this one, a hyponym's one of those below it.
            right = wordnet.main_sense(word) in (main, *sense.hyponyms)
            (words if right else doubtful).append(word)
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
    """The proposals of all classes, in the table's order, less words that one class has or two could have."""
    counts = Counter(
        form
        for of_class in proposals
        for form in {form for p in of_class for word in p.words for form in _forms(word)}
    )
    kept = []
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
    """The YAML text of a table with the proposals as further aliases; `head` is its first comment."""
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
            lines.append("    aliases:" if listed else "    aliases: []")
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
    """Write the table with the proposals. Raises UserError for what the user can mend."""
    if config.table in TABLES:
        raise UserError(f"{config.table} ships with its aliases: give a YAML file of your own")
    source = Path(config.table)
    table = load_table(config.table)
    out = Path(config.out) if config.out else source.with_name(f"{source.stem}-aliases{source.suffix}")
    taken = UserError(f"{out} exists, and may hold what you edited: remove it, or choose another --out")
    if out.exists():
        raise taken
    wordnet = find_wordnet(config.wordnet)
    proposals = [propose(wordnet, label, config.most) for label in table.classes]
    proposals = without_collisions(table, proposals)
    head = f"{source.name} with proposals from {wordnet.version}: strike out what does not fit your images."
    text = written(yaml.safe_load(source.read_bytes()), proposals, head)
    parse_table(yaml.safe_load(text), str(out))
    try:
        with open(out, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise taken from None
    count = sum(len(proposal.words) for of_class in proposals for proposal in of_class)
    unknown = [label.name for label, of_class in zip(table.classes, proposals, strict=True) if not of_class]
    known = len(table.classes) - len(unknown)
    print(f"{out}: {count} words from {wordnet.path} for {known} classes, to be edited")
    if unknown:
        print(f"WordNet does not know {', '.join(unknown)}")
    print(f"next: edit {out}, then attn2mask build {out}")


def _words(wordnet: WordNet, sense: Sense) -> Iterator[str]:
    """Synonyms, then direct hyponyms' words, each once, without scientific names."""
    senses = (sense, *map(wordnet.sense, sense.hyponyms))
    for word in dict.fromkeys(word for one in senses for word in one.words):
        if not wordnet.is_scientific(word):
            yield word


def _forms(word: str) -> set[str]:
    return {spelling(word), spelling(plural(word))}


def _comment(text: str, indent: str) -> list[str]:
    return wrap(text, 110, initial_indent=f"      # {indent}", subsequent_indent=f"      # {indent}  ")


def _yaml(mapping: dict[str, Any]) -> list[str]:
    """Lines of YAML, one a key, unless its value is long."""
    return [line for key, value in mapping.items() for line in f"{_flow(key)}: {_flow(value)}".splitlines()]


def _flow(value: Any) -> str:
    """A value of YAML as it stands after a key or in a list, what it holds in brackets."""
    text = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=100, sort_keys=False)
    return text.strip()[1:-1]

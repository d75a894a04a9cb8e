"""What all cards share: their parts, and how a new card goes over an old one without losing a person's words.

A card is a YAML block of metadata and Markdown. What stands between `<!-- generated: NAME -->` and
`<!-- /generated: NAME -->` is written from records, and written anew each time; all else is free text, and
belongs to whoever edits the card on the Hub.
"""

import io
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import yaml_dump

from attn2mask.builders.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

NOT_RECORDED = "not recorded"
UNKNOWN = "unknown"  # a license that no record names; the Hub has this word for it
FREE = (
    "<!-- Write on, anywhere outside of the parts between `generated` marks: publishing again replaces those"
    " parts alone. -->"
)
CITATION = """## Citation

The method is that of this paper; this is an independent implementation of it.

```bibtex
@misc{yoshihashi2023attn2mask,
  title = {Exploring Limits of Diffusion-Synthetic Training with Weakly Supervised Semantic Segmentation},
  author = {Yoshihashi, Ryota and Otsuka, Yuya and Doi, Kenji and Tanaka, Tomohiro and Kataoka, Hirokatsu},
  year = {2023},
  eprint = {2309.01369},
  archivePrefix = {arXiv},
}
```
"""

# A block whose end is missing, or that another mark cuts short, is free text.
_BLOCK = re.compile(
    r"^<!-- generated: (\S+) -->\n((?:(?!^<!-- /?generated: ).*\n)*?)<!-- /generated: \1 -->[ \t]*\n?",
    re.MULTILINE,
)
_MARK = re.compile(r"^<!-- /?generated: \S+ -->[ \t]*\n?", re.MULTILINE)
# Lists with an entry for each configuration, and metadata that is false once nothing new stands in its place.
_BY_CONFIG, _MEASURED = ("configs", "dataset_info"), ("model-index", "metrics")


@dataclass(frozen=True)
class Card:
    """README.md (metadata, then Markdown), and its files: path in the repository to contents."""

    text: str
    files: dict[str, bytes]


def write_card(card: Card, folder: Path) -> Path:
    """Write README.md and the files that it shows into a folder; returns the path of README.md."""
    for name, content in {"README.md": card.text.encode(), **card.files}.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder / "README.md"


def merge(new: str, old: str | None) -> str:
    """`new` over the card that stands: an old card's free text stays where it is, its generated blocks are
    replaced, those that are gone from `new` are dropped except another configuration's (`config:X`), and new
    ones come after the block that precedes them in `new`. Metadata that a person added stays, also tags and a
    license where ours is unknown.

    Raises UserError for an old card whose metadata can't be read.
    """
    if old is None or not old.strip():
        return new
    data, body = split(new)
    old_data, old_body = split(old)
    return compose(merge_data(data, old_data), _merge_body(body, old_body))


def split(text: str) -> tuple[dict[str, Any], str]:
    """Metadata and Markdown. Raises UserError where the metadata is no YAML mapping."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    found = REGEX_YAML_BLOCK.search(text)
    if found is None:
        return {}, text
    try:
        data = yaml.safe_load(found[2]) or {}
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the card's metadata is no YAML: {reason}; mend README.md's head") from error
    if not isinstance(data, dict):
        raise UserError("the card's metadata is no mapping of names to values; mend README.md's head")
    return data, text[found.end() :]


def compose(data: Mapping[str, Any], body: str) -> str:
    """The text of a card."""
    return f"---\n{yaml_dump(dict(data), sort_keys=False).strip()}\n---\n\n{body.strip()}\n"


def block(name: str, text: str) -> str:
    """A generated block."""
    return f"<!-- generated: {name} -->\n{text.strip()}\n<!-- /generated: {name} -->\n"


def compose_blocks(blocks: Mapping[str, str]) -> str:
    """Generated blocks by name, empty ones left out; between the first and the second it says where to
    write.
    """
    first, *others = [block(name, text) for name, text in blocks.items() if text.strip()]
    return "\n".join([first, FREE + "\n", *others])


def _parts(body: str) -> list[tuple[str | None, str]]:
    """(name, whole block) of generated blocks, (None, text) of free text; marks that mark nothing go."""
    parts: list[tuple[str | None, str]] = []
    end = 0
    for found in _BLOCK.finditer(body):
        parts += [(None, body[end : found.start()]), (found[1], found[0].rstrip() + "\n")]
        end = found.end()
    parts.append((None, body[end:]))
    return [(name, text if name else _MARK.sub("", text)) for name, text in parts]


def _merge_body(new: str, old: str) -> str:
    parts = _parts(old)
    if not any(name for name, _ in parts):
        own = "".join(text for _, text in parts).strip()
        return re.sub(r"\n{3,}", "\n\n", f"{new.rstrip()}\n\n{own}".rstrip() + "\n")
    fresh = {name: text for name, text in _parts(new) if name}
    merged: list[tuple[str | None, str]] = []
    for name, text in parts:
        if name is None or (name.startswith("config:") and name not in fresh):
            merged.append((name, text))
        elif name in fresh and name not in [there for there, _ in merged]:
            merged.append((name, fresh[name]))
    place = 0
    for name, text in fresh.items():
        names = [there for there, _ in merged]
        if name not in names:
            merged[place:place] = [(None, "\n"), (name, text)] if place else [(name, text), (None, "\n")]
            names = [there for there, _ in merged]
        place = names.index(name) + 1
    return re.sub(r"\n{3,}", "\n\n", "".join(text for _, text in merged))


def merge_data(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata over that of the card that stands, as `merge` says."""
    merged = {key: value for key, value in old.items() if key in new or key not in _MEASURED}
    for key, value in new.items():
        was = old.get(key)
        if key in _BY_CONFIG:
            merged[key] = _merge_configs(value, was)
        elif key == "tags":
            merged[key] = [*value, *(tag for tag in as_list(was) if tag not in value)]
        elif not (key == "license" and value == UNKNOWN and was):
            merged[key] = value
    return merged


def _merge_configs(new: Any, old: Any) -> list[dict[str, Any]]:
    """Entries by `config_name`; the one that was the default stays it."""
    named = [entry for entry in as_list(old) if isinstance(entry, dict)]
    entries = {str(entry.get("config_name", "default")): entry for entry in named}
    default = [name for name, entry in entries.items() if entry.get("default")]
    for entry in as_list(new):
        name = entry.get("config_name", "default")
        entries[name] = {**entries.get(name, {}), **entry}
        if default and name not in default:
            entries[name].pop("default", None)
    return list(entries.values())


def as_list(value: Any) -> list[Any]:
    """What metadata holds as one value or many, as a list."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def read_record(path: Path) -> dict[str, Any]:
    """A JSON file; empty where it is not there. Raises UserError where it can't be read."""
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} can't be read: it holds no names with values")
    return record


def shown(path: str) -> str:
    """A path as others see it: of one that begins at a machine's root, or home, the last part."""
    return Path(path).name if path.startswith(("/", "~", "..")) else path


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; the first column is text, numbers stand to the right."""
    rows = [[cell(value) for value in row] for row in rows]
    numbers = [
        bool(rows) and all(re.fullmatch(r"[-\d.,%]+( %)?|", row[k]) for row in rows) for k in range(len(head))
    ]
    ruler = ["---:" if number else "---" for number in numbers]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ruler, *rows])


def cell(value: Any) -> str:
    """A value as the text of a table's cell: no pipe, line break or tag of it does any harm."""
    if value is None:
        return NOT_RECORDED
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def details(summary: str, text: str) -> str:
    """A part that is folded until it is clicked."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text.strip()}\n\n</details>"


def count(number: int, noun: str) -> str:
    """`count(1, "row")` is "1 row", `count(2000, "row")` "2,000 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float | None) -> str:
    """A share of 0 to 1 with one decimal of per cent; a hyphen for None."""
    return "-" if share is None else f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """`duration(4000)` is "1 h 6 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def wrapped(words: Sequence[str], width: int = 100) -> str:
    """A command for a shell, over several lines; an option is not parted from its value."""
    lines = [""]
    for number, word in enumerate(words):
        value = number + 1 < len(words) and word.startswith("--") and not words[number + 1].startswith("--")
        room = len(shlex.join([word, words[number + 1]] if value else [word]))
        if len(lines[-1]) + room > width and not words[number - 1].startswith("--"):
            lines.append("   ")
        lines[-1] += f" {shlex.quote(word)}"
    return " \\\n".join(lines)[1:]


def png(picture: "Figure | Image") -> bytes:
    """A figure of matplotlib, or a picture, as the bytes of a PNG that say no more than it shows."""
    file = io.BytesIO()
    if hasattr(picture, "savefig"):
        picture.savefig(file, format="png", dpi=120, metadata={"Software": None})
    else:
        picture.save(file, "PNG", optimize=True)
    return file.getvalue()

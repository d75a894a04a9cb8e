"""What all cards share: templates, pieces of Markdown, and how a new card is merged into the old one.

A card is the README.md of a repository: a YAML block of metadata, then Markdown. The text between
`<!-- generated: NAME -->` and `<!-- /generated: NAME -->` is a generated block. It comes from records, and
each publication replaces it. All other text is free text and belongs to the people who edit the card.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import yaml_dump
from jinja2 import Environment, FileSystemLoader, Undefined

from attn2mask.builders.errors import UserError, printable
from attn2mask.builders.files import write_file
from attn2mask.builders.markdown import Markdown, code, escaped, link, python, shell, table_row, url
from attn2mask.builders.yaml_reader import load_yaml

if TYPE_CHECKING:
    from huggingface_hub import CardData
    from matplotlib.figure import Figure
    from PIL.Image import Image

TEMPLATES = Path(__file__).parent / "templates"
UNKNOWN = "unknown"  # the Hub's word for a license that no record names

# A block without an end, or that another mark cuts short, is free text.
_BLOCK = re.compile(
    r"^<!-- generated: (\S+) -->\n((?:(?!^<!-- /?generated: ).*\n)*?)<!-- /generated: \1 -->[ \t]*\n?",
    re.MULTILINE,
)
_BLOCK_MARK = re.compile(r"^<!-- /?generated: \S+ -->[ \t]*\n?", re.MULTILINE)
# Metadata with one entry for each configuration, and metadata that must not outlive what was measured.
_BY_CONFIG, _MEASURED = ("configs", "dataset_info"), ("model-index", "metrics")


@dataclass(frozen=True)
class Card:
    """The text of README.md, and the files that it shows or names: path in the repository to contents."""

    text: str
    files: dict[str, bytes]


def render(data: "CardData", template: str, repo_id: str, **values: Any) -> str:
    """The text of the card of a repository from `templates/TEMPLATE.md`.

    Every value that the template shows becomes text by `escaped`, unless it is `Markdown` already. Templates
    can call `as_list`, `count` and `percent` of this module, and for the other places of a value `table_row`,
    `code`, `python`, `shell` and `url` of `builders.markdown`.

    Args:
        data: the metadata.
        values: what the template shows, beside the name of the repository and the citation.
    """
    environment = Environment(loader=FileSystemLoader(TEMPLATES, "utf-8"), finalize=_as_text)
    functions = (as_list, table_row, code, count, percent, python, shell, url)
    environment.globals |= {function.__name__: function for function in functions}
    environment.globals |= project()
    citation = Markdown((TEMPLATES / "citation.md").read_text("utf-8").strip())
    values |= {"repo_id": repo_id, "title": repo_id.split("/")[-1], "citation": citation}
    page = environment.get_template(f"{template}.md")
    return f"{page.render(card_data=Markdown(_as_yaml(data.to_dict())), **values)}\n"


def _as_yaml(data: Mapping[str, Any]) -> str:
    """Metadata as YAML that controls no terminal: YAML escapes most control characters, and the others are
    replaced.
    """
    return printable(yaml_dump(_without_next_line(data), sort_keys=False)).strip("\n")


def _without_next_line(value: Any) -> Any:
    """Metadata without U+0085, which YAML writes as a line break, and which `printable` replaces."""
    if isinstance(value, Mapping):
        return {_without_next_line(key): _without_next_line(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_next_line(inner) for inner in value]
    return value.replace("\x85", "\ufffd") if isinstance(value, str) else value


def _as_text(value: Any) -> Any:
    """What a template shows of a value. Of one that it misses, Jinja decides."""
    return value if isinstance(value, Undefined) else escaped(value)


def project() -> dict[str, Markdown | None]:
    """What cards say of this package, from the addresses in the installed package: `project`, its name as a
    link if it has an address, and `install`, the command that installs it if it has a repository.
    """
    urls = dict(line.split(", ", 1) for line in metadata("attn2mask").get_all("Project-URL") or ())
    page = next((urls[name] for name in ("Homepage", "Repository") if name in urls), None)
    repository = urls.get("Repository")
    return {
        "project": code("attn2mask") if page is None else link("attn2mask", url(page)),
        "install": repository and Markdown(f"pip install {shell(f'attn2mask @ git+{repository}')}"),
    }


def write_card(card: Card, folder: Path) -> Path:
    """Write README.md and the files that it shows into a folder. Returns the path of README.md."""
    for name, content in {"README.md": card.text.encode(), **card.files}.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, content)
    return folder / "README.md"


# Merging


def merge(new: str, old: str | None) -> str:
    """The card `new` in place of the card `old`, whose free text and metadata of people stay.

    Free text keeps its place. Generated blocks of `old` are replaced by those of `new`. Blocks that `new`
    lacks are removed, except those of other configurations (`config:NAME`). Blocks that `old` lacks follow
    the block that precedes them in `new`. Metadata that people added stays, and so do their tags, and their
    license where the license of `new` is unknown.

    Raises UserError if the metadata of `old` cannot be read.
    """
    if old is None or not old.strip():
        return new
    data, body = split(new)
    old_data, old_body = split(old)
    return compose(merge_data(data, old_data), _merge_body(body, old_body))


def split(text: str) -> tuple[dict[str, Any], str]:
    """The metadata and the Markdown of a card. Raises UserError if the metadata is not a YAML mapping."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    found = REGEX_YAML_BLOCK.search(text)
    if found is None:
        return {}, text
    try:
        data = load_yaml(found[2]) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"README.md starts with metadata that is not YAML ({reason}): correct it") from error
    if not isinstance(data, dict):
        raise UserError("README.md starts with metadata that is not a mapping of names to values: correct it")
    return data, text[found.end() :]


def compose(data: Mapping[str, Any], body: str) -> str:
    """The text of a card from its metadata and its Markdown."""
    return f"---\n{_as_yaml(data)}\n---\n\n{body.strip()}\n"


def _parts(body: str) -> list[tuple[str | None, str]]:
    """(name, whole block) of generated blocks, (None, text) of free text, in which lone marks are removed."""
    parts: list[tuple[str | None, str]] = []
    end = 0
    for found in _BLOCK.finditer(body):
        parts += [(None, body[end : found.start()]), (found[1], found[0].rstrip() + "\n")]
        end = found.end()
    parts.append((None, body[end:]))
    return [(name, text if name else _BLOCK_MARK.sub("", text)) for name, text in parts]


def _merge_body(new: str, old: str) -> str:
    parts = _parts(old)
    if not any(name for name, _ in parts):
        own = "".join(text for _, text in parts).strip()
        return _without_gaps(f"{new.rstrip()}\n\n{own}".rstrip() + "\n")
    fresh = {name: text for name, text in _parts(new) if name}
    merged: list[tuple[str | None, str]] = []
    for name, text in parts:
        if name is None or (name.startswith("config:") and name not in fresh):
            merged.append((name, text))
        elif name in fresh and name not in [known for known, _ in merged]:
            merged.append((name, fresh[name]))
    place = 0
    for name, text in fresh.items():
        names = [known for known, _ in merged]
        if name not in names:
            merged[place:place] = [(None, "\n"), (name, text)] if place else [(name, text), (None, "\n")]
            names = [known for known, _ in merged]
        place = names.index(name) + 1
    return _without_gaps("".join(text for _, text in merged))


def _without_gaps(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text)


def merge_data(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata `new` in place of `old`; see `merge`."""
    merged = {key: value for key, value in old.items() if key in new or key not in _MEASURED}
    for key, value in new.items():
        before = old.get(key)
        if key in _BY_CONFIG:
            merged[key] = _merge_configs(value, before)
        elif key == "tags":
            merged[key] = [*value, *(tag for tag in as_list(before) if tag not in value)]
        elif not (key == "license" and value == UNKNOWN and before):
            merged[key] = value
    return merged


def _merge_configs(new: Any, old: Any) -> list[dict[str, Any]]:
    """Entries by `config_name`. A default configuration stays the default."""
    named = [entry for entry in as_list(old) if isinstance(entry, dict)]
    entries = {str(entry.get("config_name", "default")): entry for entry in named}
    default = [name for name, entry in entries.items() if entry.get("default")]
    for entry in as_list(new):
        name = entry.get("config_name", "default")
        entries[name] = {**entries.get(name, {}), **entry}
        if default and name not in default:
            entries[name].pop("default", None)
    return list(entries.values())


# Values


def as_list(value: Any) -> list[Any]:
    """A list of what metadata holds as one value or as several."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def stated_license(recorded: Any, stated: str | None, folder: Path) -> Any:
    """The license that the records of a folder tell, or else the one that the user states, or unknown. Raises
    UserError if the user states another one than the records.
    """
    licenses = ", ".join(as_list(recorded))
    if stated and licenses not in ("", UNKNOWN, stated):
        raise UserError(f"--license {stated}: the records of {folder} name {licenses}; leave it out")
    return stated or recorded or UNKNOWN


def public_path(path: str) -> str:
    """The last part of a path that only exists on this machine (from its root or home); else the path."""
    return Path(path).name if path.startswith(("/", "~", "..")) else path


def version_rows(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The table of versions that a record names."""
    commit = record.get("git_commit")
    return [*record.get("versions", {}).items(), ("git commit", commit and code(commit))]


def count(number: int, noun: str) -> str:
    """`count(1, "row")` is "1 row", `count(2000, "row")` is "2,000 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(fraction: float | None) -> str:
    """A fraction of 0 to 1 in per cent with one decimal; a hyphen for None."""
    return "-" if fraction is None else f"{fraction:.1%}"


def duration(seconds: float) -> str:
    """`duration(4000)` is "1 h 6 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def png_bytes(image: "Figure | Image") -> bytes:
    """A figure of matplotlib or an image as a PNG without metadata."""
    file = io.BytesIO()
    if hasattr(image, "savefig"):
        image.savefig(file, format="png", dpi=120, metadata={"Software": None})
    else:
        image.save(file, "PNG", optimize=True)
    return file.getvalue()

"""What the rows of a build will name, counted from its prompts before anything is painted."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attn2mask.builders.prompts import PromptSource

MOST_SHOWN = 30  # the most names that a line lists


def prompt_counts(source: "PromptSource", num_images: int) -> dict[str, Any]:
    """The numbers of captions that are `read` and `selected`; of `num_images` rows, those of each class; the
    classes that no selected caption names; and the selected captions that name an unlabeled thing, by word.
    """
    return {
        "read": len(source.captions or ()),
        "selected": source.selected,
        "rows": source.rows(num_images),
        "unserved": source.unserved,
        "unlabelled": source.unlabeled(),
    }


def table_text(counts: dict[str, Any], num_images: int) -> str:
    """The result of `prompt_counts` as a table of classes, the most frequent first, and lines of text."""
    rows, width = counts["rows"], max(map(len, counts["rows"]))
    lines = [f"{'class':{width}}  rows of {num_images:,}"]
    lines += [f"{name:{width}}  {rows[name]:,}" for name in _ordered(rows)]
    if counts["read"]:
        words = [f"{word} ({number:,})" for word, number in counts["unlabelled"].items()]
        lines.append(f"{counts['selected']:,} of {counts['read']:,} captions are used")
        lines.append(f"classes without a caption: {_listed(counts['unserved'])}")
        lines.append(f"unlabeled things in these captions: {_listed(words)}")
    return "\n".join(lines)


def rows_text(source: "PromptSource", num_images: int) -> str:
    """How many of `num_images` rows each class will have, and which classes the captions cannot serve."""
    rows = source.rows(num_images)
    shown = _listed([f"{name} {rows[name]:,}" for name in _ordered(rows)])
    text = f"rows that name each class, of {num_images:,}: {shown}"
    return f"{text}\nno caption serves {_listed(source.unserved)}" if source.unserved else text


def _ordered(rows: dict[str, int]) -> list[str]:
    return sorted(rows, key=lambda name: -rows[name])


def _listed(names: Sequence[str]) -> str:
    """Names with commas between them; of a long list, the first ones and the last one."""
    shown = list(names) if len(names) <= MOST_SHOWN else [*names[: MOST_SHOWN - 1], "...", names[-1]]
    return ", ".join(shown) or "none"

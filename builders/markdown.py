"""Values as text in Markdown."""

from typing import Any

NOT_RECORDED = "not recorded"


def escaped(value: Any) -> str:
    """A value as text inside a line of Markdown, where no pipe, line break or tag of it has an effect."""
    if value is None:
        return NOT_RECORDED
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")

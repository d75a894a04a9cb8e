"""What is known of each format of `attn2mask export`; the facts stand in `formats.yaml`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format that rows are exported to.

    Attributes:
        name: the name for `--format`.
        text: what `docs/export.md` calls it.
        holds: "ids" (one image of class ids), "masks" (a mask of each class, the background included),
            "things" (a mask of each class or thing, without the background) or "boxes" (of things).
        ignored: how the pixels are written that are ignored or not reliable: with the table's "ignore value",
            with a "label" of their own, as pixels of no mask ("unlabeled"), or not at all ("lost").
        exporter: the name of Datumaro's exporter; None for the format that attn2mask writes itself.
        most_labels: the most names of a table that its masks can hold; None for any number.
        splits: the splits that it cannot do without.
        options: options of Datumaro's exporter.
    """

    name: str
    text: str
    holds: Literal["ids", "masks", "things", "boxes"]
    ignored: Literal["ignore value", "label", "unlabeled", "lost"]
    exporter: str | None = None
    most_labels: int | None = None
    splits: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def check(self, table: ClassTable, instances: bool, splits: set[str]) -> None:
        """Raises UserError if the format cannot hold the classes of a table, these splits, or masks whose
        things are not separate.
        """
        if self.most_labels is not None and len(table.names) > self.most_labels:
            wider = ", ".join(name for name, other in FORMATS.items() if other.most_labels is None)
            raise UserError(
                f"--format {self.name} holds at most {self.most_labels} names in the 8 bits of its masks, but"
                f" the table {table.name} has {len(table.names)}: choose one of {wider}"
            )
        if self.holds == "boxes" and not instances:
            raise UserError(
                f"--format {self.name} holds a box around each thing: give --instances, which splits the mask"
                " of a class into its connected parts"
            )
        if lacking := [split for split in self.splits if split not in splits]:
            raise UserError(
                f"--format {self.name} needs the split {lacking[0]}: set --val-rows, and leave rows to train"
            )

    def fate_of_ignored(self) -> str:
        """A sentence about what became of the pixels that are ignored or not reliable."""
        return {
            "ignore value": "Unreliable pixels have the ignore value.",
            "label": f"Unreliable pixels have the label {IGNORED!r}.",
            "unlabeled": "Unreliable pixels are in no mask.",
            "lost": "The format cannot mark unreliable pixels. They are left out, as the background is.",
        }[self.ignored]


IGNORED = "__ignore__"  # the label of pixels that are ignored, in formats without an ignore value


def _read() -> dict[str, Format]:
    facts = yaml.safe_load(Path(__file__).with_name("formats.yaml").read_text("utf-8"))
    return {
        name: Format(name=name, **entry | {"splits": tuple(entry.get("splits", ()))})
        for name, entry in facts.items()
    }


FORMATS = _read()

"""A comparison of evaluations as text: Markdown, CSV, and a short table.

Only scores on equal images stand in one table. Scores over different numbers of classes never share a column.
"""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from attn2mask.builders.markdown import escaped, table_row
from attn2mask.training.bootstrap import LEVEL, RESAMPLES, SEED
from attn2mask.training.metrics_file import Images, MetricsFile
from attn2mask.training.zeroshot.differences import CHECKPOINTS, TABLE_3, Figure, differences
from attn2mask.training.zeroshot.protocol import TEMPLATES

_SCORES = {
    "mIoU": "mean_iou",
    "boundary IoU": "boundary_iou",
    "mIoU given image-level labels": "mean_iou_given_labels",
}


@dataclass(frozen=True)
class Row:
    """An evaluation and its label, which no other row has."""

    label: str
    file: MetricsFile

    def score(self, key: str, classes: int) -> float | None:
        """A score, 0 to 1, if it is over this number of classes."""
        return getattr(self.file, key) if self.file.classes_scored == classes else None

    def interval(self, classes: int) -> tuple[float, float] | None:
        """The interval of the mean IoU, 0 to 1, if it is over this number of classes."""
        return self.file.interval if self.file.classes_scored == classes else None

    @property
    def quoted(self) -> Figure | None:
        """What Table 3 of the paper says of the method, if it is over as many classes of VOC."""
        if self.file.method is None or not self.file.is_voc:
            return None
        asked = self.file.method, self.file.classes_scored
        return next((figure for figure in TABLE_3 if (figure.method, figure.classes) == asked), None)


def grouped(rows: Sequence[Row]) -> dict[Images, list[Row]]:
    """The rows by the images that they were measured on, in the order of the first row of each group."""
    groups: dict[Images, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.file.images, []).append(row)
    return groups


def class_numbers(rows: Sequence[Row]) -> list[int]:
    """The numbers of classes that are in a mean, in ascending order."""
    return sorted({row.file.classes_scored for row in rows})


def title_of(images: Images) -> str:
    """What was measured, such as "VOCdevkit/VOC2012, split val, 1,449 images in the classes of voc"."""
    split = "" if images.split is None else f", split {images.split}"
    noun = "image" if images.count == 1 else "images"
    return f"{images.dataset}{split}, {images.count:,} {noun} in the classes of {images.table}"


# How an evaluation was made. Each function returns "" where the file does not say it.


def _size(file: MetricsFile) -> str:
    if (protocol := file.protocol) is None:
        return ""
    crop = f", crop {protocol.crop}" if protocol.crop else ""
    longest = f", at most {protocol.longest}" if protocol.longest else ""
    return f"{protocol.size or 'of the model'}{longest}{crop}"


def _window(file: MetricsFile) -> str:
    window = file.protocol.window if file.protocol else file.options.get("window")
    if window is None:
        return "whole image"
    return f"{window}" + (f", overlap {file.protocol.overlap:.0%}" if file.protocol else "")


def _templates(file: MetricsFile) -> str:
    if file.protocol is None:
        return ""
    count = sum(len(TEMPLATES.get(key, ())) for key in file.protocol.templates)
    return f"{count} ({', '.join(file.protocol.templates)})"


def _background(file: MetricsFile) -> str:
    if (protocol := file.protocol) is None:
        return ""
    rule = "not scored" if protocol.background == "none" else protocol.background
    words = f"{len(protocol.words)} " if protocol.words else ""
    return f"{words}{rule}" + ("" if protocol.threshold is None else f" {protocol.threshold:g}")


def _refinement(file: MetricsFile) -> str:
    return (file.protocol.refinement or "").upper() if file.protocol else ""


def _augmentation(file: MetricsFile) -> str:
    scales, flip = str(file.options.get("scales", "1")), file.options.get("flip")
    return ", ".join([*(() if scales == "1" else (f"scales {scales}",)), *(("mirrored",) if flip else ())])


def _with_masks(file: MetricsFile) -> str:
    return "" if file.trained_with_masks is None else "yes" if file.trained_with_masks else "no"


_FACTS: dict[str, Callable[[MetricsFile], str]] = {
    "weights": lambda file: file.weights or "",
    "revision": lambda file: (file.revision or "")[:12],
    "trained with masks": _with_masks,
    "protocol": lambda file: file.protocol.name if file.protocol else "",
    "size, pixels": _size,
    "window, pixels": _window,
    "templates": _templates,
    "background": _background,
    "refinement": _refinement,
    "test-time augmentation": _augmentation,
}

# Markdown


def as_markdown(rows: Sequence[Row]) -> str:
    """The whole comparison: for each group the scores, how they were measured, and what was quoted."""
    groups = grouped(rows)
    parts = ["# Comparison"]
    if len(groups) > 1:
        parts.append("The tables are about different images. Do not compare scores of different tables.")
    for images, of_group in groups.items():
        parts += [f"## {escaped(title_of(images))}", _scores(of_group), _notes(of_group)]
        parts += ["### How they were measured", _circumstances(of_group)]
        if of_group[0].file.is_voc:
            parts += ["### Quoted figures", _QUOTED, _quotations(of_group)]
            if text := _differences(of_group):
                parts += ["### Differences from the publications", text]
    return "\n\n".join(parts) + "\n"


_QUOTED = (
    "These figures are from publications, on VOC 2012 val (1,449 images) unless their line says otherwise."
    " They were not measured with this package. No public checkpoint gives the figures of Table 3: they"
    " belong to models that were not published, or to early versions."
)


def _scores(rows: Sequence[Row]) -> str:
    numbers, columns = class_numbers(rows), {}
    for name, key in _SCORES.items():
        for classes in numbers:
            interval = " (95 % interval)" if key == "mean_iou" else ""
            columns[f"{name}, {classes} classes{interval}"] = [_percent(row, key, classes) for row in rows]
    for classes in numbers:
        columns[f"quoted: Table 3 of the paper, {classes} classes"] = [
            f"{row.quoted.miou:.1f}" if row.quoted and row.quoted.classes == classes else "" for row in rows
        ]
    columns["images"] = [f"{row.file.images.count:,}" for row in rows]
    columns["classes scored"] = [str(row.file.classes_scored) for row in rows]
    return _columns(rows, columns, number=True)


def _circumstances(rows: Sequence[Row]) -> str:
    columns = {name: [describe(row.file) for row in rows] for name, describe in _FACTS.items()}
    return _columns(rows, columns, number=False)


def _columns(rows: Sequence[Row], columns: dict[str, list[str]], number: bool) -> str:
    """A Markdown table with a line for each row. Columns without any text are left out."""
    shown = {name: values for name, values in columns.items() if any(values)}
    lines = zip((row.label for row in rows), *shown.values(), strict=True)
    return _table(["method", *shown], lines, [False, *(number for _ in shown)])


def _table(head: Sequence[str], lines: Iterable[Sequence[str]], right: Sequence[bool]) -> str:
    """A Markdown table. `right` says of each column whether its text stands at the right."""
    rule = " | ".join("--:" if number else "---" for number in right)
    return "\n".join(f"| {line} |" for line in (table_row(head), rule, *map(table_row, lines)))


def _percent(row: Row, key: str, classes: int) -> str:
    """A score in percent, the mean IoU with its interval; "" if there is none over so many classes."""
    value = row.score(key, classes)
    if value is None:
        return ""
    interval = row.interval(classes) if key == "mean_iou" else None
    return f"{100 * value:.1f}" + (
        f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""
    )


def _notes(rows: Sequence[Row]) -> str:
    numbers = class_numbers(rows)
    notes = ["All scores are in percent."]
    if len(numbers) > 1:
        text = " and ".join(map(str, numbers)) if len(numbers) == 2 else ", ".join(map(str, numbers))
        notes.append(f"Scores over {text} classes are different measures. Do not compare them.")
    if any(row.file.interval for row in rows):
        notes.append(
            f"Intervals: {LEVEL:.0%} percentile bootstrap over the images, {RESAMPLES:,} resamples, seed"
            f" {SEED}. The pixel counts of the drawn images are summed before the mean over the classes. The"
            " interval shows how the score depends on the choice of the images, and not on the training."
        )
    if without := [escaped(row.label) for row in rows if row.file.interval is None]:
        notes.append(f"Without interval, since the file has no counts of its images: {', '.join(without)}.")
    if any(row.file.boundary_iou is not None for row in rows):
        notes.append(
            "Boundary IoU: the IoU of the pixels that lie near the contours of a class, within 2 % of the"
            " image's diagonal."
        )
    if any(row.file.mean_iou_given_labels is not None for row in rows):
        notes.append(
            "mIoU given image-level labels: only classes that are in the ground truth of the image may be"
            " predicted. This is an oracle."
        )
    return "\n".join(f"- {note}" for note in notes)


def _quotations(rows: Sequence[Row]) -> str:
    methods = {row.file.method for row in rows}
    figures = [*TABLE_3, *(figure for figure in CHECKPOINTS if figure.method in methods)]
    numbers = sorted({figure.classes for figure in figures})
    head = ["method", *(f"mIoU, {classes} classes" for classes in numbers), "weights and data", "source"]
    lines = [
        [
            figure.name,
            *(f"{figure.miou:.1f}" if figure.classes == classes else "" for classes in numbers),
            figure.what,
            figure.source,
        ]
        for figure in figures
    ]
    return _table(head, lines, [False, *(True for _ in numbers), False, False])


def _differences(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        file = row.file
        if file.method is not None and file.protocol is not None:
            lines += [
                f"- {escaped(row.label)}: {escaped(sentence)}"
                for sentence in differences(file.method, file.protocol, file.weights)
            ]
    return "\n".join(lines)


# CSV and the command line


def as_csv(rows: Sequence[Row]) -> str:
    """A line for each row. Shares are 0 to 1. Scores over N classes are in columns whose names say N."""
    numbers = class_numbers(rows)
    lines = []
    for row in rows:
        file, images = row.file, row.file.images
        line: dict[str, Any] = {"method": row.label, "file": str(file.path), "dataset": images.dataset}
        line |= {"split": images.split, "table": images.table, "images": images.count}
        line |= {"classes_scored": file.classes_scored}
        for classes in numbers:
            low, high = row.interval(classes) or (None, None)
            line[f"mean_iou_{classes}_classes"] = row.score("mean_iou", classes)
            line |= {f"mean_iou_{classes}_classes_low": low, f"mean_iou_{classes}_classes_high": high}
            for key in ("boundary_iou", "mean_iou_given_labels"):
                line[f"{key}_{classes}_classes"] = row.score(key, classes)
            fits = row.quoted is not None and row.quoted.classes == classes
            line[f"quoted_table_3_{classes}_classes"] = round(row.quoted.miou / 100, 4) if fits else None
        names = (name.split(",")[0].replace(" ", "_").replace("-", "_") for name in _FACTS)
        line |= zip(names, (describe(file) for describe in _FACTS.values()), strict=True)
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def as_text(rows: Sequence[Row]) -> str:
    """The scores in percent, a block for each group."""
    blocks = []
    for images, of_group in grouped(rows).items():
        columns = [["%", *(row.label for row in of_group)]]
        for name, key in _SCORES.items():
            for classes in class_numbers(of_group):
                values = [_percent(row, key, classes) for row in of_group]
                if any(values):
                    columns.append([f"{name}, {classes} classes", *values])
        widths = [max(map(len, column)) for column in columns]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            for line in zip(*columns, strict=True)
        ]
        blocks.append("\n".join([title_of(images), *lines]))
    return "\n\n".join(blocks)

"""`attn2mask compare`: evaluations side by side, in a table, a chart and a sheet of predictions.

    attn2mask compare metrics.json maskclip.json groupvit.json --out table.md

Beside `table.md` it writes `table.csv`; `table.png`, bars with intervals; `table_images.png`, the same images
segmented by every method; and `table.yaml`, the options that `--config` reads. `comparison.py` makes the
text.
"""

import hashlib
import io
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attn2mask.builders.errors import UserError
from attn2mask.builders.options import CheckedOptions, flag_of, option, to_yaml

if TYPE_CHECKING:
    from PIL import Image

    from attn2mask.builders.classes import ClassTable
    from attn2mask.training.charts import MethodsRow, Panel
    from attn2mask.training.comparison import Row
    from attn2mask.training.metrics_file import MetricsFile

logger = logging.getLogger(__name__)

MOST_IMAGES = 8  # on the sheet


@dataclass(frozen=True)
class CompareConfig(CheckedOptions):
    """The options of `attn2mask compare`. Raises UserError for names with a wrong ending."""

    metrics: list[str] = option(
        "metrics files that `attn2mask evaluate` wrote", positional=True, metavar="METRICS"
    )
    out: str = option(
        "file of the table in Markdown; the other files go beside it",
        "table.md",
        stored=False,
        metavar="FILE",
    )
    csv: str | None = option(
        "CSV file of the table", None, stored=False, metavar="FILE", default_text="--out with .csv"
    )
    figure: str | None = option(
        "PNG file of the chart", None, stored=False, metavar="FILE", default_text="--out with .png"
    )
    sheet: str | None = option(
        "PNG file of the images with the predictions of every method",
        None,
        stored=False,
        metavar="FILE",
        default_text="--out with _images.png",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, ending in {"out": ".md", "csv": ".csv", "figure": ".png", "sheet": ".png"}.items():
            value = getattr(self, name)
            if value is not None and Path(value).suffix != ending:
                raise UserError(f"{flag_of(name)} {value}: the name must end in {ending}")

    def files(self) -> dict[str, Path]:
        """The files to write, by the name of their option; "config" is that of the options."""
        out = Path(self.out)
        return {
            "out": out,
            "csv": Path(self.csv or out.with_suffix(".csv")),
            "figure": Path(self.figure or out.with_suffix(".png")),
            "sheet": Path(self.sheet or out.with_name(f"{out.stem}_images.png")),
            "config": out.with_suffix(".yaml"),
        }


def run(config: CompareConfig) -> None:
    """Read the metrics files, write the comparison and print it. Raises UserError for files that cannot be
    compared or written.
    """
    started, places = time.monotonic(), config.files()
    from attn2mask.builders.files import write_file
    from attn2mask.training.charts import interval_chart, method_sheet
    from attn2mask.training.comparison import as_csv, as_markdown, as_text

    check_places(places)
    rows = read_rows([Path(file) for file in config.metrics])
    contents = {
        places["out"]: as_markdown(rows).encode(),
        places["csv"]: as_csv(rows).encode(),
        places["figure"]: _drawn(interval_chart, panels(rows)),
    }
    shown, table, notes = predictions(rows)
    if shown:
        contents[places["sheet"]] = _drawn(method_sheet, shown, table)
    contents[places["config"]] = to_yaml(
        config, f"attn2mask compare --config {places['config'].name}"
    ).encode()
    for place, content in contents.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        write_file(place, content)
    print(as_text(rows))
    for note in notes:
        print(note)
    print(f"\nmade in {time.monotonic() - started:.0f} s: {', '.join(map(str, contents))}")
    print(f"next: read {places['out']}" + (f", and look at {places['sheet']}" if shown else ""))


def check_places(places: dict[str, Path]) -> None:
    """Make the folders of the files. Raises UserError for a file that cannot be written."""
    options: dict[Path, str] = {}
    for name, place in places.items():
        flag = f"{flag_of(name)} {place}" if name != "config" else f"{place}, the file of the options,"
        if place.is_dir():
            raise UserError(f"{flag} is a directory")
        if (other := options.setdefault(place.resolve(), name)) != name:
            raise UserError(f"{flag_of(other)} and {flag_of(name)} both name {place}: give two names")
    for name, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(place if place.exists() else place.parent, os.W_OK):
            raise UserError(f"{flag_of('out' if name == 'config' else name)}: {place} cannot be written")


def read_rows(files: Sequence[Path]) -> "list[Row]":
    """The rows of the metrics files. Raises UserError for files that are no metrics files, or equal."""
    from attn2mask.training.comparison import Row
    from attn2mask.training.metrics_file import labels, read_metrics

    known: dict[bytes, Path] = {}
    found = []
    for file in files:
        logger.info("Reading %s", file)
        found.append(read_metrics(file))
        other = known.setdefault(hashlib.sha256(file.read_bytes()).digest(), file)
        if other is not file:
            raise UserError(f"{other} and {file} are the same evaluation: give each one once")
    return [Row(label, file) for label, file in zip(labels(found), found, strict=True)]


def panels(rows: "Sequence[Row]") -> "list[Panel]":
    """The panels of the chart: one for each number of scored classes on equal images."""
    from attn2mask.training.charts import Bar, Panel
    from attn2mask.training.comparison import class_numbers, grouped, title_of

    made = []
    for images, of_group in grouped(rows).items():
        for classes in class_numbers(of_group):
            bars = []
            for row in of_group:
                value = row.score("mean_iou", classes)
                if value is not None:
                    quoted = row.quoted.miou / 100 if row.quoted else None
                    bars.append(Bar(row.label, value, row.interval(classes), quoted))
            if bars:
                made.append(Panel(f"{title_of(images)}\nmIoU over {classes} classes", bars))
    return made


def predictions(rows: "Sequence[Row]") -> "tuple[list[MethodsRow], ClassTable | None, list[str]]":
    """The rows of the sheet, their class table, and sentences about the methods that it leaves out.

    It shows the images of the group in which most methods have predictions. The targets are those of a method
    for which most classes were scored.
    """
    from attn2mask.training.charts import MethodsRow
    from attn2mask.training.comparison import grouped

    groups = [[row for row in group if row.file.shown] for group in grouped(rows).values()]
    chosen = max(groups, key=len)
    left_out = {
        row.label: "it was measured on other images" if row.file.shown else "its file names no predictions"
        for row in rows
        if row not in chosen
    }
    names: tuple[str, ...] = ()
    first: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    loaded: dict[str, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    for row in sorted(chosen, key=lambda row: -row.file.classes_scored):
        wanted = names or row.file.shown[:MOST_IMAGES]
        try:
            read = {name: read_predictions(row.file, name) for name in wanted}
            if any(read[name][0].shape != image.shape for name, (image, *_) in first.items()):
                raise UserError("its images have other sizes")
            first, names, loaded[row.label] = first or read, wanted, read
        except UserError as error:
            left_out[row.label] = str(error)
    if not loaded:
        reasons = "; ".join(f"{label}: {reason}" for label, reason in left_out.items())
        return [], None, [f"No sheet of images was made ({reasons})."]
    columns = [row.label for row in chosen if row.label in loaded]
    shown = [
        MethodsRow(name, *first[name][:2], {label: loaded[label][name][2] for label in columns})
        for name in names
    ]
    notes = [f"The sheet leaves out {label}: {reason}." for label, reason in left_out.items()]
    return shown, chosen[0].file.table, notes


def read_predictions(file: "MetricsFile", name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image (H, W, 3) uint8 and the ids (H, W) int32 of its target and of its prediction. Raises UserError
    if they are not there.
    """
    from attn2mask.builders.images import read_image, read_mask

    if file.predictions is None or not file.predictions.is_dir():
        raise UserError(f"there is no folder {file.predictions}")
    if name not in file.shown:
        raise UserError("its predictions are of other images")
    table = file.table

    def decode(mask: "Image.Image", table: "ClassTable") -> np.ndarray:
        # Gray levels and the indices of a palette are ids. What is no class is drawn as ignored.
        ids = np.asarray(mask).astype(np.int32)
        return np.where((ids >= 0) & (ids < len(table.names)), ids, table.ignore_index)

    start = file.predictions / f"{file.shown.index(name):03d}"
    image = read_image(Path(f"{start}_image.png"), f"{start}_image.png")
    target, prediction = (
        read_mask(Path(f"{start}_{kind}.png"), f"{start}_{kind}.png", table, decode)
        for kind in ("target", "prediction")
    )
    if not image.shape[:2] == target.shape == prediction.shape:
        raise UserError(f"the images of {start} have different sizes")
    return image, target, prediction


def _drawn(draw: Callable[..., None], *values: Any) -> bytes:
    """The content of the file that a function of `charts` draws."""
    stream = io.BytesIO()
    draw(*values, stream)
    return stream.getvalue()

"""The command `attn2mask export`."""

import logging
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from attn2mask.builders.errors import UserError
from attn2mask.builders.options import CheckedOptions, option
from attn2mask.builders.row_reader import incomplete_option, no_verify_option
from attn2mask.hub.export.formats import FORMATS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportConfig(CheckedOptions):
    """The options of `attn2mask export`."""

    dataset: str = option("a dataset: a directory of rows, or a name on the Hub", positional=True)
    format: str = option(
        f"format to write: {', '.join(FORMATS)}", "voc", choices=tuple(FORMATS), metavar="FORMAT"
    )
    out: str | None = option("directory to write", None, default_text="DATASET-FORMAT", metavar="DIR")
    instances: bool = option("split the mask of a class of things into its connected parts", False)
    num_rows: int | None = option("write only the first N rows", None, at_least=1, default_text="all")
    val_rows: int = option("number of last rows that go to the split val, not to train", 0, at_least=0)
    no_reliability: bool = option("write the labels of pixels that are not reliable, too", False)
    allow_incomplete: bool = incomplete_option("options")
    no_verify: bool = no_verify_option("options")


def run(config: ExportConfig) -> None:
    """Write the rows. The directory appears when all are written, so that it is never half of an export.

    Raises UserError for rows that cannot be read, a directory that is not empty, and a format that cannot
    hold the rows.
    """
    from attn2mask.hub.export.adapter import write_with_datumaro
    from attn2mask.hub.export.rows import labeled_images
    from attn2mask.hub.export.voc import write_voc

    form = FORMATS[config.format]
    out = Path(config.out or f"{config.dataset.rstrip('/')}-{form.name}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is not empty: choose another directory")
    rows, table = labeled_images(
        config.dataset,
        config.num_rows,
        config.val_rows,
        config.no_reliability,
        allow_incomplete=config.allow_incomplete,
        verify=not config.no_verify,
    )
    form.check(table, config.instances, {rows[0].split, rows[len(rows) - 1].split})
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # a killed export leaves it
    unfinished.mkdir(parents=True)
    try:
        if form.exporter is None:
            write_voc(tqdm(rows, "writing the rows", unit="row"), table, unfinished, config.instances)
        else:
            write_with_datumaro(rows, table, unfinished, form, config.instances)
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"made {out}: {len(rows)} rows of {config.dataset} in the format {form.name}")
    print(form.fate_of_ignored() if not config.no_reliability else "All labels are written.")
    if form.exporter is None:
        split = rows[len(rows) - 1].split
        print(f"next: attn2mask evaluate --checkpoint DIR --dataset {shlex.quote(str(out))} --split {split}")

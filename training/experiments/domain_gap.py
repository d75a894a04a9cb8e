"""What adaptation to a distant domain changes, measured on drawn streets and on real frames.

    python training/experiments/domain_gap.py --frames camvid/train/images --held-out-frames camvid/val/images

The embedded painter, which never saw a street, is adapted by `attn2mask adapt` to drawn streets without masks
and, if a folder is given, to real frames. Images of Cityscapes' prompts are compared with held-out frames:

- color: 1-Wasserstein distance between the values of pixels, mean of CIELAB's three channels, in its units;
- feature: kernel distance (KID) between pooled features of the referee, times 1,000;
- mIoU, for drawn streets, of segmenters trained on the built rows, over several seeds, against exact masks;
- labels: the classes that the masks of these rows name.
"""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from kornia.color import rgb_to_lab
from PIL import Image
from scipy.stats import wasserstein_distance

from attn2mask.builders import build
from attn2mask.builders.command import run_command
from attn2mask.builders.drawn.rows import HELD_OUT, draw_rows
from attn2mask.builders.errors import UserError
from attn2mask.builders.images import image_files, read_image
from attn2mask.builders.options import option
from attn2mask.builders.provenance import LORA_RECORD
from attn2mask.builders.row_images import encoded_columns, image_content
from attn2mask.builders.table_reader import load_table
from attn2mask.training.charts import strip_sheet
from attn2mask.training.experiments.fidelity import kernel_distance, pooled_features
from attn2mask.training.experiments.trials import ExperimentConfig, as_entry, plan_trials, run_trials
from attn2mask.training.held_out import write_once

logger = logging.getLogger(__name__)

HEIGHT, WIDTH = 128, 256  # pixels that all images are resized to
THINNING = 4  # of every so many rows and columns one is compared in color
SHEET_IMAGES = 6  # images in a row of the sheet
LISTED_CLASSES = 8  # classes in a row of the table
ADAPTED_SEED = 9  # of the drawn streets that the painter is adapted to


@dataclass(frozen=True)
class DomainGapConfig(ExperimentConfig):
    """The options of `training/experiments/domain_gap.py`."""

    out: str = option("directory of everything that the experiment makes", "runs/domain_gap", metavar="DIR")
    frames: str | None = option("folder of real street frames to adapt to as well", None, metavar="DIR")
    held_out_frames: str | None = option("folder of further frames, to compare with", None, metavar="DIR")
    num_images: int = option("rows of each dataset", 256, at_least=4)
    held_out: int = option("drawn streets to measure on", 120, at_least=4)
    adapt_steps: int | None = option(
        "steps of each adaptation", None, at_least=1, default_text="the preset's of `attn2mask adapt`"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.frames is None) != (self.held_out_frames is None):
            raise UserError("--frames and --held-out-frames must be given together")


# Images


def middle(image: Image.Image) -> np.ndarray:
    """The largest 2:1 part about the middle of an image, (128, 256, 3) uint8."""
    width, height = image.size
    w, h = min(width, 2 * height), min(height, width // 2)
    left, top = (width - w) // 2, (height - h) // 2
    part = image.crop((left, top, left + w, top + h))
    return np.asarray(part.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))


def read_images(source: Path) -> np.ndarray:
    """All images (N, 128, 256, 3) uint8 in rows or image files. Raises UserError if there are none."""
    if list(source.glob("**/*.parquet")):
        rows = encoded_columns(load_dataset(str(source), split="train"), ("image",), str(source))
        names = [f"row {index} of {source}" for index in range(len(rows))]
        sources = [
            (image_content(row["image"], name, source), name) for name, row in zip(names, rows, strict=True)
        ]
    else:
        sources = [(file, str(file)) for file in image_files(source, "*")]
    if not sources:
        raise UserError(f"{source} holds no images")
    return np.stack([middle(Image.fromarray(read_image(*each))) for each in sources])


def draw_streets(out: Path, count: int, seed: int) -> Path:
    """Rows of drawn streets with exact masks, which are drawn once."""
    rows = draw_rows("streets", count, seed, (HEIGHT, WIDTH))
    write_once(out, lambda: rows, load_table("cityscapes"))
    return out


def adapt(data: Path, out: Path, steps: int | None) -> dict[str, Any]:
    """Adapt the painter to the images `data`, or resume; returns the record of the adapter."""
    command = [sys.executable, "-m", "attn2mask", "adapt", "--data", str(data), "--output-dir", str(out)]
    command += ["--sample-every", "0", "--resume", *(("--max-steps", str(steps)) if steps else ())]
    if subprocess.run(command).returncode:
        raise UserError(f"the adaptation to {data} failed (see above); the same command resumes it")
    return json.loads((out / LORA_RECORD).read_text())


def paint(out: Path, count: int, lora: Path | None) -> Path:
    """Build rows of Cityscapes' table by the embedded painter, with or without an adapter."""
    adapter = str(lora) if lora else None
    build.run(build.BuildConfig(table="cityscapes", out=str(out), num_images=count, lora=adapter))
    return out


# Measures


def color_distance(a: np.ndarray, b: np.ndarray) -> float:
    """1-Wasserstein distance of pixels (N or M, H, W, 3) uint8, mean of CIELAB's channels."""

    def channels(images: np.ndarray) -> np.ndarray:
        thinned = torch.from_numpy(images[:, ::THINNING, ::THINNING].copy()).permute(0, 3, 1, 2).float() / 255
        return rgb_to_lab(thinned).transpose(0, 1).flatten(1).numpy()

    pairs = zip(channels(a), channels(b), strict=True)
    return float(np.mean([wasserstein_distance(*pair) for pair in pairs]))


def distances(images: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Both distances between images and real ones."""
    feature = kernel_distance(pooled_features(images), pooled_features(real))
    return {"color": color_distance(images, real), "feature": feature}


def label_statistics(rows: Path, names: Sequence[str]) -> dict[str, Any]:
    """The mean `classes_per_image` of masks, and the `shares` by class, 0 to 1, of their labeled pixels."""
    masks = load_dataset(str(rows), split="train")["mask"]
    counts = np.stack([np.bincount(np.asarray(mask).ravel(), minlength=256) for mask in masks])
    counts = counts[:, : len(names)]
    shares = (counts.sum(0) / counts.sum()).tolist()
    return {
        "classes_per_image": float((counts > 0).sum(1).mean()),
        "shares": dict(zip(names, shares, strict=True)),
    }


# Results


def image_sheet(rows: dict[str, np.ndarray], path: Path) -> None:
    """Draw a sheet with one row of images, and its name, for each entry."""
    strip_sheet({name: np.hstack([*images[:SHEET_IMAGES]]) for name, images in rows.items()}, path)


def as_text(results: dict[str, Any]) -> str:
    """The tables as Markdown."""
    lines = ["| | color | feature |", "|---|---|---|"]
    for domain, rows in results["distances"].items():
        for name, values in rows.items():
            lines.append(f"| {domain}: {name} | {values['color']:.2f} | {values['feature']:.1f} |")
    lines += ["", "| trained on | mIoU in % on drawn streets (given image-level labels) |", "|---|---|"]
    for name, scores in results["segmenters"].items():
        lines.append(f"| {name} | {as_entry(scores['streets'])} |")
    lines += [
        "",
        "| masks of | classes per image | largest classes, in % of the labeled pixels |",
        "|---|---|---|",
    ]
    for name, statistics in results["labels"].items():
        shares = statistics["shares"]
        largest = sorted(shares, key=shares.get, reverse=True)[:LISTED_CLASSES]
        listed = ", ".join(f"{label} {100 * shares[label]:.0f}" for label in largest)
        lines.append(f"| {name} | {statistics['classes_per_image']:.1f} | {listed} |")
    return "\n".join(lines)


def domains(config: DomainGapConfig) -> Iterator[tuple[str, Path, Path]]:
    """For each domain its name, the images to adapt to, and held-out images to compare with."""
    out = Path(config.out)
    adapted_to = draw_streets(out / "streets" / "real", config.num_images, ADAPTED_SEED)
    yield "streets", adapted_to, draw_streets(out / "held-out" / "streets", config.held_out, HELD_OUT)
    if config.frames and config.held_out_frames:
        yield "frames", Path(config.frames), Path(config.held_out_frames)


def measure_distances(config: DomainGapConfig, before: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Adapt to each domain, and compare the images before and after. Returns results and a sheet's images."""
    out = Path(config.out)
    results: dict[str, Any] = {"distances": {}, "adaptations": {}}
    sheet: dict[str, np.ndarray] = {}
    for name, data, held_out in domains(config):
        lora = out / name / "lora"
        results["adaptations"][name] = adapt(data, lora, config.adapt_steps)
        after = paint(out / name / "adapted", config.num_images, lora)
        real = read_images(held_out)
        images = {"before": read_images(before), "after": read_images(after)}
        halves = np.array_split(real[np.random.default_rng(0).permutation(len(real))], 2)
        results["distances"][name] = {
            **{when: distances(of_painter, real) for when, of_painter in images.items()},
            "two halves of the real": distances(*halves),
        }
        # The frames of a drive are in its order.
        few = real[np.linspace(0, len(real) - 1, SHEET_IMAGES).astype(int)]
        sheet |= {f"{name}\n{row}": shown for row, shown in {"real": few, **images}.items()}
    return results, sheet


def run(config: DomainGapConfig) -> None:
    """Adapt, paint, measure, and write the results. Raises UserError if a folder is empty or a part fails."""
    started, out = time.monotonic(), Path(config.out)
    before = paint(out / "unadapted", config.num_images, None)
    results, sheet = measure_distances(config, before)
    image_sheet(sheet, out / "domain_gap.png")

    streets, table = out / "streets", load_table("cityscapes")
    sources = {"unadapted": before, "adapted": streets / "adapted", "exact masks": streets / "real"}
    results["labels"] = {name: label_statistics(rows, table.names) for name, rows in sources.items()}
    variants = {name: (rows, ()) for name, rows in sources.items()}
    trials = plan_trials(config, "demo", variants, [out / "held-out" / "streets"])
    results["segmenters"] = run_trials(trials, config.jobs)
    results["seconds"] = round(time.monotonic() - started, 1)
    (out / "domain_gap.json").write_text(json.dumps(results, indent=2) + "\n")
    print(as_text(results))
    print(f"made {out / 'domain_gap.json'} and {out / 'domain_gap.png'} in {results['seconds']:.0f} s")
    print(f"next: attn2mask build cityscapes --lora {streets / 'lora'} --out data/streets")


if __name__ == "__main__":
    sys.exit(run_command(DomainGapConfig, run, sys.argv[1:], sys.argv[0], __doc__.splitlines()[0]))

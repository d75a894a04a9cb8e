"""What adaptation to a distant domain does, measured: before and after, on drawn streets and real frames.

    python training/domains.py --frames camvid/train/images --held-out-frames camvid/val/images

The embedded painter never saw a street scene. It is adapted (`training/adapt.py`, its defaults) to drawn
street scenes, whose masks it is not shown, and to a folder of real frames where one is given. Then prompts
of Cityscapes' table are painted without and with each adapter, and held against frames that nothing was
adapted to:

- color: 1-Wasserstein distance between all pixels' values, mean of CIELAB's three channels, in its units;
- feature: kernel distance (KID) between pooled features of the referee, times 1,000;
- mIoU, for drawn streets, of segmenters trained on the built rows, over seeds, against exact masks; and what
  the masks name that they are trained on.

Beside them stands what two halves of the real frames have between them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from attn2mask.builders import build
from attn2mask.builders.drawn.rows import HELD_OUT, draw_rows, write_rows
from attn2mask.builders.errors import UserError
from attn2mask.builders.options import option
from attn2mask.builders.provenance import LORA_RECORD
from attn2mask.builders.table_reader import load_table
from attn2mask.training.experiments.trials import Trial, as_entry, run_trials
from attn2mask.training.referee import load_referee

ADAPT = Path(__file__).parent / "adapt.py"
SIZE = (256, 128)  # width and height in pixels that all pictures are brought to
DISTANCES = ("color", "feature")
SHOWN = 6  # pictures in a row of the sheet
LARGEST = 8  # classes in a row of the table


@dataclass(frozen=True)
class DomainsConfig:
    """What `training/domains.py` takes."""

    out: str = option("directory of everything it makes (%(default)s)", "runs/domains", metavar="DIR")
    frames: str | None = option("folder of real street frames to adapt to, too", None, metavar="DIR")
    held_out_frames: str | None = option("folder of others, to compare with", None, metavar="DIR")
    num_images: int = option("rows of each dataset (%(default)s)", 256, metavar="N")
    held_out: int = option("drawn streets to score on (%(default)s)", 120, metavar="N")
    max_steps: int = option("steps of each training of a segmenter (%(default)s)", 400, metavar="N")
    seeds: int = option("trainings of each variant (%(default)s)", 3, metavar="N")
    jobs: int = option("trainings at once (one a core)", 0, metavar="N")


# --- pictures -------------------------------------------------------------------------------------


def frame(picture: Image.Image) -> np.ndarray:
    """The widest 2:1 part about a picture's middle, (128, 256, 3) uint8."""
    width, height = picture.size
    w, h = min(width, 2 * height), min(height, width // 2)
    left, top = (width - w) // 2, (height - h) // 2
    part = picture.convert("RGB").crop((left, top, left + w, top + h))
    return np.asarray(part.resize(SIZE, Image.Resampling.LANCZOS))


def frames(source: Path) -> np.ndarray:
    """All pictures (N, 128, 256, 3) uint8 of a directory of rows or of picture files.

    Raises UserError where there are none.
    """
    from datasets import load_dataset

    if list(source.glob("**/*.parquet")):
        return np.stack([frame(row["image"]) for row in load_dataset(str(source), split="train")])
    files = sorted(file for file in source.glob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files:
        raise UserError(f"{source} holds no .png or .jpg pictures")
    return np.stack([frame(Image.open(file)) for file in files])


def draw_streets(out: Path, count: int, seed: int) -> Path:
    """Rows of drawn streets with exact masks, drawn once."""
    if not list(out.glob("*.parquet")):
        write_rows(draw_rows("streets", count, seed, SIZE[::-1]), out, load_table("cityscapes"))
    return out


def adapt(data: Path, out: Path) -> dict:
    """The adapter of `training/adapt.py` to ``data``, made or gone on with; what it recorded of itself."""
    command = [sys.executable, str(ADAPT), "--data", str(data), "--output-dir", str(out), "--resume"]
    if subprocess.run(command).returncode:
        raise UserError(f"adaptation to {data} failed (see above); the same command goes on where it stopped")
    return json.loads((out / LORA_RECORD).read_text())


def paint(out: Path, count: int, lora: Path | None) -> Path:
    """A build of Cityscapes' table by the embedded painter, with an adapter or as it is."""
    build.run(build.BuildConfig("cityscapes", str(out), num_images=count, lora=str(lora) if lora else None))
    return out


# --- distances ------------------------------------------------------------------------------------


def color_distance(a: np.ndarray, b: np.ndarray) -> float:
    """1-Wasserstein distance between the pixels of pictures (N, H, W, 3) and (M, H, W, 3) uint8 in CIELAB (L
    0 to 100), mean of the channels: of each, the mean difference of the quantiles.
    """
    from kornia.color import rgb_to_lab

    grid = torch.linspace(0, 1, 1001)

    def quantiles(pictures: np.ndarray) -> torch.Tensor:
        thinned = torch.from_numpy(pictures[:, ::4, ::4].copy()).permute(0, 3, 1, 2).float() / 255
        values = rgb_to_lab(thinned).transpose(0, 1).flatten(1)
        return torch.stack([channel.sort().values for channel in values])[
            :, (grid * (values.shape[1] - 1)).round().long()
        ]

    return float((quantiles(a) - quantiles(b)).abs().mean())


@torch.no_grad()
def features(pictures: np.ndarray) -> torch.Tensor:
    """(N, 128, 256, 3) uint8 -> (N, 128): the mean over the picture of what the referee sees at its lowest
    level. It learnt not to mind the blur of the painter's autoencoder, which would else outweigh the rest.
    """
    referee = load_referee()
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.cat([referee.encode(part)[-1].mean((2, 3)) for part in x.split(32)])


def kernel_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The unbiased squared maximum mean discrepancy of features (N, D) and (M, D) under the kernel
    (x y / D + 1) ** 3, times 1,000: KID (Bińkowski et al., "Demystifying MMD GANs", ICLR 2018). The features
    are taken as they are: frames of one drive hardly differ in some, and dividing by deviations so small
    would let these alone decide.
    """
    a, b = a.double(), b.double()

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def among(x: torch.Tensor) -> torch.Tensor:
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    return float(1000 * (among(a) + among(b) - 2 * kernel(a, b).mean()))


def distances(pictures: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """`DISTANCES` of pictures from real ones."""
    return {
        "color": color_distance(pictures, real),
        "feature": kernel_distance(features(pictures), features(real)),
    }


def named(rows: Path, names: Sequence[str]) -> dict[str, float]:
    """How many classes the masks of rows name in the mean ("classes a picture"), and by class its share of
    all pixels that have one, 0 to 1.
    """
    from datasets import load_dataset

    counts = np.stack(
        [
            np.bincount(np.asarray(mask).ravel(), minlength=256)[: len(names)]
            for mask in load_dataset(str(rows), split="train")["mask"]
        ]
    )
    shares = counts.sum(0) / counts.sum()
    return {"classes a picture": float((counts > 0).sum(1).mean())} | dict(
        zip(names, shares.tolist(), strict=True)
    )


# --- what is shown --------------------------------------------------------------------------------


def sheet(rows: dict[str, np.ndarray], path: Path) -> None:
    """Real pictures, and painted ones before and after, a row each with its name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * SHOWN, 1.12 * len(rows)), layout="constrained")
    for line, (name, pictures) in zip(figure.subplots(len(rows), SHOWN), rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=False):
            axis.imshow(picture)
            axis.set_xticks([]), axis.set_yticks([])
        line[0].set_ylabel(name, fontsize=8)
    figure.savefig(path, dpi=110)


def as_text(found: dict) -> str:
    """The tables as Markdown."""
    lines = ["| | color | feature |", "|---|---|---|"]
    for domain, rows in found["distances"].items():
        for name, values in rows.items():
            lines.append(f"| {domain}: {name} | {values['color']:.2f} | {values['feature']:.1f} |")
    lines += ["", "| trained on | mIoU on drawn streets (told) |", "|---|---|"]
    lines += [f"| {name} | {as_entry(scores['streets'])} |" for name, scores in found["segmenters"].items()]
    lines += [
        "",
        "| masks of | classes a picture | largest classes, in % of the labeled pixels |",
        "|---|---|---|",
    ]
    for name, (several, *shares) in ((n, v.items()) for n, v in found["labels"].items()):
        largest = sorted(shares, key=lambda share: -share[1])[:LARGEST]
        shown = ", ".join(f"{label} {100 * share:.0f}" for label, share in largest)
        lines.append(f"| {name} | {several[1]:.1f} | {shown} |")
    return "\n".join(lines)


# --- the run --------------------------------------------------------------------------------------


def domains(config: DomainsConfig, out: Path) -> Iterator[tuple[str, Path, Path]]:
    """(name, pictures to adapt to, pictures to compare with) of each domain."""
    streets = out / "streets"
    yield (
        "streets",
        draw_streets(streets / "real", config.num_images, 9),
        draw_streets(streets / "held-out", config.held_out, HELD_OUT),
    )
    if config.frames:
        yield "frames", Path(config.frames), Path(config.held_out_frames)


def run(config: DomainsConfig) -> None:
    """Raises UserError for numbers and folders that make no sense, and where a part fails."""
    started, out = time.time(), Path(config.out)
    build.check_numbers(config, positive=("num_images", "held_out", "max_steps", "seeds"))
    if (config.frames is None) != (config.held_out_frames is None):
        raise UserError("--frames and --held-out-frames belong together")
    before = paint(out / "unadapted", config.num_images, None)
    found: dict = {"distances": {}, "adaptations": {}}
    shown = {}
    for name, data, held in domains(config, out):
        lora = out / name / "lora"
        found["adaptations"][name] = adapt(data, lora)
        after = paint(out / name / "adapted", config.num_images, lora)
        real = frames(held)
        pictures = {"before": frames(before), "after": frames(after)}
        half = np.random.default_rng(0).permutation(len(real))
        ends = {"two halves of the real": distances(*np.array_split(real[half], 2))}
        found["distances"][name] = {key: distances(p, real) for key, p in pictures.items()} | ends
        few = real[np.linspace(0, len(real) - 1, SHOWN).astype(int)]  # a drive's frames are in its order
        shown |= {f"{name}\n{key}": p for key, p in {"real": few, **pictures}.items()}
    sheet(shown, out / "domains.png")

    streets = out / "streets"
    sources = {"unadapted": before, "adapted": streets / "adapted", "exact masks": streets / "real"}
    table = load_table("cityscapes")
    found["labels"] = {name: named(data, table.names) for name, data in sources.items()}
    flags = ("--max-steps", str(config.max_steps), "--no-mixing")
    trials = [
        Trial(name, seed, out / "trials" / f"{name.replace(' ', '-')}-{seed}", data, flags)
        for seed in range(config.seeds)
        for name, data in sources.items()
    ]
    held = {"streets": streets / "held-out"}
    found["segmenters"] = run_trials(trials, held, table, config.jobs)
    found["seconds"] = round(time.time() - started, 1)
    (out / "domains.json").write_text(json.dumps(found, indent=2) + "\n")
    print(as_text(found))
    print(f"made {out / 'domains.json'} and {out / 'domains.png'} in {found['seconds']:.0f} s")
    print(f"next: attn2mask build cityscapes --lora {streets / 'lora'} --out data/streets")


if __name__ == "__main__":
    from attn2mask.builders.command import run_command

    sys.exit(
        run_command(
            DomainsConfig, run, sys.argv[1:], "training/experiments/domain_gap.py", __doc__.splitlines()[0]
        )
    )

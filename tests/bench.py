"""`make bench`: what building and co-training cost, as ratios of two things timed side by side in one run.

    make bench              # minutes
    make bench QUICK=1      # about a minute on two idle cores

The two of a pair run one right after the other, and who goes first alternates, so a machine that is busy or
slows down changes both. Given are the median of the pairs' ratios and its bootstrap 95 % interval; seconds
are this machine's. Writes bench.json and bench.png.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot
from PIL import Image
from pydensecrf.densecrf import DenseCRF2D
from pydensecrf.utils import unary_from_labels
from tqdm import tqdm

from attn2mask.builders.build import BuildConfig, provenance
from attn2mask.builders.build import run as build
from attn2mask.builders.crf import refine
from attn2mask.builders.labeling import label_picture, to_ids
from attn2mask.builders.labels import load_table
from attn2mask.builders.painter import Painter, load_painter
from attn2mask.builders.prompts import Prompt, PromptSource, picture_seed
from attn2mask.builders.recorder import AttentionRecorder
from attn2mask.builders.rules import CRF, PRESETS
from attn2mask.builders.scores import class_scores, quantise
from attn2mask.builders.synthesize import ATTEMPTS
from attn2mask.training.cotraining import Pair, cotraining_losses, normalise, photometric
from attn2mask.training.data import Crops, loader, open_rows
from attn2mask.training.drawn import draw_rows, write_rows
from attn2mask.training.models import build_network
from attn2mask.training.settings import PRESETS as PRESETS_OF_TRAINING

BATCH = 8


def measure(what: str, first: Callable[[], object], second: Callable[[], object], pairs: int) -> dict:
    """Seconds of `first` over those of `second`; both have been called before, to warm up."""
    seconds = {first: [], second: []}
    for pair in tqdm(range(pairs), desc=what, leave=False):
        for timed in (first, second) if pair % 2 else (second, first):
            started = time.perf_counter()
            timed()
            seconds[timed].append(time.perf_counter() - started)
    ratios = np.divide(seconds[first], seconds[second])
    drawn = np.random.default_rng(0).choice(ratios, (10_000, pairs))
    return {
        "what": what,
        "ratio": float(np.median(ratios)),
        "interval": np.quantile(np.median(drawn, axis=1), [0.025, 0.975]).tolist(),
        "pairs": pairs,
        "seconds": [float(np.median(seconds[first])), float(np.median(seconds[second]))],
    }


def draw(painter: Painter, prompts: list[Prompt], seeds: list[int]) -> np.ndarray:
    """Plain painting, by the pipeline alone: (B, H, W, 3) in 0 to 1."""
    defaults = painter.defaults
    return painter.pipe(
        [prompt.text for prompt in prompts],
        num_inference_steps=defaults.steps,
        guidance_scale=defaults.guidance_scale,
        height=defaults.height,
        width=defaults.width,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    ).images


def record(painter: Painter, prompts: list[Prompt], seeds: list[int]) -> np.ndarray:
    """The same under the recorder."""
    with AttentionRecorder(painter.pipe, [dict(zip(p.words, p.spans, strict=True)) for p in prompts]):
        return draw(painter, prompts, seeds)


def refine_all(image: np.ndarray, ids: np.ndarray, names: int, crf: CRF) -> np.ndarray:
    """The dense CRF as it is commonly run: with all labels of the table. (H, W, 3) and (H, W) to (H, W)."""
    height, width = ids.shape
    scale = (height * width) ** 0.5 / 512
    field = DenseCRF2D(width, height, names)
    field.setUnaryEnergy(unary_from_labels(ids, names, crf.gt_prob, zero_unsure=False))
    field.addPairwiseGaussian(sxy=crf.gaussian_sxy * scale, compat=crf.gaussian_compat)
    field.addPairwiseBilateral(
        sxy=crf.bilateral_sxy * scale, srgb=crf.bilateral_srgb, rgbim=image, compat=crf.bilateral_compat
    )
    return np.array(field.inference(crf.iterations)).argmax(axis=0).reshape(height, width)


def recording(painter: Painter, prompts: list[Prompt], seeds: list[int], quick: bool) -> list[dict]:
    """Painting with the recorder over painting without it."""
    rows = []
    for size, pairs in ((1, 3 if quick else 40), (BATCH, 2 if quick else 20)):
        recorded, plain = (partial(paint, painter, prompts[:size], seeds[:size]) for paint in (record, draw))
        equal = bool(np.array_equal(recorded(), plain()))
        row = measure(f"painting recorded / plain, batch {size}", recorded, plain, pairs)
        rows.append({**row, "equal_pictures": equal})
    return rows


def crf(painter: Painter, prompts: list[Prompt], seeds: list[int], pairs: int) -> list[dict]:
    """The CRF with the picture's labels over the CRF with the table's, on the picture of most labels."""
    table, rules, defaults = load_table("voc"), PRESETS["default"], painter.defaults
    images, maps, _ = painter.paint(
        prompts,
        seeds,
        steps=defaults.steps,
        guidance_scale=defaults.guidance_scale,
        height=defaults.height,
        width=defaults.width,
    )
    rows = []
    for side in (128, 512):
        large = [np.array(Image.fromarray(image).resize((side, side))) for image in images]
        coarse = []
        for image, of_word, prompt in zip(large, maps, prompts, strict=True):
            scores, _ = class_scores([of_word[word] for word in prompt.words], rules)
            coarse.append(label_picture(image, quantise(scores), rules, True).coarse)
        chosen = max(range(len(prompts)), key=lambda k: len(np.unique(coarse[k])))
        image, local, classes = large[chosen], coarse[chosen], prompts[chosen].classes
        ids = to_ids(local, classes, table).astype(np.int32)
        present = len(np.unique(local))
        few = partial(refine, image, local, rules.crf)
        every = partial(refine_all, image, ids, len(table.names), rules.crf)
        what = f"CRF with the {present} labels present / all {len(table.names)}, {side} x {side}"
        equal = to_ids(few().labels, classes, table) == every()
        rows.append({**measure(what, few, every, pairs), "equal_pixels": float(equal.mean())})
    return rows


def building(model: str, source: PromptSource, images: int, pairs: int) -> list[dict]:
    """A whole build, with labels, PNG, Parquet and new attempts, over painting its pictures once."""
    reports = []

    def whole() -> None:
        with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
            with contextlib.redirect_stderr(io.StringIO()):
                build(BuildConfig("voc", out=f"{out}/voc", model=model, num_images=images, batch_size=BATCH))
            reports.append(json.loads(Path(out, "voc", "report.json").read_text()))

    def plain() -> None:
        painter = load_painter(model)
        for start in range(0, images, BATCH):
            part = range(start, min(start + BATCH, images))
            draw(painter, [source.prompt(i, 0) for i in part], [picture_seed(0, i, 0) for i in part])

    whole(), plain()
    row = measure(f"a build of {images} rows / plain painting", whole, plain, pairs)
    # The last attempt is kept, whatever the gate says.
    painted = images + sum(min(len(why), ATTEMPTS - 1) for why in reports[0]["rejected"].values())
    each = {key: np.multiply(row[key], images / painted).tolist() for key in ("ratio", "interval")}
    return [
        {**row, "painted": painted},
        {**row, **each, "what": f"the same per painted picture ({painted} for {images} rows)"},
    ]


def training(pairs: int) -> list[dict]:
    """The co-training step over the plain step of one network of the same kind on the same batch, of which 2
    is the floor; and a batch of the loader, in this process, over that step.
    """
    table, settings, size, side = load_table("voc"), PRESETS_OF_TRAINING["demo"], 8, 112
    rng = np.random.default_rng(0)
    networks = [build_network(settings.architecture, settings.backbone, table, seed=k) for k in range(3)]
    pair = Pair(*networks[:2]).to(memory_format=torch.channels_last).train()
    alone = networks[2].to(memory_format=torch.channels_last).train()
    batch = {
        "pixels": torch.from_numpy(rng.integers(0, 256, (size, 3, side, side), np.uint8)),
        "label": torch.from_numpy(
            rng.integers(0, 21, (size, side // 16, side // 16)).repeat(16, 1).repeat(16, 2)
        ),
        "trusted": torch.from_numpy(rng.random((size, side, side)) < 0.7),
    }

    def plain() -> None:
        images = normalise(photometric(batch["pixels"].float() / 255))
        logits = alone(pixel_values=images).logits
        torch.nn.functional.cross_entropy(logits, batch["label"]).backward()
        alone.zero_grad()

    def together(mixing: bool) -> None:
        part = replace(settings, mixing=mixing)
        sum(cotraining_losses(pair, pair.online, batch, part, True, 255, 0)).backward()
        pair.zero_grad()

    with tempfile.TemporaryDirectory() as out:
        write_rows(draw_rows("objects", 4 * size, 5), Path(out))
        rows, _ = open_rows(out, False, True)
    crops = Crops(side, 0, 0, 255, 21, True)
    feed = iter(
        loader(
            rows, crops, per_process=size, batch=size, start=0, stop=10_000, rank=0, processes=1, workers=0
        )
    )
    full, unmixed = partial(together, True), partial(together, False)
    plain(), full(), unmixed(), next(feed)
    found = [
        measure(f"co-training step / one network's, {size} x {side}", full, plain, pairs),
        measure("the same without mixing and online labels", unmixed, plain, pairs),
        measure("loading a batch in one process / the step", partial(next, feed), full, pairs),
    ]
    for row, step in zip(found, (full, unmixed), strict=False):
        row["images_per_second"] = [size / seconds for seconds in row["seconds"]]
        row["peak_memory"] = [peak_memory(step), peak_memory(plain)]
    return found


def peak_memory(step: Callable[[], object]) -> int:
    """Bytes that a step allocates at most on top of what is there, as torch's profiler sees them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    held = highest = 0
    for event in trace.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest


def figure(rows: list[dict], file: Path) -> None:
    matplotlib.use("Agg")
    chart, axes = pyplot.subplots(figsize=(9, 0.5 * len(rows) + 1), layout="constrained")
    for place, row in enumerate(rows):
        low, high = row["interval"]
        axes.plot([low, high], [place, place], color="tab:blue")
        axes.plot(row["ratio"], place, "o", color="tab:blue")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [row["what"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("ratio of times: median and 95 % interval")
    chart.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few pairs")
    parser.add_argument("--model", default="embedded", help="what paints, as of `attn2mask build`")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for what it writes")
    options = parser.parse_args()

    painter = load_painter(options.model)
    source = PromptSource(load_table("voc"), None, painter.tokenizers, seed=0)
    prompts = [source.prompt(index, 0) for index in range(BATCH)]
    seeds = [picture_seed(0, index, 0) for index in range(BATCH)]
    rows = [
        *recording(painter, prompts, seeds, options.quick),
        *crf(painter, prompts, seeds, pairs=3 if options.quick else 20),
        *building(options.model, source, 8 if options.quick else 64, pairs=2 if options.quick else 5),
        *training(pairs=3 if options.quick else 20),
    ]

    print(f"{'what':52}{'ratio':>7}  {'95 % interval':15}{'pairs':>6}  seconds")
    for row in rows:
        low, high = row["interval"]
        first, second = row["seconds"]
        print(
            f"{row['what']:52}{row['ratio']:7.3f}  {f'{low:.3f} to {high:.3f}':15}{row['pairs']:6}  "
            f"{first:.3f} / {second:.3f}"
        )
    for row in rows:
        if "equal_pixels" in row:
            print(f"{row['what']}: {row['equal_pixels']:.2%} of the pixels equal")
        if "peak_memory" in row:
            (fast, slow), (more, less) = row["images_per_second"], row["peak_memory"]
            print(
                f"{row['what']}: {fast:.1f} and {slow:.1f} images/s, {more / 1e6:.0f} and {less / 1e6:.0f} MB"
            )
    options.out.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "device": str(painter.pipe.device)}
    report = {"quick": options.quick, "model": options.model, **machine, **provenance(), "rows": rows}
    (options.out / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
    figure(rows, options.out / "bench.png")
    print(f"written: {options.out / 'bench.json'}, {options.out / 'bench.png'}")


if __name__ == "__main__":
    main()

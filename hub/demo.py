"""`attn2mask demo`: the whole way on a small scale, offline, on a CPU, and measured.

It builds rows with the embedded painter, draws a sheet of them and a figure of every token's attention,
and holds the masks of each threshold rule against a referee, a segmenter that learnt from drawn scenes with
exact masks. Then it co-trains a small segmenter on the rows, and one network alone, and scores both and the
attention masks on drawn scenes and on held-out painted pictures. What it prints is measured in that run;
`report.json` keeps it.
"""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from attn2mask.builders.options import option

REFEREE_SCENES = 200  # drawn scenes that the referee's own accuracy is measured on
HELD_OUT_PICTURES = 120  # of each set that the segmenters are scored on
DATASET_NAME, MODEL_NAME = "your-name/attn2mask-voc-demo", "your-name/attn2mask-deeplabv3plus-demo"
TOKENS_PROMPT = "a red bus next to a horse on the street"


@dataclass(frozen=True)
class DemoConfig:
    """What `attn2mask demo` takes."""

    out: str = option("directory of everything it makes (%(default)s)", "runs/demo", metavar="DIR")
    num_images: int = option("rows to build (%(default)s)", 384, metavar="N")
    max_steps: int = option("training steps of each segmenter; 0: none (%(default)s)", 400, metavar="N")


def label_row(png: bytes, scores: np.ndarray, rules) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coarse and refined local labels (H, W) and reliability (H, W) of one row under ``rules``, where the
    table has a background.
    """
    from attn2mask.builders.label import label_image

    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    labels = label_image(image, scores, rules, True)
    return labels.coarse, labels.mask, labels.reliability


def measure(data: Path) -> dict:
    """Mean IoU of the rows' pseudo-masks against the referee, under each threshold rule, and inside and
    outside the reliable part under the rule of the build; all in 0 to 1.
    """
    from datasets import Image as Picture
    from datasets import load_dataset

    from attn2mask.builders.label import to_ids
    from attn2mask.builders.rules import load_rules
    from attn2mask.builders.table_reader import load_table
    from attn2mask.builders.workers import default_workers, labeling_pool
    from attn2mask.training.experiments.painter_quality import referee_accuracy
    from attn2mask.training.miou import confusion_matrix, mean_iou
    from attn2mask.training.referee import load_referee

    table, referee = load_table("voc"), load_referee()
    rows = load_dataset(str(data), split="train").cast_column("image", Picture(decode=False))
    pictures = [row["bytes"] for row in rows["image"]]
    images = np.stack([np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in pictures])
    truth = referee.segment(images)
    scores = [np.array(row, np.uint8) for row in rows["scores"]]
    classes = rows["classes"]
    n = len(table.names)
    report: dict = {"referee_miou": referee_accuracy(referee, "objects", REFEREE_SCENES), "masks": {}}
    default = load_rules("default")
    bar = tqdm(total=3 * len(rows), desc="measuring", unit="mask")
    with labeling_pool(default_workers() + 1) as pool, bar:
        for threshold in ("otsu", "agreement", "fixed"):
            rules = replace(default, threshold=threshold)
            # A row whose classes were all dropped has no scores: it says nothing and is not measured.
            kept = [k for k in range(len(rows)) if classes[k]]
            jobs = [pool.submit(label_row, pictures[k], scores[k], rules) for k in kept]
            coarse, refined, inside, outside = (np.zeros((n, n + 1), np.int64) for _ in range(4))
            for k, job in zip(kept, jobs, strict=True):
                before, after, reliability = job.result()
                before, after = (to_ids(labels, classes[k], table) for labels in (before, after))
                coarse += confusion_matrix(before, truth[k], n)
                refined += confusion_matrix(after, truth[k], n)
                inside += confusion_matrix(after, np.where(reliability > 127, truth[k], 255), n)
                outside += confusion_matrix(after, np.where(reliability > 127, 255, truth[k]), n)
                bar.update()
            report["masks"][threshold] = {"coarse": mean_iou(coarse), "crf": mean_iou(refined)}
            if threshold == default.threshold:
                report["iou_inside_reliable"] = mean_iou(inside)
                report["iou_outside_reliable"] = mean_iou(outside)
                report["reliable_share"] = float(inside.sum() / refined.sum())
    return {**report, "rows": len(rows), "rows_measured": len(kept)}


def segment(config: DemoConfig, data: Path, out: Path) -> dict:
    """Mean IoU in 0 to 1, by how the masks were had and by set: the attention's own; those of a network
    trained alone; those of two that co-trained (``out``/segmenter). The networks' are there twice:
    `mean_iou`, and `mean_iou_given_labels` where they are told each picture's classes, as attention masks always are.
    Both train without ClassMix, which costs points in so few steps (the ablation).
    """
    from attn2mask.training.config import TrainConfig
    from attn2mask.training.evaluate_command import EvaluateConfig
    from attn2mask.training.evaluate_command import run as evaluate
    from attn2mask.training.experiments.ablation import SETS, attention_masks, make_sets
    from attn2mask.training.experiments.trials import MEASURES, TEST_TIME_AUGMENTATION
    from attn2mask.training.train import train

    held = out / "held-out"
    make_sets(held, HELD_OUT_PICTURES)
    attention = attention_masks(held, HELD_OUT_PICTURES)
    found: dict = {"attention masks": {name: {"mean_iou_given_labels": attention[name]} for name in SETS}}
    for name, folder in (("no co-training", out / "alone"), ("full", out / "segmenter")):
        print(f"\ntraining: {name}")
        train(
            TrainConfig(
                dataset=str(data), output_dir=str(folder), max_steps=config.max_steps, resume=True,
                no_co_training=name != "full", no_mixing=True, mixed_precision="no",
            )
        )  # fmt: skip
        found[name] = {}
        scales = ",".join(map(str, TEST_TIME_AUGMENTATION["scales"]))
        for held_out in SETS:
            metrics = folder / f"metrics_{held_out}.json"
            evaluate(
                EvaluateConfig(
                    str(folder),
                    str(held / held_out),
                    out=str(metrics),
                    scales=scales,
                    flip=TEST_TIME_AUGMENTATION["flip"],
                )
            )
            scores = json.loads(metrics.read_text())
            found[name][held_out] = {measure: scores[measure] for measure in MEASURES}
    return found


def write_cards(data: Path, segmenter: Path | None, folder: Path) -> list[Path]:
    """The cards that publishing would send, to look at."""
    from attn2mask.hub.cards.dataset import dataset_card
    from attn2mask.hub.cards.markdown import write_card
    from attn2mask.hub.cards.segmenter import model_card

    cards = {"dataset": dataset_card({"voc": data}, DATASET_NAME)}
    if segmenter is not None:
        cards["model"] = model_card(segmenter, MODEL_NAME)
    return [write_card(card, folder / kind) for kind, card in cards.items()]


def demo(config: DemoConfig) -> None:
    from attn2mask.builders import build, show
    from attn2mask.builders.painter import load_painter

    started = time.time()
    out = Path(config.out)
    data = out / "data"
    build.run(
        build.BuildConfig("voc", str(data), num_images=config.num_images, store_scores=True, balance=True)
    )
    show.run(show.ShowConfig(str(data), str(out / "sheet.png")))
    show.token_sheet(load_painter(), TOKENS_PROMPT, out / "tokens.png")
    report = measure(data)
    if config.max_steps:
        report["segmenters"] = segment(config, data, out)
    cards = write_cards(data, out / "segmenter" if config.max_steps else None, out / "cards")
    report["seconds"] = round(time.time() - started, 1)
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"\npseudo-masks of {report['rows_measured']} pictures against the referee (mIoU)")
    print(f"{'threshold':12}{'coarse':>8}{'after CRF':>11}")
    for name, found in report["masks"].items():
        print(f"{name:12}{found['coarse']:8.3f}{found['crf']:11.3f}")
    print(
        f"after CRF, inside the reliable part ({report['reliable_share']:.0%} of the pixels) "
        f"{report['iou_inside_reliable']:.3f}, outside {report['iou_outside_reliable']:.3f}"
    )
    print(f"the referee itself on drawn scenes with exact masks: {report['referee_miou']:.3f}\n")
    names = ["data", "sheet.png", "tokens.png", "report.json"]
    if config.max_steps:
        print("mIoU on pictures that nothing was trained on (and where each picture's classes are told)")
        print(f"{'':16}" + "".join(f"{name:>18}" for name in ("drawn", "drawn, shifted", "painted")))
        for name, sets in report["segmenters"].items():
            cells = [(scores.get("mean_iou"), scores["mean_iou_given_labels"]) for scores in sets.values()]
            shown = (f"{'-' if free is None else f'{free:.3f}'} ({told:.3f})" for free, told in cells)
            print(f"{name:16}" + "".join(f"{cell:>18}" for cell in shown))
        print("drawn: against exact masks; painted: against the referee's\n")
        names += ["segmenter", "segmenter/metrics_objects_pictures.png"]
    made = ", ".join([*(str(out / name) for name in names), *map(str, cards)])
    print(f"made in {report['seconds']:.0f} s: {made}")
    print(f'next: load_dataset("{data}", split="train"), or `attn2mask show {data} --out sheet.png`')
    print(f"nothing was published; to do so: attn2mask publish dataset {data} {DATASET_NAME}")
    if config.max_steps:
        print(f"                                 attn2mask publish model {out / 'segmenter'} {MODEL_NAME}")

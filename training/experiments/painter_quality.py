"""What the embedded painter can do, measured: `make evidence` writes one JSON and prints one table.

    python training/evidence.py --out runs/evidence [--model runs/painter/pipeline]

Four measurements, on seeds that nothing was trained on:
- rendered: drawn scenes with exact masks are encoded, noised and denoised by one pass under the recorder,
so the masks from attention can be held against the truth;
- recognized: of pictures painted from a caption with one class, how many the referee takes for that class;
- pairs: of captions with two classes, in how many pictures the referee finds both;
- painted: the masks of those pictures under each preset, threshold and reliability rule against the
  referee.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tqdm import tqdm

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.drawn.rows import HELD_OUT
from attn2mask.builders.drawn.scenes import draw_scene
from attn2mask.builders.label import label_image, to_ids
from attn2mask.builders.options import option
from attn2mask.builders.painter import Painter, load_painter
from attn2mask.builders.prompts import Prompt, PromptSource
from attn2mask.builders.recorder import AttentionRecorder
from attn2mask.builders.rules import Rules, load_rules
from attn2mask.builders.scores import class_scores, quantize
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words.captions import Caption
from attn2mask.builders.words.grammar import HAUNTS, PLACES, nouns, phrase, sentence
from attn2mask.training.miou import confusion_matrix, mean_iou
from attn2mask.training.pretraining.painter_training import to_tensor
from attn2mask.training.referee import Referee, load_referee

PRESENT = 0.01  # a class is in a picture where the referee gives it at least this share of the pixels


@dataclass(frozen=True)
class EvidenceConfig:
    """What `training/evidence.py` takes."""

    out: str = option("folder for evidence.json", "runs/evidence")
    model: str = option("the painter to measure", "embedded")
    rendered: int = option("drawn scenes (%(default)s)", 120)
    singles: int = option("pictures for each class (%(default)s)", 8)
    pairs: int = option("pictures of two classes (%(default)s)", 80)


def prompt_of(table: ClassTable, text: str, painter: Painter) -> Prompt:
    """``text`` as a prompt, its words left as they are."""
    return PromptSource(
        table, [Caption(text, "evidence")], painter.tokenizers, seed=0, alias_probability=0.0
    ).prompt(0, 0)


def drawn_scenes(world: str, count: int) -> Iterator:
    """Held-out scenes of a drawn world, always the same ones."""
    for index in range(count):
        yield draw_scene(world, np.random.default_rng([HELD_OUT, index]))


def referee_accuracy(referee: Referee, world: str, count: int) -> float:
    """The referee's own mean IoU on held-out scenes with exact masks."""
    scenes = list(drawn_scenes(world, count))
    found = referee.segment(np.stack([s.image for s in scenes]))
    return mean_iou(confusion_matrix(found, np.stack([s.mask for s in scenes]), 21))


@torch.no_grad()
def rendered_scores(
    painter: Painter, table: ClassTable, count: int, world: str = "objects", timestep: int = 350
) -> list[tuple]:
    """(image, exact mask, maps, classes) of drawn scenes: encode, add the noise of ``timestep``, one pass."""
    pipe, out = painter.pipe, []
    alpha = pipe.scheduler.alphas_cumprod[timestep]
    for index, scene in enumerate(
        tqdm(drawn_scenes(world, count), f"rendered {world}", count, mininterval=5)
    ):
        rng = np.random.default_rng([HELD_OUT, index, 1])
        names = dict.fromkeys(t.kind.thing for t in scene.things)
        words = [nouns(table.classes[table.id_of(n) - table.first_id])[0] for n in names]
        prompt = prompt_of(table, sentence([phrase(w, 1, rng) for w in words], scene.place, rng), painter)
        x = to_tensor(scene.image[None])
        latent = pipe.vae.encode(x).latent_dist.mean * pipe.vae.config.scaling_factor
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(index))
        ids = pipe.tokenizer(
            prompt.text, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        text = pipe.text_encoder(ids).last_hidden_state
        spans = [dict(zip(prompt.words, prompt.spans, strict=True))]
        with AttentionRecorder(SimpleNamespace(unet=pipe.unet), spans) as recorder:
            pipe.unet(alpha.sqrt() * latent + (1 - alpha).sqrt() * noise, timestep, text)
        maps = [recorder.maps[0][word] for word in prompt.words]
        out.append((scene.image, scene.mask, maps, prompt.classes))
    return out


def drawn_mask_iou(painter: Painter, table: ClassTable, count: int, world: str) -> float:
    """Mean IoU, 0 to 1, of the default rules' masks of drawn scenes, one pass each, against exact masks."""
    rendered = rendered_scores(painter, table, count, world)
    samples, exact = [(i, m, c) for i, _, m, c in rendered], [t for _, t, _, _ in rendered]
    return mask_iou(samples, exact, load_rules("default"), table)["crf"]


def paint(painter: Painter, prompts: Sequence[Prompt], seed: int, desc: str) -> Iterator[tuple]:
    """(image, maps, classes) of each prompt, in batches of 8."""
    d = painter.defaults
    for start in tqdm(range(0, len(prompts), 8), desc, mininterval=5):
        batch = prompts[start : start + 8]
        images, maps, _ = painter.paint(
            batch, [seed + start + k for k in range(len(batch))], steps=d.steps,
            guidance_scale=d.guidance_scale,
            height=d.height, width=d.width,
        )  # fmt: skip
        for prompt, image, of_word in zip(batch, images, maps, strict=True):
            yield image, [of_word[word] for word in prompt.words], prompt.classes


def mask_iou(
    samples: Sequence[tuple], truth: Sequence[np.ndarray], rules: Rules, table: ClassTable
) -> dict[str, float]:
    """Mean IoU of coarse and refined masks, and inside and outside the reliable part, of (image, maps,
    classes).
    """
    n = len(table.names)
    coarse, refined, inside, outside = (np.zeros((n, n + 1), np.int64) for _ in range(4))
    for (image, maps, classes), target in zip(samples, truth, strict=True):
        labels = label_image(
            image, quantize(class_scores(maps, rules)[0]), rules, table.background is not None
        )
        mask = to_ids(labels.mask, classes, table)
        coarse += confusion_matrix(to_ids(labels.coarse, classes, table), target, n)
        matrix = confusion_matrix(mask, np.where(labels.reliability > 127, target, 255), n)
        inside, refined = inside + matrix, refined + confusion_matrix(mask, target, n)
        outside += confusion_matrix(mask, np.where(labels.reliability > 127, 255, target), n)
    return {
        "coarse": mean_iou(coarse),
        "crf": mean_iou(refined),
        "inside": mean_iou(inside),
        "outside": mean_iou(outside),
        "reliable": float(inside.sum() / refined.sum()),
    }


def variants() -> dict[str, Rules]:
    """The presets, and the default with each threshold and each reliability rule."""
    default = load_rules("default")
    return {
        **PRESETS,
        **{f"default, {t}": replace(default, threshold=t) for t in ("otsu", "agreement", "fixed")},
        **{f"default, {r}": replace(default, reliability=r) for r in ("two-threshold", "margin")},
    }


def measure(config: EvidenceConfig) -> None:
    started = time.time()
    table, referee = load_table("voc"), load_referee()
    painter = load_painter(config.model)
    if config.model != "embedded":
        painter.defaults = replace(painter.defaults, steps=20, guidance_scale=3.0)
    report: dict = {
        "referee_miou": referee_accuracy(referee, "objects", 300),
        "referee_miou_shifted": referee_accuracy(referee, "shifted", 300),
    }

    rendered = rendered_scores(painter, table, config.rendered)
    samples, truth = [(i, m, c) for i, _, m, c in rendered], [t for _, t, _, _ in rendered]
    report["rendered"] = {name: mask_iou(samples, truth, rules, table) for name, rules in variants().items()}

    def text(classes: Sequence[int], rng: np.random.Generator) -> str:
        labels = [table.classes[c] for c in classes]
        places = next((HAUNTS[w] for w in labels[0].base if w in HAUNTS), PLACES)
        return sentence([phrase(nouns(c)[0], 1, rng) for c in labels], places[rng.integers(len(places))], rng)

    rng = np.random.default_rng(HELD_OUT)
    singles = [prompt_of(table, text([c], rng), painter) for c in range(20) for _ in range(config.singles)]
    two = [rng.choice(20, 2, replace=False) for _ in range(config.pairs)]
    pairs = [prompt_of(table, text(list(c), rng), painter) for c in two]
    painted = list(paint(painter, [*singles, *pairs], 1_000, "painted"))
    judged = referee.segment(np.stack([image for image, _, _ in painted]))
    hits: dict[str, list[bool]] = {label.name: [] for label in table.classes}
    for (_, _, classes), found in zip(painted[: len(singles)], judged, strict=False):
        areas = np.bincount(found.ravel(), minlength=21)[1:]
        hits[table.names[classes[0]]].append(
            bool(areas.argmax() + 1 == classes[0] and areas.max() > PRESENT * found.size)
        )
    report["recognized"] = {name: float(np.mean(found)) for name, found in hits.items()}
    both = [
        all((found == c).mean() >= PRESENT for c in classes)
        for (_, _, classes), found in zip(painted[len(singles) :], judged[len(singles) :], strict=True)
    ]
    report["pairs"] = float(np.mean(both))
    report["painted"] = {name: mask_iou(painted, judged, rules, table) for name, rules in variants().items()}
    report["seconds"] = time.time() - started

    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "evidence.json").write_text(json.dumps(report, indent=2) + "\n")
    print(
        f"referee: {report['referee_miou']:.3f} on objects, {report['referee_miou_shifted']:.3f} on shifted"
    )
    good = sum(v >= 0.8 for v in report["recognized"].values())
    mean = np.mean(list(report["recognized"].values()))
    print(f"recognized: {mean:.3f} of single things; {good} of 20 classes in 80 % or more")
    print("  " + ", ".join(f"{k} {v:.2f}" for k, v in report["recognized"].items()))
    print(f"pairs: both classes in {report['pairs']:.3f}")
    print(f"{'rules':24}{'rendered':>18}{'painted':>18}{'inside':>9}{'outside':>9}{'reliable':>10}")
    for name in variants():
        a, b = report["rendered"][name], report["painted"][name]
        print(
            f"{name:24}{a['coarse']:9.3f}{a['crf']:9.3f}{b['coarse']:9.3f}{b['crf']:9.3f}"
            f"{b['inside']:9.3f}{b['outside']:9.3f}{b['reliable']:10.2f}"
        )
    print(f"wrote {out / 'evidence.json'} after {report['seconds']:.0f} s")


if __name__ == "__main__":
    from attn2mask.builders.command import run_command

    sys.exit(
        run_command(
            EvidenceConfig,
            measure,
            sys.argv[1:],
            "training/experiments/painter_quality.py",
            __doc__.splitlines()[0],
        )
    )

"""The dense CRF, compared with pydensecrf that gets all classes of the table, or only those of the mask."""

from collections.abc import Iterator

import numpy as np
from bench.timing import Row, measure
from PIL import Image
from references import pydensecrf

from attn2mask.builders.crf import DenseCRF
from attn2mask.builders.label import label_image
from attn2mask.builders.painter import load_painter
from attn2mask.builders.prompts import PromptSource, image_seed
from attn2mask.builders.rules import Rules, load_rules
from attn2mask.builders.scores import class_scores, quantize
from attn2mask.builders.table_reader import load_table

IMAGES = 8


def crf(model: str, quick: bool) -> Iterator[Row]:
    """Painted images whose coarse masks have at least two labels, at two sizes."""
    painter, table, rules = load_painter(model), load_table("voc"), load_rules("embedded")
    source = PromptSource(table, None, painter.tokenizers, seed=0)
    prompts = [source.prompt(index, 0) for index in range(IMAGES)]
    seeds = [image_seed(0, index, 0) for index in range(IMAGES)]
    images, maps, _ = painter.paint(prompts, seeds, painter.defaults)
    latent_side = painter.latent_side(*images.shape[1:3])
    for side, pairs in ((128, 3 if quick else 12), (512, 2 if quick else 5)):
        cases = []
        for image, of_word, prompt in zip(images, maps, prompts, strict=True):
            large = np.array(Image.fromarray(image).resize((side, side)))
            scores, _ = class_scores([of_word[word] for word in prompt.words], rules, latent_side)
            coarse = label_image(large, quantize(scores), rules, True).coarse
            if len(np.unique(coarse[coarse >= 0])) > 1:
                cases.append((large, coarse))

        def ours(cases=cases) -> list[np.ndarray]:
            return [DenseCRF(image, rules.dense_crf).refine(coarse).labels for image, coarse in cases]

        def all_classes(cases=cases) -> list[np.ndarray]:
            return [pydensecrf(*case, len(table.names), rules.dense_crf).argmax(axis=0) for case in cases]

        def labels_present(cases=cases) -> list[np.ndarray]:
            return [refine_present(*case, rules) for case in cases]

        for what, reference, goal in (
            (f"{len(table.names)} classes", all_classes, "<= 0.333"),
            ("the labels present", labels_present, ""),
        ):
            yield measure(
                f"dense CRF / pydensecrf with {what}, {side} x {side}",
                ours,
                reference,
                pairs,
                goal=goal,
                same_pixels=float(np.mean([a == b for a, b in zip(ours(), reference(), strict=True)])),
                labels=float(np.mean([len(np.unique(c[c >= 0])) for _, c in cases])),
            )


def refine_present(image: np.ndarray, coarse: np.ndarray, rules: Rules) -> np.ndarray:
    """Labels (H, W) of pydensecrf that gets only the labels of a coarse mask (H, W), where -1 is ignored."""
    present = np.unique(coarse[coarse >= 0])
    local = np.where(coarse >= 0, np.searchsorted(present, coarse), -1)
    return present[pydensecrf(image, local, len(present), rules.dense_crf).argmax(axis=0)]

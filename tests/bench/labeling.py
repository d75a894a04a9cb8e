"""The dense CRF over pydensecrf, called plainly with all labels of the table."""

from collections.abc import Iterator

import numpy as np
from bench.timing import Row, measure
from PIL import Image
from pydensecrf.densecrf import DenseCRF2D

from attn2mask.builders.crf import DenseCRF
from attn2mask.builders.label import label_image
from attn2mask.builders.painter import load_painter
from attn2mask.builders.prompts import PromptSource, image_seed
from attn2mask.builders.rules import CRF, load_rules
from attn2mask.builders.scores import class_scores, quantize
from attn2mask.builders.table_reader import load_table

PICTURES = 8
ABSENT = 1e-10  # probability of a class that the picture does not hold


def pydensecrf(image: np.ndarray, labels: np.ndarray, names: int, crf: CRF) -> np.ndarray:
    """pydensecrf, called plainly with all `names` labels of the table: (H, W, 3) and (H, W) to probabilities
    (names, H, W). Labels that the picture does not hold have as good as no probability, the others that which
    they have in `DenseCRF.refine`.
    """
    height, width = labels.shape
    scale = (height * width) ** 0.5 / 512
    present = np.unique(labels[labels >= 0])
    others = (1 - crf.gt_prob) / max(len(present) - 1, 1)
    flat = labels.ravel()
    probability = np.where(np.arange(names)[:, None] == flat, crf.gt_prob, others).astype(np.float32)
    probability[:, flat < 0] = 1 / len(present)
    probability[np.setdiff1d(np.arange(names), present)] = ABSENT
    field = DenseCRF2D(width, height, names)
    field.setUnaryEnergy(-np.log(probability))
    field.addPairwiseGaussian(sxy=crf.gaussian_sxy * scale, compat=crf.gaussian_compat)
    field.addPairwiseBilateral(
        sxy=crf.bilateral_sxy * scale, srgb=crf.bilateral_srgb, rgbim=image, compat=crf.bilateral_compat
    )
    return np.array(field.inference(crf.iterations)).reshape(names, height, width)


def crf(model: str, quick: bool) -> Iterator[Row]:
    """Painted pictures with a coarse mask of two labels or more, at two sizes."""
    painter, table, rules = load_painter(model), load_table("voc"), load_rules("default")
    defaults = painter.defaults
    source = PromptSource(table, None, painter.tokenizers, seed=0)
    prompts = [source.prompt(index, 0) for index in range(PICTURES)]
    images, maps, _ = painter.paint(
        prompts,
        [image_seed(0, index, 0) for index in range(PICTURES)],
        steps=defaults.steps,
        guidance_scale=defaults.guidance_scale,
        height=defaults.height,
        width=defaults.width,
    )
    for side, pairs in ((128, 3 if quick else 12), (512, 2 if quick else 5)):
        cases = []
        for image, of_word, prompt in zip(images, maps, prompts, strict=True):
            large = np.array(Image.fromarray(image).resize((side, side)))
            scores, _ = class_scores([of_word[word] for word in prompt.words], rules)
            coarse = label_image(large, quantize(scores), rules, True).coarse
            if len(np.unique(coarse[coarse >= 0])) > 1:
                cases.append((large, coarse))

        def ours(cases=cases) -> list[np.ndarray]:
            return [DenseCRF(image, rules.crf).refine(coarse).labels for image, coarse in cases]

        def plain(cases=cases) -> list[np.ndarray]:
            count = len(table.names)
            return [pydensecrf(image, coarse, count, rules.crf).argmax(axis=0) for image, coarse in cases]

        same = np.mean([a == b for a, b in zip(ours(), plain(), strict=True)])
        yield measure(
            f"dense CRF / pydensecrf with all {len(table.names)} labels, {side} x {side}", ours, plain, pairs,
            goal="<= 0.333", same_pixels=float(same),
            labels=float(np.mean([len(np.unique(c[c >= 0])) for _, c in cases])),
        )  # fmt: skip

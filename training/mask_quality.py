"""How good attention masks are: their mean IoU before and after the CRF, and where they count as reliable.

Painted images are compared with the referee's predictions, drawn scenes with their exact masks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.drawn.rows import HELD_OUT
from attn2mask.builders.drawn.scenes import DrawnScene
from attn2mask.builders.label import Labels, label_image, to_ids
from attn2mask.builders.painter import Painter
from attn2mask.builders.prompts import Prompt, PromptSource
from attn2mask.builders.reliability import RELIABLE
from attn2mask.builders.rules import Rules
from attn2mask.builders.scores import class_scores, propagation_size, quantize
from attn2mask.builders.words.captions import Caption
from attn2mask.builders.words.grammar import nouns, phrase, sentence
from attn2mask.training.miou import MeanIoU
from attn2mask.training.referee import to_tensor
from attn2mask.training.single_pass import encode, noisy_latents, single_pass

# The side of the recorded self-attention as a fraction of the latents', as all presets have it.
PROPAGATION = 0.5


@dataclass(frozen=True)
class RecordedImage:
    """An image (H, W, 3) uint8, the mask ids of the classes in its prompt, each class word's attention maps
    by (h, w), the shorter side of the latents, its self-attention by (h, w), as `class_scores` takes it, or
    None, and the attention maps of each background word of its prompt, as those of the class words.
    """

    image: np.ndarray
    classes: tuple[int, ...]
    maps: Sequence[Mapping[tuple[int, int], Tensor]]
    latent_side: int
    self_attention: Mapping[tuple[int, int], Tensor] | None = None
    background: Sequence[Mapping[tuple[int, int], Tensor]] = ()

    def labels(self, rules: Rules, table: ClassTable) -> Labels:
        """The labels of the image under `rules`."""
        scores, _ = class_scores(self.maps, rules, self.latent_side, self.self_attention, self.background)
        return label_image(self.image, quantize(scores), rules, table.background is not None)


def mask_quality(
    labels: Iterable[Labels],
    classes: Sequence[Sequence[int]],
    targets: Iterable[np.ndarray],
    table: ClassTable,
) -> dict[str, float | None]:
    """The quality of the masks of many images, each value in 0 to 1; None if there is no pixel to measure.

    Args:
        labels: the labels of each image.
        classes: the mask ids of the classes that each image's labels count from 1 on.
        targets: the mask (H, W) of ids that each image is compared with.

    Returns:
        `coarse` and `crf`: mean IoU of the masks before and after the CRF. `inside` and `outside`: mean IoU
        after the CRF of the reliable and of the other pixels. `reliable`: the share of the reliable pixels.
    """
    metrics = {
        name: MeanIoU(len(table.names), table.ignore_index) for name in ("coarse", "crf", "inside", "outside")
    }
    for label, ids, target in zip(labels, classes, targets, strict=True):
        mask, reliable = to_ids(label.mask, ids, table), label.reliability >= RELIABLE
        metrics["coarse"].add(prediction=to_ids(label.coarse, ids, table), reference=target)
        metrics["crf"].add(prediction=mask, reference=target)
        metrics["inside"].add(prediction=mask, reference=np.where(reliable, target, table.ignore_index))
        metrics["outside"].add(prediction=mask, reference=np.where(reliable, table.ignore_index, target))
    share = float(metrics["inside"].matrix.sum() / metrics["crf"].matrix.sum())
    return {name: metric.compute()["mean_iou"] for name, metric in metrics.items()} | {"reliable": share}


def recorded_quality(
    recorded: Sequence[RecordedImage], targets: Iterable[np.ndarray], rules: Rules, table: ClassTable
) -> dict[str, float | None]:
    """`mask_quality` of recorded images under `rules`."""
    labels = (image.labels(rules, table) for image in recorded)
    return mask_quality(labels, [image.classes for image in recorded], targets, table)


def prompt_for(text: str, table: ClassTable, painter: Painter) -> Prompt:
    """`text` as a prompt with the positions of its class words. No word is replaced."""
    captions = [Caption(text, "caption")]
    source = PromptSource(table, captions, painter.stretches, seed=0, alias_probability=0.0, background=True)
    return source.prompt(0, 0)


def class_prompt(
    classes: Iterable[int], place: str, table: ClassTable, painter: Painter, rng: np.random.Generator
) -> Prompt:
    """A prompt in which the classes with these mask ids are in a place (may be empty)."""
    words = [nouns(table.classes[k - table.first_id])[0] for k in classes]
    return prompt_for(sentence([phrase(word, 1, rng) for word in words], place, rng), table, painter)


def record_image(painter: Painter, image: np.ndarray, prompt: Prompt, seed: int) -> RecordedImage:
    """An image (H, W, 3) uint8 with the attention of one denoising pass at `TIMESTEP` for a prompt.

    The image is encoded, and noise of `seed` is added. H and W are multiples of the pipeline's factor.
    """
    spans = dict(enumerate((*prompt.spans, *prompt.background_spans)))
    side = painter.latent_side(*image.shape[:2])
    choose = partial(propagation_size, fraction=PROPAGATION, latent_side=side)
    latents = noisy_latents(painter, to_tensor(image[None]), seed)
    recorder = single_pass(painter, latents, encode(painter, [prompt.text]), [spans], choose)
    maps, k = list(recorder.maps[0].values()), len(prompt.classes)
    return RecordedImage(image, prompt.classes, maps[:k], side, recorder.self_attention[0], maps[k:])


def record_scenes(
    painter: Painter, table: ClassTable, scenes: Iterable[DrawnScene]
) -> Iterator[RecordedImage]:
    """`record_image` of drawn scenes, with a caption of their things."""
    for index, scene in enumerate(scenes):
        rng = np.random.default_rng([HELD_OUT, index, 1])
        classes = [table.id_of(name) for name in dict.fromkeys(thing.kind.thing for thing in scene.things)]
        prompt = class_prompt(classes, scene.place, table, painter, rng)
        yield record_image(painter, scene.image, prompt, index)

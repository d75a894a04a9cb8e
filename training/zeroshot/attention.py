"""The painter's own attention as a segmenter of given images. It is trained for nothing but painting.

An image is encoded, and noise is added to it. One pass of the painter's UNet for each query, with the query
in the template's prompt, records how much each place attends to the words of the query. Two versions:

    original    DAAM (Tang et al. 2023): the mean of the maps of most layers as a fraction of its maximum
    common      the map sizes of the painter's default preset, and (attention - minimum) / maximum

Each query is divided by its own maximum: classes that an image lacks get as much attention as those that it
shows, so that this tells where a class is, but hardly whether it is there. The minimum is taken away so that
even maps, which locate nothing, lose against others. So choose classes by labels of the image where there are
any, and prefer the rule "threshold" for the background: the best of many words nearly always wins.

Several names in one prompt take less time and are less accurate: given the labels of 60 drawn scenes, the
mean IoU of the embedded painter at the best threshold is 0.47 with one name in a prompt, 0.40 with three and
0.37 with eight.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.layouts import Size, UNet
from attn2mask.builders.painter import Painter, load_painter
from attn2mask.builders.rules import Rules, load_rules, preset_for
from attn2mask.builders.scores import class_scores
from attn2mask.builders.stretches import positions_of
from attn2mask.training.single_pass import TIMESTEP, encode, noisy_latents, single_pass
from attn2mask.training.zeroshot.decision import Decision
from attn2mask.training.zeroshot.protocol import Protocol
from attn2mask.training.zeroshot.segmenter import Preprocessor, Scores, Segmenter, padded

__all__ = ["BACKGROUNDS", "WEIGHTS", "PainterAttention", "load"]
BACKGROUNDS = ("none", "threshold", "words")
WEIGHTS = "embedded"
NOISE_SEED = 0  # all images and windows of a size get the same noise
AT_ONCE = 16  # queries in one call of the UNet


class PainterAttention(nn.Module):
    """A painter that scores every place of an image for Q queries.

    Args:
        prompts: the text of each query.
        spans: the positions of each query among the text keys of its prompt.
        rules: which maps are averaged, and how they are normalized.
        above_minimum: whether the minimum of each query's scores is subtracted from them.
    """

    def __init__(
        self,
        painter: Painter,
        prompts: list[str],
        spans: list[tuple[int, ...]],
        rules: Rules,
        above_minimum: bool,
    ) -> None:
        super().__init__()
        self.painter, self.spans, self.rules, self.above_minimum = painter, spans, rules, above_minimum
        self.unet, self.vae = painter.pipe.unet, painter.pipe.vae
        starts = range(0, len(prompts), AT_ONCE)
        self.texts = [encode(painter, prompts[start : start + AT_ONCE]) for start in starts]

    def forward(self, pixel_values: Tensor) -> Scores:
        """Scores in 0 to 1, one image after the other, so that a batch changes nothing."""
        height, width = pixel_values.shape[-2:]
        pixels = padded(pixel_values, self.painter.pixel_multiple)
        scores = torch.stack([self._scores(image) for image in pixels.split(1)])
        if pixels.shape != pixel_values.shape:
            scores = F.interpolate(scores, pixels.shape[-2:], mode="bilinear")[..., :height, :width]
        return Scores(scores.to(pixel_values.device))

    def _scores(self, pixels: Tensor) -> Tensor:
        """The scores (Q, h, w) of one image (1, 3, H, W), on the CPU."""
        side = self.painter.latent_side(*pixels.shape[-2:])
        scores, peaks = class_scores(self._maps(pixels), self.rules, side)
        if not peaks.isfinite().all():
            model = self.painter.facts["model"]
            raise UserError(f"--weights {model}: its attention is not a number (NaN); take another painter")
        return scores - scores.amin((1, 2), keepdim=True) if self.above_minimum else scores

    def _maps(self, pixels: Tensor) -> list[dict[Size, Tensor]]:
        """The attention maps of each query on one image, by (h, w)."""
        latents = noisy_latents(self.painter, pixels, NOISE_SEED)
        maps = []
        for index, texts in enumerate(self.texts):
            spans = [{"query": span} for span in self.spans[index * AT_ONCE :][:AT_ONCE]]
            repeated = latents.expand(len(spans), -1, -1, -1)
            recorder = single_pass(self.painter, repeated, texts, spans)
            maps += [of_query["query"] for of_query in recorder.maps]
        return maps


def load(weights: str, protocol: Protocol, table: ClassTable) -> Segmenter:
    """A painter as `--model` of a build names it: "embedded", a folder of a pipeline, or a name on the Hub.

    Raises UserError if it cannot be loaded, if its denoiser is no UNet, so that no image can be given to it,
    and if it cannot read a query.
    """
    try:
        painter = load_painter(weights)
    except UserError as error:
        raise UserError(str(error).replace("--model", "--weights")) from error
    if not isinstance(painter.layout, UNet):
        raise UserError(
            f"--weights {weights}: images can be given to Stable Diffusion 1.x, 2.x and XL and Kolors alone;"
            " take one of these, or --weights embedded"
        )
    preset = "daam-like" if protocol.name == "original" else preset_for(weights)
    rules = load_rules(preset)
    if protocol.name == "common":
        rules = replace(rules, normalization="max", word_temperature=0.0)
    prompts = [_prompt(query, protocol) for query in protocol.queries]
    spans = [
        _span(prompt, query, painter, weights)
        for prompt, query in zip(prompts, protocol.queries, strict=True)
    ]
    network = PainterAttention(painter, prompts, spans, rules, above_minimum=protocol.name == "common")
    size = min(painter.defaults.height, painter.defaults.width)
    record = {
        "weights": weights,
        **painter.facts,
        "size": protocol.size or size,
        "preset": preset,
        "timestep": TIMESTEP,
        "noise_seed": NOISE_SEED,
        "passes_per_query": 1,
    }
    decision = Decision(table, protocol, activation="none")
    return Segmenter(network, Preprocessor(protocol, "half", size=size), decision, record)


def _prompt(query: str, protocol: Protocol) -> str:
    """The text of a query, in the only template of a protocol."""
    (text,) = protocol.prompts(query)
    return text


def _span(prompt: str, query: str, painter: Painter, weights: str) -> tuple[int, ...]:
    """The positions among the text keys of a query, where its prompt has it last. Raises UserError if the
    painter does not read it.
    """
    start = prompt.rindex(query)
    (found,) = positions_of(prompt, [(start, start + len(query))], painter.stretches)
    if isinstance(found, str) or not found:
        reason = found or "it is too long"
        raise UserError(f"--weights {weights}: the painter cannot read the name {query!r}: {reason}")
    return found

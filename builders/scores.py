"""From the recorder's maps of an image to one score map for each class.

Maps of several resolutions are resized to the largest of them and averaged. Fine maps locate the edges;
coarse maps are more certain of the class. The average may be multiplied by the image's self-attention, which
spreads it over the parts of a thing, and the words of the background may compete with the classes. Masks are
always computed from scores that were quantized to 8 bits, and scores from maps that were rounded to 16 bits,
so that both can be computed again bit for bit.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from attn2mask.builders.rules import Rules

# A map that varies by less than this fraction of its maximum does not locate its class. Maps of objects vary
# by nearly all of their maximum, even if the object fills the image.
FLAT = 0.25
# The temperature of the competition with background words. Of 0.1, 0.25, 0.5 and 1, this one harmed the masks
# of the embedded painter least; none improved them.
BACKGROUND_TEMPERATURE = 1.0
# The key under which the recorded maps of an image hold its self-attention beside those of its words:
# {(h, w): tensor (h * w, h * w)}, as `class_scores` takes it. No word is empty.
SELF_ATTENTION = ""
# The key under which they hold the maps of each background word, {(h, w): tensor (h, w)}. No word is a blank.
BACKGROUND = " "
Size = tuple[int, int]


def class_scores(
    maps: Sequence[Mapping[Size, torch.Tensor]],
    rules: Rules,
    latent_side: int,
    self_attention: Mapping[Size, torch.Tensor] | None = None,
    background: Sequence[Mapping[Size, torch.Tensor]] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (K, h, w) in [0, 1] and raw peaks (K,) of the K classes of one image: float32, on the CPU.

    Args:
        maps: for each class its maps by (h, w), with the same sizes for all classes; K is at least 1. Maps
            that `pack` rounded give the same scores as the maps themselves.
        rules: the scores have the largest size that they choose (`chosen_sizes`), or that of the
            self-attention if they propagate the maps.
        latent_side: the shorter side of the latents of the image.
        self_attention: the probability, by (h, w), that a pixel (row) attends to another (column):
            (h * w, h * w), each row of sum 1. Only needed if `rules.propagation_power` is above 0.
        background: for each background word of the image its maps, as those of a class; there may be none.
            Only used if `rules.background_words`. Then a score is multiplied by the `word_odds` of the class
            against the background word that attends most at the pixel.

    A peak is the maximum of the averaged map before propagation and normalization; it is NaN if the attention
    was not finite. Such maps, and flat maps, have scores of 0. Raises ValueError if the self-attention is
    needed, and not given.
    """
    sizes = chosen_sizes(sorted(maps[0], reverse=True), rules, latent_side)  # sums depend on the order
    largest, classes = max(sizes), len(maps)
    words = [*maps, *background] if rules.background_words else maps
    by_size = [_rounded(torch.stack([of_word[size] for of_word in words])) for size in sizes]
    averaged = _average(by_size, largest)
    low, high = averaged.amin(dim=(1, 2), keepdim=True), averaged.amax(dim=(1, 2), keepdim=True)
    peaks = torch.where(high.isfinite(), high, torch.nan).flatten()
    readable = high - low > FLAT * high

    attention = averaged
    if rules.normalization == "max-by-size":
        tiny = torch.finfo(torch.float32).tiny
        attention = _average([one / one.amax((1, 2), True).clamp(min=tiny) for one in by_size], largest)
    if rules.propagation_power:
        if not self_attention:
            raise ValueError("the rules multiply maps by the self-attention, which was not recorded")
        size = propagation_size(list(self_attention), rules.propagation_fraction, latent_side)
        spread = _rounded(self_attention[size][None])[0]
        attention = propagate(upsample(attention, size), spread, rules.propagation_power)

    low, high = attention.amin(dim=(1, 2), keepdim=True), attention.amax(dim=(1, 2), keepdim=True)
    floor = low if rules.normalization == "minmax" else torch.zeros_like(low)
    readable = readable & (high > floor)
    scores = torch.where(readable, (attention - floor) / (high - floor), 0.0).clamp(0, 1)[:classes]
    attention, behind = torch.where(readable, attention, 0.0).tensor_split([classes])
    if rules.word_temperature:
        scores = scores * word_odds(attention, rules.word_temperature)
    if len(behind):
        rivals = torch.stack([attention, behind.amax(dim=0).expand_as(attention)])
        scores = scores * word_odds(rivals, BACKGROUND_TEMPERATURE)[0]
    return scores, peaks[:classes]


def propagate(maps: torch.Tensor, self_attention: torch.Tensor, power: int) -> torch.Tensor:
    """Maps (K, h, w) multiplied by the self-attention (h * w, h * w) to `power`, at least 0: (K, h, w).

    A pixel gets the mean of the map over the pixels that it attends to, `power` times over. Dataset Diffusion
    (Nguyen et al. 2023) takes the fourth power, DiffSegmenter (Wang et al. 2023) the first.
    """
    pixels = maps.flatten(1).T
    for _ in range(power):
        pixels = self_attention @ pixels
    return pixels.T.reshape(maps.shape)


def word_odds(attention: torch.Tensor, temperature: float) -> torch.Tensor:
    """How probable each of K words is at each pixel, relative to the most probable one: (K, ...) in 0 to 1.

    `attention` is (K, ...), at least 0. The probabilities are a softmax over the words; its `temperature` is
    a fraction of the largest attention of the image. A word that attends weakly where another one attends
    strongly gets little there. Where no word attends strongly, all are about equal. ConceptAttention
    (Helbling et al. 2025) also takes a softmax over the words of an image.
    """
    largest = attention.max().clamp(min=torch.finfo(attention.dtype).tiny)
    return torch.exp((attention - attention.amax(dim=0)) / (temperature * largest))


def upsample(scores: torch.Tensor, size: Size) -> torch.Tensor:
    """Scores or probabilities (K, h, w) in [0, 1] resized bilinearly to (K, *size)."""
    return F.interpolate(scores[:, None], size, mode="bilinear", align_corners=False)[:, 0].clamp(0, 1)


def quantized_scores(
    maps: Sequence[Mapping[Size, torch.Tensor]],
    rules: Rules,
    latent_side: int,
    self_attention: Mapping[Size, torch.Tensor] | None = None,
    background: Sequence[Mapping[Size, torch.Tensor]] = (),
) -> tuple[np.ndarray, tuple[float, ...]]:
    """`class_scores` as a row stores them: scores (K, h, w) uint8, and K peaks. K may be 0."""
    if not maps:
        return np.zeros((0, 1, 1), np.uint8), ()
    scores, peaks = class_scores(maps, rules, latent_side, self_attention, background)
    return quantize(scores), tuple(peaks.tolist())


def quantize(scores: torch.Tensor) -> np.ndarray:
    """Scores (K, h, w) in [0, 1] as uint8, to the nearest of 256 levels."""
    return (scores * 255).round().to(torch.uint8).cpu().numpy()


def dequantize(scores: np.ndarray) -> torch.Tensor:
    """The inverse of `quantize`, float32, within half a level (1 / 510)."""
    return torch.from_numpy(scores).float() / 255


def chosen_sizes(sizes: Sequence[Size], rules: Rules, latent_side: int) -> list[Size]:
    """The map sizes (h, w) that the rules choose for latents whose shorter side is `latent_side`.

    The shorter side of a map must lie between the fractions `map_fraction_min` and `map_fraction_max` of
    `latent_side`. The lower bound is rounded down and the upper bound up to a whole number, because a UNet
    rounds up when it halves an odd side. If there is no such map, the nearest one is chosen; of two, the
    larger.
    """
    low = math.floor(rules.map_fraction_min * latent_side)
    high = math.ceil(rules.map_fraction_max * latent_side)
    distance = {size: max(low - min(size), min(size) - high, 0) for size in sizes}
    nearest = min(sizes, key=lambda size: (distance[size], -min(size)))
    return [size for size in sizes if distance[size] == 0] or [nearest]


def propagation_size(sizes: Sequence[Size], fraction: float, latent_side: int) -> Size:
    """The one of several sizes (h, w) of self-attention that rules with this `propagation_fraction` take:
    its shorter side is nearest to the fraction of the latents' shorter side; of two, the larger.
    """
    return min(sizes, key=lambda size: (abs(min(size) - fraction * latent_side), -min(size)))


# Maps as rows store them


def pack(values: torch.Tensor) -> dict[str, Any]:
    """A map of at least 0 in 16 bits: its maximum as `peak`, and the map divided by it as float16 `values`.

    So small probabilities keep their digits, which float16 alone would lose. A value is right within 0.05 %,
    or within 3e-8 of the peak where it is below 6e-5 of it. A map that holds NaN stays one that does.
    """
    divided, peak = _halves(values[None])
    return {"peak": peak.item(), "values": divided[0].numpy()}


def unpack(packed: Mapping[str, Any]) -> torch.Tensor:
    """The map that `pack` rounded, float32."""
    return torch.from_numpy(np.array(packed["values"], np.float16)).float() * packed["peak"]


def pack_maps(by_size: Mapping[Size, torch.Tensor]) -> list[dict[str, Any]]:
    """The maps of a class as `pack` rounds them, from the largest size to the smallest."""
    return [pack(by_size[size]) for size in sorted(by_size, reverse=True)]


def unpack_maps(packed: Sequence[Mapping[str, Any]]) -> dict[Size, torch.Tensor]:
    """The maps, by (h, w), that `pack_maps` rounded."""
    maps = map(unpack, packed)
    return {(one.shape[0], one.shape[1]): one for one in maps}


def pack_self_attention(by_size: Mapping[Size, torch.Tensor]) -> dict[str, Any]:
    """The self-attention (h * w, h * w) of the one size (h, w) in `by_size`, as `pack` rounds it."""
    (((height, width), values),) = by_size.items()
    return {"height": height, "width": width, **pack(values)}


def unpack_self_attention(packed: Mapping[str, Any]) -> dict[Size, torch.Tensor]:
    """What `pack_self_attention` rounded."""
    return {(packed["height"], packed["width"]): unpack(packed)}


def mean_map(by_size: Mapping[Size, torch.Tensor], rules: Rules, latent_side: int) -> torch.Tensor:
    """The attention to one word before it is normalized: (h, w) float32, the mean of its maps of the sizes
    that the rules choose, at the largest of these sizes.
    """
    sizes = chosen_sizes(sorted(by_size, reverse=True), rules, latent_side)
    return _average([_rounded(by_size[size][None]) for size in sizes], max(sizes))[0]


def _rounded(maps: torch.Tensor) -> torch.Tensor:
    """Maps (K, h, w) as `pack` rounds each of them, float32, on the CPU. Rounding again changes nothing."""
    divided, peaks = _halves(maps)
    return divided.float() * peaks


def _halves(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (K, h, w) divided by their maxima, float16, and these maxima (K, 1, 1), float32."""
    maps = maps.float().cpu()
    peaks = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(peaks > 0, maps / peaks, maps).half(), peaks


def _average(by_size: Sequence[torch.Tensor], size: Size) -> torch.Tensor:
    """The mean (K, *size) of maps (K, h, w) of several sizes."""
    return torch.stack([upsample(maps, size) for maps in by_size]).mean(dim=0)

"""GroupViT (Xu et al. 2022, "GroupViT: Semantic Segmentation Emerges from Text Supervision"): each pixel
belongs to one group of patches, and each group is scored with the queries.

The scorer follows segmentation/evaluation/group_vit_seg.py of NVlabs/GroupViT. With the groups g, the whole
image m, the texts t, all of length 1, and the factor s:

    P = softmax of s g.t over all queries
    Q = softmax of s g.t over the queries of the 5 classes with the largest m.t, and 0 for the others
    score = P Q

A pixel has the score of its group. A class with several names has the m.t and the score of its best name, and
each word of the background is a class of its own. With one name for each class, this is the original.
"""

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GroupViTModel

from attn2mask.builders.classes import ClassTable
from attn2mask.training.zeroshot.decision import Decision
from attn2mask.training.zeroshot.protocol import Protocol
from attn2mask.training.zeroshot.segmenter import (
    Preprocessor,
    Scores,
    Segmenter,
    padded,
    text_directions,
    text_encoder,
)
from attn2mask.training.zeroshot.weights import find_folder, load_model, load_tokenizer, record_of

BACKGROUNDS = ("none", "threshold", "words")
WEIGHTS = "nvidia/groupvit-gcc-yfcc"
CANDIDATES = 5  # classes that Q is over
_LARGEST_SCALE = 100.0


class GroupScorer(nn.Module):
    """A vision tower of GroupViT with the directions (Q, E) of the queries, which scores every pixel by its
    group.

    Under the rule "threshold", the values are of the ids of the table. The background is 1 where the largest
    score of the group is below the threshold, and 0 elsewhere. If no score of any group in the window reaches
    the threshold, the largest one is the threshold. Under the other rules, the values are of the queries.

    Args:
        tower: the `vision_model` of a GroupViT.
        projection: from the groups of the tower to the space of the texts, for vectors (N, D).
        scale: the model's own factor before the softmax. It is at most 100.
    """

    def __init__(
        self, tower: nn.Module, projection: nn.Module, directions: Tensor, scale: float, protocol: Protocol
    ) -> None:
        super().__init__()
        self.tower, self.projection = tower, projection
        self.scale = min(scale, _LARGEST_SCALE) if protocol.scale is None else protocol.scale
        self.counts = [*map(len, protocol.names), *[1] * len(protocol.words)]
        self.threshold = protocol.threshold if protocol.background == "threshold" else None
        self.register_buffer("directions", directions)

    def forward(self, pixel_values: Tensor) -> Scores:
        pixels = padded(pixel_values, self.tower.config.patch_size)
        tokens, shares = grouped(self.tower, pixels)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)  # the whole image, then its groups
        vectors = self.projection(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2]).float()
        image, groups = F.normalize(vectors, dim=-1).split([1, tokens.shape[1] - 1], 1)
        scores = group_scores(image[:, 0], groups, self.directions, self.scale, self.counts)
        if self.threshold is not None:
            scores = with_background(class_maxima(scores, self.counts), self.threshold)
        shares = F.interpolate(shares, pixels.shape[-2:], mode="bilinear", align_corners=False)
        height, width = pixel_values.shape[-2:]
        group = shares.argmax(1)[:, :height, :width]
        rows = torch.take_along_dim(scores.transpose(1, 2), group.flatten(1)[:, None], 2)
        return Scores(rows.unflatten(2, (height, width)))


def grouped(tower: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The groups (N, G, D) after the final norm, and their shares (N, G, h, w) of each patch, which have the
    sum 1 over the groups. The sides of the pixels (N, 3, H, W) must be multiples of the patch.
    """
    tokens = tower.embeddings(pixels, interpolate_pos_encoding=True)
    found = tower.encoder(hidden_states=tokens, output_attentions=True, return_dict=True)
    shares = reduce(lambda earlier, later: later @ earlier, found.attentions)  # (N, groups, tokens) each
    patch = tower.config.patch_size
    shape = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
    return tower.layernorm(found.last_hidden_state), shares.unflatten(2, shape)


def group_scores(
    image: Tensor, groups: Tensor, directions: Tensor, scale: float, counts: Sequence[int]
) -> Tensor:
    """The scores (N, G, Q), 0 to 1, of images (N, E) with groups (N, G, E), for directions (Q, E). All of
    these vectors have the length 1. `counts` says how many successive queries are names of each class.
    """
    logits = scale * groups @ directions.T
    fit = class_maxima(image @ directions.T, counts)
    best = fit.topk(min(CANDIDATES, len(counts))).indices
    candidate = torch.zeros_like(fit, dtype=torch.bool).scatter(1, best, True)
    candidate = candidate.repeat_interleave(torch.tensor(counts, device=candidate.device), 1)
    among = logits.masked_fill(~candidate[:, None], -torch.inf)
    return logits.softmax(-1) * among.softmax(-1)


def class_maxima(values: Tensor, counts: Sequence[int]) -> Tensor:
    """The largest values (..., C) of each class for values (..., Q) of its names."""
    return torch.stack([part.amax(-1) for part in values.split(list(counts), -1)], -1)


def with_background(scores: Tensor, threshold: float) -> Tensor:
    """The values (N, G, 1 + C) of the background and of the classes, for scores (N, G, C)."""
    limit = scores.amax((1, 2)).clamp(max=threshold)[:, None, None]
    background = scores.amax(2, keepdim=True) < limit
    return torch.cat([background.to(scores), scores], 2)


def decision(table: ClassTable, protocol: Protocol) -> Decision:
    """How the values of a `GroupScorer` become ids."""
    return Decision(table, protocol, activation="none", channels=protocol.background == "threshold")


def load(weights: str, protocol: Protocol, table: ClassTable) -> Segmenter:
    """GroupViT of transformers' format."""
    folder = find_folder(weights)
    model = load_model(folder, GroupViTModel, weights)
    directions = text_directions(text_encoder(model, load_tokenizer(folder, weights)), protocol)
    network = GroupScorer(
        model.vision_model, model.visual_projection, directions, model.logit_scale.exp().item(), protocol
    )
    return Segmenter(
        network,
        Preprocessor(protocol, "imagenet"),
        decision(table, protocol),
        record_of(weights, folder),
    )

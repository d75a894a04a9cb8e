"""ALIGN (Jia et al. 2021, "Scaling Up Visual and Vision-Language Representation Learning With Noisy Text
Supervision"): the map of its EfficientNet before the mean, compared with the texts at every place.
"""

from torch import Tensor, nn
from transformers import AlignModel

from attn2mask.builders.classes import ClassTable
from attn2mask.training.zeroshot.decision import Decision
from attn2mask.training.zeroshot.protocol import Protocol
from attn2mask.training.zeroshot.segmenter import (
    Preprocessor,
    Scores,
    Segmenter,
    as_map,
    padded,
    text_directions,
    text_encoder,
)
from attn2mask.training.zeroshot.weights import find_folder, load_model, load_tokenizer, record_of

BACKGROUNDS = ("none", "threshold", "words")
WEIGHTS = "kakaobrain/align-base"
STRIDE = 32  # of the map, in pixels


class DenseALIGN(nn.Module):
    """ALIGN with the directions (Q, E) of the queries."""

    def __init__(self, model: AlignModel, directions: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("directions", directions)

    def forward(self, pixel_values: Tensor) -> Scores:
        """The cosine of each place with each query. Sides become multiples of `STRIDE` by padding."""
        features = self.model.vision_model(padded(pixel_values, STRIDE)).last_hidden_state
        return Scores(as_map(features.flatten(2).mT, self.directions, features.shape[-2:]))


def load(weights: str, protocol: Protocol, table: ClassTable) -> Segmenter:
    """ALIGN in transformers' format. The factor before the softmax is 1 / temperature."""
    folder = find_folder(weights)
    model = load_model(folder, AlignModel, weights)
    directions = text_directions(text_encoder(model, load_tokenizer(folder, weights)), protocol)
    scale = 1 / model.temperature.item() if protocol.scale is None else protocol.scale
    return Segmenter(
        DenseALIGN(model, directions),
        Preprocessor(protocol, "half"),
        Decision(table, protocol, scale=scale),
        record_of(weights, folder),
    )

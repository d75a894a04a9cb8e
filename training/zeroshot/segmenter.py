"""What a zero-shot segmenter is, and the methods by name.

    segmenter = load_segmenter("maskclip", "openai/clip-vit-base-patch16", protocol, table)

A method is a module of this package with a function `load(weights, protocol, table)` that returns a
`Segmenter`, with `BACKGROUNDS`, the rules for the background that it can have, and with `WEIGHTS`, the
default of `--weights`, or None.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.training.inference import LONGEST
from attn2mask.training.zeroshot.decision import Decision
from attn2mask.training.zeroshot.protocol import COMMON_SIZE, NORMALIZATIONS, Protocol


@dataclass(frozen=True)
class Scores:
    """What the network of a segmenter returns: the values of each query, (N, Q, h, w), float32."""

    logits: Tensor


@dataclass(frozen=True)
class Preprocessor:
    """Resizes images as a protocol says, and normalizes their pixels. It is called as the image processors of
    transformers are.
    """

    protocol: Protocol
    normalization: str  # the model's own, if the protocol names none
    resample: Image.Resampling = Image.Resampling.BILINEAR
    size: int = COMMON_SIZE  # the model's own, if the protocol names none

    def __call__(self, images: Image.Image, return_tensors: str = "pt") -> dict[str, Tensor]:
        """The pixels (1, 3, h, w) float32 of one image. A narrow image is stretched, so that its longer side
        has at most `LONGEST` pixels.
        """
        size, longest = self.protocol.size or self.size, self.protocol.longest
        shorter, longer = sorted(images.size)
        scale = min(size / shorter, longest / longer) if longest else size / shorter
        width, height = (min(max(1, round(side * scale)), max(size, LONGEST)) for side in images.size)
        resized = images.resize((width, height), self.resample)
        if crop := self.protocol.crop:
            left, top = (width - crop) // 2, (height - crop) // 2
            resized = resized.crop((left, top, left + crop, top + crop))
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 255
        mean, std = NORMALIZATIONS[self.protocol.normalization or self.normalization]
        return {
            "pixel_values": (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        }


@dataclass(frozen=True)
class Segmenter:
    """A method with its weights, for one class table and one protocol.

    Attributes:
        network: called with `pixel_values` (N, 3, h, w) of any size, it returns `Scores` of the queries of
            the protocol, at any size.
        preprocessor: makes the pixels.
        decision: makes ids of the values.
        record: what a reader of the scores has to know: `weights`, `revision`, and what the method adds.
    """

    network: nn.Module
    preprocessor: Preprocessor
    decision: Decision
    record: dict[str, Any]


def load_segmenter(method: str, weights: str | None, protocol: Protocol, table: ClassTable) -> Segmenter:
    """A method with its weights. Raises UserError for weights of another method and for a rule for the
    background that the method does not have.
    """
    module = import_module(f"attn2mask.training.zeroshot.{method}")
    if protocol.background not in module.BACKGROUNDS:
        raise UserError(
            f"--background {protocol.background}: {method} has no such rule; choose from"
            f" {', '.join(module.BACKGROUNDS)}"
        )
    weights = weights or module.WEIGHTS
    if weights is None:
        raise UserError(f"--method {method} needs --weights: there is no model of it on the Hub")
    return module.load(weights, protocol, table)


Encode = Callable[[list[str]], Tensor]


def text_encoder(model: Any, tokenizer: Any) -> Encode:
    """A function that makes vectors (N, D) of N texts with a model that has `get_text_features`."""
    length = model.config.text_config.max_position_embeddings

    def encode(texts: list[str]) -> Tensor:
        tokens = tokenizer(texts, padding=True, max_length=length, truncation=True, return_tensors="pt").to(
            model.device
        )
        return model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output

    return encode


@torch.no_grad()
def text_directions(encode: Encode, protocol: Protocol, batch_size: int = 256) -> Tensor:
    """The direction (Q, D) of each query: the mean of the unit vectors of its prompts, as a unit vector.

    `encode` makes vectors (N, D) of N texts.
    """
    directions = []
    for query in protocol.queries:
        texts = protocol.prompts(query)
        vectors = torch.cat(
            [encode(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        )
        directions.append(F.normalize(F.normalize(vectors.float(), dim=-1).mean(0), dim=0))
    return torch.stack(directions)


def padded(pixels: Tensor, multiple: int) -> Tensor:
    """Pixels (N, 3, h, w) with zeros at the right and at the bottom; `multiple` divides both sides."""
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, -width % multiple, 0, -height % multiple))


def as_map(tokens: Tensor, directions: Tensor, shape: Sequence[int]) -> Tensor:
    """The cosines (N, Q, h, w) of tokens (N, h * w, D) with directions (Q, D) of length 1."""
    values = F.normalize(tokens.float(), dim=-1) @ directions.to(tokens.device).T
    return values.transpose(1, 2).unflatten(2, tuple(shape))

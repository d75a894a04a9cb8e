"""CLIPSeg (Lüddecke and Ecker 2022, "Image Segmentation Using Text and Image Prompts"): a decoder on CLIP,
trained with masks of PhraseCut, makes the logits of one text.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import CLIPSegForImageSegmentation

from attn2mask.builders.classes import ClassTable
from attn2mask.training.zeroshot.decision import Decision
from attn2mask.training.zeroshot.protocol import Protocol
from attn2mask.training.zeroshot.segmenter import Preprocessor, Scores, Segmenter, text_encoder
from attn2mask.training.zeroshot.weights import find_folder, load_model, load_tokenizer, record_of

BACKGROUNDS = ("none", "threshold", "words")
WEIGHTS = "CIDAS/clipseg-rd64-refined"
_PROMPTS = 16  # that are decoded at once, so that memory does not grow with the number of queries


class DenseCLIPSeg(nn.Module):
    """CLIPSeg with the text vectors (Q, T, E) of Q queries with T prompts each."""

    def __init__(self, model: CLIPSegForImageSegmentation, texts: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("texts", texts)

    def forward(self, pixel_values: Tensor) -> Scores:
        """The logits of each query at the size of the pixels: the mean over its prompts. The decoder takes
        squares of whole patches alone, so the image is padded with zeros, and the logits are cut.
        """
        height, width = pixel_values.shape[-2:]
        patch = self.model.config.vision_config.patch_size
        side = -(-max(height, width) // patch) * patch
        square = pad(pixel_values, (0, side - width, 0, side - height))
        states = self.model.clip.vision_model(square, output_hidden_states=True).hidden_states
        logits = [
            self._decoded([states[layer + 1][[image]] for layer in self.model.extract_layers])
            for image in range(len(square))
        ]
        return Scores(torch.stack(logits)[..., :height, :width])

    def _decoded(self, states: list[Tensor]) -> Tensor:
        """The logits (Q, side, side) of one image, from the states (1, L, D) of some layers of its tower."""
        parts = []
        for texts in self.texts.split(max(1, _PROMPTS // self.texts.shape[1])):
            prompts = texts.flatten(0, 1)
            repeated = [state.expand(len(prompts), -1, -1) for state in states]
            logits = self.model.decoder(repeated, prompts).logits
            parts.append(logits.unflatten(0, texts.shape[:2]).mean(1))
        return torch.cat(parts).float()


@torch.no_grad()
def load(weights: str, protocol: Protocol, table: ClassTable) -> Segmenter:
    """CLIPSeg in transformers' format. The record says that it was trained with masks."""
    folder = find_folder(weights)
    model = load_model(folder, CLIPSegForImageSegmentation, weights)
    encode = text_encoder(model.clip, load_tokenizer(folder, weights))
    texts = torch.stack([encode(protocol.prompts(query)) for query in protocol.queries])
    return Segmenter(
        DenseCLIPSeg(model, texts),
        Preprocessor(protocol, "imagenet"),
        Decision(table, protocol, activation="sigmoid"),
        {**record_of(weights, folder), "trained_with_masks": True},
    )

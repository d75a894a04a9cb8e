"""CLIPSeg's logits against one call of the model for each prompt."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPSegForImageSegmentation, CLIPTokenizer
from zeroshot_models import save_clipseg

from attn2mask.builders.table_reader import load_table
from attn2mask.training.zeroshot.protocol import Protocol, common
from attn2mask.training.zeroshot.segmenter import load_segmenter

VOC = load_table("voc")
PROTOCOL = common(VOC, words=["sky", "grass"], size=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_clipseg(tmp_path_factory.mktemp("clipseg"))


def logits_of_queries(folder: Path, protocol: Protocol, image: Tensor) -> Tensor:
    """The mean logits (Q, side, side) over the prompts, for a square image (3, side, side)."""
    model, tokenizer = (
        CLIPSegForImageSegmentation.from_pretrained(folder),
        CLIPTokenizer.from_pretrained(folder),
    )
    means = []
    for query in protocol.queries:
        prompts = protocol.prompts(query)
        logits = [
            model(**tokenizer([text], return_tensors="pt"), pixel_values=image[None]).logits.squeeze(0)
            for text in prompts
        ]
        means.append(sum(logits) / len(prompts))
    return torch.stack(means)


@pytest.mark.parametrize(
    ("size", "side"), [((32, 32), 32), ((48, 48), 48), ((24, 40), 40), ((43, 30), 48), ((45, 45), 48)]
)
@torch.no_grad()
def test_the_values_are_the_models_own_logits(folder, size, side):
    network = load_segmenter("clipseg", str(folder), PROTOCOL, VOC).network
    assert len(PROTOCOL.queries) > 32  # they are decoded in several parts
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    found = network(pixel_values=images).logits
    square = torch.zeros(2, 3, side, side)
    square[..., : size[0], : size[1]] = images
    for image, values in zip(square, found, strict=True):
        wanted = logits_of_queries(folder, PROTOCOL, image)[:, : size[0], : size[1]]
        torch.testing.assert_close(values, wanted, rtol=0, atol=1e-4)
    assert found.std(1).mean() > 0.1


@torch.no_grad()
def test_a_query_has_the_mean_logits_of_its_prompts(folder):
    protocol = replace(PROTOCOL, templates=("photo", "article"))
    network = load_segmenter("clipseg", str(folder), protocol, VOC).network
    image = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = network(pixel_values=image[None]).logits[0]
    torch.testing.assert_close(found, logits_of_queries(folder, protocol, image), rtol=0, atol=1e-4)


def test_its_probabilities_are_independent_and_its_record_names_the_masks(folder):
    segmenter = load_segmenter("clipseg", str(folder), PROTOCOL, VOC)
    assert segmenter.decision.activation == "sigmoid"
    assert segmenter.decision.scale == 1
    assert segmenter.record["trained_with_masks"] is True
    assert segmenter.record["weights"] == str(folder)


def test_pixels_have_the_mean_and_deviation_of_imagenet(folder):
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    segmenter = load_segmenter("clipseg", str(folder), PROTOCOL, VOC)
    found = segmenter.preprocessor(images=Image.fromarray(image))["pixel_values"]
    wanted = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    torch.testing.assert_close(found, torch.from_numpy(wanted).permute(2, 0, 1)[None].float())

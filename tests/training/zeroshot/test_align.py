"""ALIGN's dense map against plain products, and against ALIGN's own scores of whole images."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AlignModel, AutoTokenizer
from zeroshot_models import save_align

from attn2mask.builders.table_reader import load_table
from attn2mask.training.zeroshot.protocol import common
from attn2mask.training.zeroshot.segmenter import load_segmenter

VOC = load_table("voc")
PROTOCOL = common(VOC, size=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_align(tmp_path_factory.mktemp("align"))


@pytest.mark.parametrize(("size", "shape"), [((64, 64), (2, 2)), ((70, 50), (3, 2)), ((20, 129), (1, 5))])
@torch.no_grad()
def test_every_place_is_compared_with_every_text(folder, size, shape):
    network = load_segmenter("align", str(folder), PROTOCOL, VOC).network
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    found = network(pixel_values=images).logits
    assert found.shape == (2, len(PROTOCOL.queries), *shape)
    whole = torch.zeros(2, 3, 32 * shape[0], 32 * shape[1])
    whole[..., : size[0], : size[1]] = images
    features = AlignModel.from_pretrained(folder).vision_model(whole).last_hidden_state
    for image, row, column in np.ndindex(2, *shape):
        vector = features[image, :, row, column]
        wanted = network.directions @ (vector / vector.norm())
        torch.testing.assert_close(found[image, :, row, column], wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_mean_of_the_map_has_the_scores_of_the_whole_image(folder):
    segmenter = load_segmenter("align", str(folder), PROTOCOL, VOC)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model, tokenizer = AlignModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = tokenizer([f"a photo of a {query}." for query in PROTOCOL.queries], padding=True, truncation=True)
    wanted = model(**texts.convert_to_tensors("pt"), pixel_values=images).logits_per_image
    mean = F.normalize(model.vision_model(images).last_hidden_state.mean((2, 3)), dim=1)
    found = segmenter.decision.scale * mean @ segmenter.network.directions.T
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert found.std(1).min() > 0.1
    assert segmenter.decision.activation == "softmax"


def test_pixels_lie_in_minus_one_to_one(folder):
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    pixels = load_segmenter("align", str(folder), PROTOCOL, VOC).preprocessor(images=Image.fromarray(image))
    wanted = torch.from_numpy(image / 127.5 - 1).permute(2, 0, 1)[None].float()
    torch.testing.assert_close(pixels["pixel_values"], wanted, rtol=0, atol=1e-6)

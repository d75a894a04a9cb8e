"""MaskCLIP, SCLIP and NACLIP against plain matrix products of every block."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer
from zeroshot_models import PATCH, SIZE, save_clip

from attn2mask.builders.table_reader import load_table
from attn2mask.training.zeroshot.protocol import common, original
from attn2mask.training.zeroshot.segmenter import load_segmenter

VOC = load_table("voc")
PROTOCOL = common(VOC)
METHODS = ("maskclip", "sclip", "naclip")
# The own size, a larger one, one that is not square, and one that patches do not divide.
SIZES = ((SIZE, SIZE), (48, 48), (24, 40), (30, 45))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def exact_gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def softmax(x: Tensor) -> Tensor:
    return x.exp() / x.exp().sum(-1, keepdim=True)


def gaussian(height: int, width: int) -> Tensor:
    """NACLIP's window: the class token, and then the patches row by row."""
    places = [(y, x) for y in range(height) for x in range(width)]
    window = torch.zeros(1 + len(places), 1 + len(places), dtype=torch.float64)
    for i, (y, x) in enumerate(places):
        for j, (v, u) in enumerate(places):
            window[1 + i, 1 + j] = math.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * 5**2))
    return window


def normed(x: Tensor, norm: nn.LayerNorm, eps: float) -> Tensor:
    variance = x.var(-1, keepdim=True, unbiased=False)
    return (x - x.mean(-1, keepdim=True)) / (variance + eps).sqrt() * norm.weight + norm.bias


def attended(layer: nn.Module, x: Tensor, weights: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The output of an attention for normalized tokens (L, D), head by head. `weights` makes the weights of
    a head (L, L) of its queries and keys, which have the scale in them.
    """
    attention, heads = layer.self_attn, []
    depth = x.shape[1] // 4
    for head in range(4):
        rows = slice(head * depth, (head + 1) * depth)
        q, k, v = (
            x @ part.weight[rows].T + part.bias[rows]
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        heads.append(weights(q / depth**0.25, k / depth**0.25) @ v)
    return attention.out_proj(torch.cat(heads, 1))


def expected(
    method: str,
    model: CLIPModel,
    image: Tensor,
    directions: Tensor,
    gelu: Callable[[Tensor], Tensor] = quick_gelu,
    eps: float = 1e-5,
) -> Tensor:
    """The cosines (Q, h, w) of one image (3, H, W), in float64."""
    tower, image = copy.deepcopy(model).double().vision_model, image.double()
    image = F.pad(image, (0, -image.shape[2] % PATCH, 0, -image.shape[1] % PATCH))
    patches = F.conv2d(image[None], tower.embeddings.patch_embedding.weight, stride=PATCH)
    height, width = patches.shape[-2:]
    places = tower.embeddings.position_embedding.weight
    own = SIZE // PATCH
    grid = places[1:].T.unflatten(1, (own, own))[None]
    grid = F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)
    x = torch.cat([(tower.embeddings.class_embedding + places[0])[None], (patches + grid)[0].flatten(1).T])
    x = normed(x, tower.pre_layrnorm, eps)

    def mlp(layer: nn.Module, x: Tensor) -> Tensor:
        return layer.mlp.fc2(gelu(layer.mlp.fc1(normed(x, layer.layer_norm2, eps))))

    *layers, last = tower.encoder.layers
    for layer in layers:
        x = x + attended(layer, normed(x, layer.layer_norm1, eps), lambda q, k: softmax(q @ k.T))
        x = x + mlp(layer, x)
    inside = normed(x, last.layer_norm1, eps)
    if method == "maskclip":
        x = x + attended(last, inside, lambda q, k: torch.eye(len(q)).double())
        x = x + mlp(last, x)
    elif method == "sclip":
        x = x + attended(last, inside, lambda q, k: softmax(q @ q.T) + softmax(k @ k.T))
        x = x + mlp(last, x)
    else:
        x = attended(last, inside, lambda q, k: softmax(k @ k.T + gaussian(height, width)))
    vectors = normed(x, tower.post_layernorm, eps)[1:] @ model.visual_projection.weight.T.double()
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    return (directions.double() @ vectors.T).unflatten(1, (height, width))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_every_patch_is_scored_by_the_last_block_of_the_method(folder, method, size):
    network = load_segmenter(method, str(folder), PROTOCOL, VOC).network
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    found = network(pixel_values=images).logits
    model = CLIPModel.from_pretrained(folder)
    for image, values in zip(images, found, strict=True):
        wanted = expected(method, model, image, network.directions)
        torch.testing.assert_close(values, wanted.float(), rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_methods_differ(folder):
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    values = [
        load_segmenter(method, str(folder), PROTOCOL, VOC).network(pixel_values=image).logits
        for method in METHODS
    ]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (values[first] - values[second]).abs().max() > 0.05


@torch.no_grad()
def test_the_original_maskclip_has_the_exact_gelu_and_another_eps(folder):
    network = load_segmenter("maskclip", str(folder), original("maskclip", VOC), VOC).network
    embeddings = network.model.vision_model.embeddings
    for weight in (embeddings.patch_embedding.weight, embeddings.position_embedding.weight):
        weight *= 1e-3  # so small that eps counts
    embeddings.class_embedding *= 1e-3
    image = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    found = network(pixel_values=image[None]).logits[0].double()

    def error(gelu: Callable[[Tensor], Tensor], eps: float) -> float:
        wanted = expected("maskclip", network.model, image, network.directions, gelu, eps)
        return (found - wanted).abs().max().item()

    assert error(exact_gelu, 1e-6) < 1e-5
    assert error(exact_gelu, 1e-5) > 1e-3
    assert error(quick_gelu, 1e-6) > 1e-3


@torch.no_grad()
def test_a_query_is_the_mean_of_its_prompts(folder):
    protocol = replace(PROTOCOL, templates=("photo", "article"))
    found = load_segmenter("sclip", str(folder), protocol, VOC).network.directions
    model, tokenizer = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    for query, direction in zip(protocol.queries, found, strict=True):
        mean = torch.zeros(16)
        for text in (f"a photo of a {query}.", f"a photo of {'an' if query[0] in 'aeio' else 'a'} {query}"):
            tokens = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt")
            vector = model.get_text_features(**tokens).pooler_output[0]
            mean += vector / vector.norm() / 2
        torch.testing.assert_close(direction, mean / mean.norm(), rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_factor_of_the_softmax_is_the_models_or_that_of_the_publication(folder):
    own = CLIPModel.from_pretrained(folder).logit_scale.exp().item()
    for method, scale in (("maskclip", own), ("sclip", 65), ("naclip", 40)):
        assert load_segmenter(method, str(folder), PROTOCOL, VOC).decision.scale == pytest.approx(own)
        short = replace(original(method, VOC), templates=("photo",))
        assert load_segmenter(method, str(folder), short, VOC).decision.scale == pytest.approx(scale)

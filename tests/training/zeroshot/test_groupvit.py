"""GroupViT: its tower at any size, and its scorer against the steps of the original, one pixel at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from zeroshot_models_grouping import PATCH, SIZE, clip_tokenizer, save_model, tiny_groupvit

from attn2mask.builders.table_reader import load_table
from attn2mask.training.zeroshot.groupvit import class_maxima, group_scores, grouped, with_background
from attn2mask.training.zeroshot.protocol import Protocol, common, original
from attn2mask.training.zeroshot.segmenter import Segmenter, load_segmenter

TABLE = load_table("voc")
SIZES = [(SIZE, SIZE), (SIZE, SIZE + 2 * PATCH)]


def protocol_of(background: str) -> Protocol:
    """One name for each class, except for two classes."""
    protocol = common(TABLE, background, size=SIZE)
    names = [(names[0],) for names in protocol.names]
    names[0], names[4] = ("plane", "jet"), ("bottle", "flask", "jar")
    return replace(protocol, names=tuple(names))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("groupvit")
    save_model("groupvit", path)
    return path


def load(folder, protocol: Protocol) -> Segmenter:
    return load_segmenter("groupvit", str(folder), protocol, TABLE)


def pixels_of(size: tuple[int, int], images: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(images, 3, *size) * torch.linspace(0.2, 3, size[1])


def trained_at(size: tuple[int, int]):
    """The tiny model, as if it had been trained at another size, with position embeddings of this size."""
    model, state = tiny_groupvit(size), tiny_groupvit().state_dict()
    name = "vision_model.embeddings.position_embeddings"
    square = state[name].transpose(1, 2).unflatten(2, (SIZE // PATCH, SIZE // PATCH))
    resized = F.interpolate(square, (size[0] // PATCH, size[1] // PATCH), mode="bicubic")
    model.load_state_dict(state | {name: resized.flatten(2).transpose(1, 2)})
    return model


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_the_tower_at_any_size_is_that_of_transformers(size):
    pixels = pixels_of(size)
    expected = trained_at(size).vision_model(pixels, output_attentions=True)
    first, second = expected.attentions
    tokens, shares = grouped(tiny_groupvit().vision_model, pixels)
    torch.testing.assert_close(tokens, expected.last_hidden_state)
    places = shares.flatten(2).transpose(1, 2)
    torch.testing.assert_close(places, first.transpose(1, 2) @ second.transpose(1, 2))
    torch.testing.assert_close(shares.sum(1), torch.ones(2, size[0] // PATCH, size[1] // PATCH))


@torch.no_grad()
def text_directions(queries: tuple[str, ...]) -> list[Tensor]:
    model, tokenizer, found = tiny_groupvit(), clip_tokenizer(), []
    for query in queries:
        tokens = tokenizer(f"a photo of a {query}.", return_tensors="pt")
        found.append(unit(model.get_text_features(**tokens).pooler_output[0]))
    return found


def unit(vector: Tensor) -> Tensor:
    return vector / vector.square().sum().sqrt()


def bilinear(values: Tensor, y: float, x: float) -> Tensor:
    """The values (G,) at a place in points of a map (G, h, w), which continues beyond its border."""
    height, width = values.shape[1:]
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = values[:, top, left] * (1 - (x - left)) + values[:, top, right] * (x - left)
    lower = values[:, bottom, left] * (1 - (x - left)) + values[:, bottom, right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


@torch.no_grad()
def expected_of(model, texts: list[Tensor], pixels: Tensor, protocol: Protocol) -> Tensor:
    """The values of a window (3, H, W), step by step: of the queries, or of the ids with a threshold."""
    output = model.vision_model(pixels[None], output_attentions=True)
    first, second = output.attentions
    height, width = pixels.shape[1] // PATCH, pixels.shape[2] // PATCH
    soft = (first[0].T @ second[0].T).T.reshape(-1, height, width)
    tokens = output.last_hidden_state[0]
    groups = [unit(model.visual_projection(token[None])[0]) for token in tokens]
    image = unit(model.visual_projection(tokens.mean(0)[None])[0])
    scale = min(float(model.logit_scale.exp()), 100)
    # Which queries are the names of each class; each word is a class of its own.
    classes, start = [], 0
    for names in [*protocol.names, *([word] for word in protocol.words)]:
        classes.append(range(start, start + len(names)))
        start += len(names)
    fits = [max(float(image @ texts[query]) for query in queries) for queries in classes]
    best = sorted(range(len(classes)), key=lambda each: -fits[each])[:5]
    candidates = {query for each in best for query in classes[each]}
    score = []
    for group in groups:
        exponentials = [float(torch.exp(scale * (group @ text)).double()) for text in texts]
        among = sum(exponentials[query] for query in candidates)
        score.append(
            [
                value / sum(exponentials) * (value / among if query in candidates else 0)
                for query, value in enumerate(exponentials)
            ]
        )
    if protocol.background == "threshold":
        score = [[max(row[query] for query in queries) for queries in classes] for row in score]
        limit = min(protocol.threshold, max(map(max, score)))
        score = [[float(max(row) < limit), *row] for row in score]
    values = torch.zeros(len(score[0]), *pixels.shape[1:])
    for y in range(pixels.shape[1]):
        for x in range(pixels.shape[2]):
            place = (y + 0.5) / PATCH - 0.5, (x + 0.5) / PATCH - 0.5
            values[:, y, x] = torch.tensor(score[int(bilinear(soft, *place).argmax())])
    return values


@pytest.mark.parametrize("background", ["none", "threshold", "words"])
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_the_scores_are_those_of_the_original_step_by_step(folder, size, background):
    protocol, pixels = protocol_of(background), pixels_of(size)
    found = load(folder, protocol).network.eval()(pixels).logits
    model, texts = trained_at(size), text_directions(protocol.queries)
    expected = torch.stack([expected_of(model, texts, image, protocol) for image in pixels])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    assert len(expected[0].flatten(1).unique(dim=1).T) > 1  # several groups
    assert not expected[0].equal(expected[1])


@torch.no_grad()
def test_every_image_of_a_batch_has_its_own_classes_and_threshold(folder):
    network = load(folder, replace(protocol_of("threshold"), threshold=0.9)).network.eval()
    pixels = pixels_of((SIZE, SIZE), 3)
    alone = torch.cat([network(image[None]).logits for image in pixels])
    torch.testing.assert_close(network(pixels).logits, alone)
    for values in alone:
        chosen = values[1:].amax((1, 2)) > 0
        assert chosen.sum() <= 5
        assert values[0].sum() > 0  # some background
    assert len({tuple((values[1:].amax((1, 2)) > 0).tolist()) for values in alone}) > 1


def test_the_threshold_is_at_most_the_largest_score():
    scores = torch.tensor([[[0.2, 0.3], [0.1, 0.25]], [[0.99, 0.0], [0.5, 0.4]]])
    background = with_background(scores, 0.95)[..., 0]
    assert background.tolist() == [[0, 1], [0, 1]]
    assert with_background(scores, 0.25)[..., 0].tolist() == [[0, 0], [0, 0]]
    torch.testing.assert_close(with_background(scores, 0.95)[..., 1:], scores)


def test_names_of_one_class_count_as_one_candidate():
    """Six names of the first class fit the image best, but four other classes are candidates beside it."""
    angles = torch.tensor([0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.3, 0.4, 0.5, 0.6, 0.7])
    directions = torch.stack([angles.cos(), angles.sin()], 1)
    image = torch.tensor([[1.0, 0.0]])
    scores = group_scores(image, image[:, None], directions, 3.0, [6, 1, 1, 1, 1, 1])
    assert (class_maxima(scores, [6, 1, 1, 1, 1, 1])[0, 0] > 0).tolist() == [True] * 5 + [False]
    powers = (3 * angles.cos()).exp()
    torch.testing.assert_close(scores[0, 0, :10], powers[:10] ** 2 / powers.sum() / powers[:10].sum())


@torch.no_grad()
def test_a_window_that_the_patch_does_not_divide_is_padded(folder):
    network = load(folder, protocol_of("none")).network.eval()
    pixels = pixels_of((SIZE - 3, SIZE - 5))
    whole = network(F.pad(pixels, (0, 5, 0, 3))).logits
    found = network(pixels).logits
    assert found.shape[-2:] == (SIZE - 3, SIZE - 5)
    torch.testing.assert_close(found, whole[..., : SIZE - 3, : SIZE - 5])


@torch.no_grad()
def test_the_original_protocol_gives_ids(folder):
    segmenter = load(folder, original("groupvit", TABLE))
    assert segmenter.decision.channels
    assert segmenter.decision.activation == "none"
    image = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    values = segmenter.network.eval()(pixels_of((SIZE, SIZE), 1)).logits
    assert values.shape == (1, 21, SIZE, SIZE)
    (ids,) = segmenter.decision(values, image)
    assert ids.shape == (24, 36)
    assert 0 in ids


@torch.no_grad()
def test_the_factor_is_at_most_100_and_the_protocol_can_set_it(folder, tmp_path):
    assert load(folder, protocol_of("none")).network.scale == pytest.approx(10)
    assert load(folder, replace(protocol_of("none"), scale=7.0)).network.scale == 7
    model = tiny_groupvit()
    model.logit_scale.data.fill_(6.0)
    model.save_pretrained(tmp_path)
    clip_tokenizer().save_pretrained(tmp_path)
    assert load(tmp_path, protocol_of("none")).network.scale == 100


def test_images_have_the_normalization_of_imagenet(folder):
    preprocessor = load(folder, protocol_of("none")).preprocessor
    pixels = preprocessor(Image.new("RGB", (SIZE, SIZE), (124, 116, 104)))["pixel_values"]
    assert pixels.abs().max() < 0.02

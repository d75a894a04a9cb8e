"""The scores of the painter's attention are those of maps that are recorded and averaged by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from attn2mask.builders.drawn.scenes import draw_scene
from attn2mask.builders.errors import UserError
from attn2mask.builders.painter import load_painter
from attn2mask.builders.recorder import AttentionRecorder
from attn2mask.builders.table_reader import load_table
from attn2mask.training.zeroshot.protocol import common, original
from attn2mask.training.zeroshot.segmenter import load_segmenter

PETS = """
name: pets
classes:
  - {name: dog}
  - {name: bus, base: [bus]}
  - {name: cat}
"""


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    file = tmp_path_factory.mktemp("tables") / "pets.yaml"
    file.write_text(PETS)
    return load_table(str(file))


def pixels_of(side: int, count: int = 1) -> torch.Tensor:
    scenes = [draw_scene("objects", np.random.default_rng([83_000_002, i]), side) for i in range(count)]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    return images.permute(0, 3, 1, 2).float() / 255 * 2 - 1


@torch.no_grad()
def attention_by_hand(painter, pixels: torch.Tensor, text: str, word: str, sides: tuple[int, ...]):
    """The mean attention (h, w) to a word of one token: maps with these sides, resized to the first."""
    pipe = painter.pipe
    tokens = pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer(text).input_ids)
    place = tokens.index(word)
    states = pipe.encode_prompt(text, "cpu", 1, False)[0]
    latents = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    kept = pipe.scheduler.alphas_cumprod[350]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    with AttentionRecorder(pipe.unet, [{"word": (place,)}]) as recorder:
        pipe.unet(kept**0.5 * latents + (1 - kept) ** 0.5 * noise, 350, states)
    maps = [recorder.maps[0]["word"][side, side][None, None] for side in sides]
    resized = [F.interpolate(one, maps[0].shape[-2:], mode="bilinear") for one in maps]
    return torch.stack(resized).mean(0)[0, 0]


def test_common_scores_are_attention_above_its_minimum_as_a_fraction_of_its_maximum(pets):
    protocol = common(pets, "words", words=["grass"])
    assert protocol.queries == ("dog", "bus", "cat", "grass")
    segmenter = load_segmenter("attention", None, protocol, pets)
    pixels = pixels_of(128)
    scores = segmenter.network(pixels).logits
    assert scores.shape == (1, 4, 16, 16)
    painter = load_painter()
    for score, word in zip(scores[0], protocol.queries, strict=True):
        attention = attention_by_hand(painter, pixels, f"a photo of a {word}.", word, (16, 8))
        expected = (attention - attention.min()) / attention.max()
        # Recorded maps are rounded to 16 bits.
        torch.testing.assert_close(score, expected, atol=1e-3, rtol=0)
    assert scores.amax((2, 3)).min() > 0.25


def test_original_scores_are_the_mean_of_more_maps_as_a_fraction_of_its_maximum():
    table = load_table("voc")
    protocol = original("attention", table)
    assert (protocol.threshold, protocol.names[0], protocol.names[-1]) == (
        0.4,
        ("aeroplane",),
        ("tv monitor",),
    )
    segmenter = load_segmenter("attention", "embedded", protocol, table)
    pixels = pixels_of(128)
    scores = segmenter.network(pixels).logits[0]
    assert len(scores) == 20
    for word in ("bird", "horse", "person"):
        attention = attention_by_hand(load_painter(), pixels, f"a photo of a {word}.", word, (16, 8, 4))
        score = scores[protocol.queries.index(word)]
        torch.testing.assert_close(score, attention / attention.max(), atol=1e-3, rtol=0)


def test_the_size_of_the_original_is_that_of_the_painter(tiny_model):
    table = load_table("voc")
    protocol = original("attention", table)
    assert protocol.size is None
    segmenter = load_segmenter("attention", str(tiny_model("sd15")), protocol, table)
    assert segmenter.preprocessor(Image.new("RGB", (300, 200)))["pixel_values"].shape == (1, 3, 128, 192)
    assert segmenter.record["size"] == 128


def test_a_batch_gives_what_single_images_give(pets):
    segmenter = load_segmenter("attention", None, common(pets, "none"), pets)
    pixels = pixels_of(64, 3)
    batch = segmenter.network(pixels).logits
    assert not torch.equal(batch[0], batch[1])
    for image, scores in zip(pixels, batch, strict=True):
        # A library may round in another way for other addresses in memory.
        torch.testing.assert_close(segmenter.network(image[None]).logits[0], scores, atol=1e-3, rtol=0)


def test_sizes_that_the_painter_does_not_have_are_padded_and_cut(pets):
    segmenter = load_segmenter("attention", None, common(pets, "none"), pets)
    pixels = pixels_of(64)[:, :, :60, :50]
    scores = segmenter.network(pixels).logits
    assert scores.shape == (1, 3, 60, 50)
    whole = segmenter.network(F.pad(pixels, (0, 6, 0, 4))).logits
    assert whole.shape == (1, 3, 8, 7)
    # A place has 8 x 8 pixels. The middle of pixel (20, 29) is place (20.5 / 8 - 0.5, 29.5 / 8 - 0.5).
    y, x = 0.0625, 0.1875  # from place (2, 3)
    lines = whole[:, :, 2, 3:5] * (1 - y) + whole[:, :, 3, 3:5] * y
    torch.testing.assert_close(scores[:, :, 20, 29], lines[:, :, 0] * (1 - x) + lines[:, :, 1] * x)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_many_classes_are_asked_for_in_several_passes(tiny_model, kind):
    table = load_table("cityscapes")
    protocol = common(table)
    assert len(protocol.queries) > 19
    segmenter = load_segmenter("attention", str(tiny_model(kind)), protocol, table)
    pixels = pixels_of(64)
    scores = segmenter.network(pixels).logits
    assert scores.shape[:2] == (1, len(protocol.queries))
    assert ((scores >= 0) & (scores <= 1)).all()
    image = np.zeros((64, 64, 3), np.uint8)
    assert set(segmenter.decision(scores, image)[0].unique().tolist()) <= set(range(19))


def test_the_record_says_how_the_attention_was_recorded(pets):
    record = load_segmenter("attention", None, common(pets, "threshold"), pets).record
    assert (
        record.items()
        >= {
            "weights": "embedded",
            "pipeline": "StableDiffusionPipeline",
            "preset": "embedded",
            "timestep": 350,
            "noise_seed": 0,
            "passes_per_query": 1,
        }.items()
    )
    assert record["model_version"].startswith("sha256:")


def test_wrong_weights_get_one_line(pets, tmp_path, family_model):
    protocol = common(pets, "none")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    for weights, reason in (
        ("./no-such-painter", "there is no model"),
        (str(tmp_path), "--weights .* is not a diffusers pipeline"),
        (str(family_model("pixart")), "images can be given to Stable Diffusion"),
    ):
        with pytest.raises(UserError, match=reason) as raised:
            load_segmenter("attention", weights, protocol, pets)
        assert "\n" not in str(raised.value)


def test_a_name_that_is_too_long_for_the_painter_gets_one_line(pets):
    protocol = common(pets, "words", words=["grass " * 40])
    with pytest.raises(UserError, match="cannot read the name"):
        load_segmenter("attention", None, protocol, pets)

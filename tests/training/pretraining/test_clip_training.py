"""The small CLIP: its loss, its captions, and its training from scenes to weights that MaskCLIP reads."""

import json
import math

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from attn2mask.builders.drawn.kinds import KINDS
from attn2mask.builders.drawn.scenes import draw_scene
from attn2mask.builders.options import parse
from attn2mask.builders.prompts import find_occurrences
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words.english import plural
from attn2mask.training.pretraining import clip_training, trainer
from attn2mask.training.pretraining.clip_training import (
    Batches,
    CLIPTrainingConfig,
    class_scenes,
    contrast,
    held_out_figures,
    make_clip,
    multi_positive_loss,
    random_crops,
    shown_classes,
    without_place_and_color,
)
from attn2mask.training.pretraining.vocabulary import Captions, make_tokenizer
from attn2mask.training.zeroshot.protocol import common
from attn2mask.training.zeroshot.segmenter import load_segmenter


@pytest.fixture(autouse=True)
def fresh_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def number(name: str) -> int:
    return next(k for k, kind in enumerate(KINDS) if kind.draw.__name__ == name)


DOG, PUPPY, CAT = (number(name) for name in ("dog", "puppy", "kitten"))
DOGS = {"things": [[DOG, "red"], [PUPPY, "blue"]], "place": "on a sandy beach"}
DOG_AND_CAT = {"things": [[CAT, "red"], [DOG, "tan"]], "place": "in a room"}
GROUND = {"things": [], "place": "road"}


class Store:
    """Gray scenes in memory."""

    scenes = (DOGS, DOG_AND_CAT, GROUND)
    images = np.full((3, 128, 128, 3), 127, np.uint8)


# The loss


def test_duplicated_captions_are_positives_of_each_other():
    """Two images share a set of classes: their targets are halves, in the rows and in the columns."""
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.5, 3.0, -1.0], [1.0, 0.0, 4.0]])
    positive = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()

    def spread(line, targets):
        total = math.log(sum(math.exp(value) for value in line))
        return sum((total - line[k]) / len(targets) for k in targets)

    targets = ([0, 1], [0, 1], [2])
    lines = [spread(line, t) for line, t in zip(logits.tolist(), targets, strict=True)]
    columns = [spread(line, t) for line, t in zip(logits.T.tolist(), targets, strict=True)]
    assert float(multi_positive_loss(logits, positive)) == pytest.approx((sum(lines) + sum(columns)) / 6)
    # as positives they cost less than as negatives of each other, where they are similar
    assert multi_positive_loss(logits, positive) != multi_positive_loss(logits, torch.eye(3).bool())


def test_without_duplicates_the_loss_is_that_of_clip():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    rows = [math.log(sum(map(math.exp, line))) - line[k] for k, line in enumerate(logits.tolist())]
    columns = [math.log(sum(map(math.exp, line))) - line[k] for k, line in enumerate(logits.T.tolist())]
    expected = (sum(rows) / 4 + sum(columns) / 4) / 2
    assert float(multi_positive_loss(logits, torch.eye(4).bool())) == pytest.approx(expected)


def test_a_batch_knows_its_positives(tokenizer):
    """Scenes with the same set of classes are positives, whatever their kinds, numbers and places are."""
    batches = Batches(Store(), tokenizer, torch.device("cpu"))
    pixels, ids, positive = batches.draw(np.random.default_rng(1), 8)
    rows = np.sort(np.random.default_rng(1).integers(3, size=8))
    assert set(rows) == {0, 1, 2}
    sets = [({"dog"}, {"dog", "cat"}, {"road"})[row] for row in rows]
    assert pixels.shape == (8, 3, 128, 128)
    assert len(ids) == 8 + 3
    assert positive[:, :8].tolist() == [[one == other for other in sets] for one in sets]
    single = ["dog", "cat", "road"]
    assert positive[:, 8:].tolist() == [[name in shown for name in single] for shown in sets]
    prompts = tokenizer.batch_decode(ids[8:], skip_special_tokens=True)
    table = load_table("voc")
    named = [{table.classes[o.class_index].name for o in find_occurrences(table, text)} for text in prompts]
    assert named == [{"dog"}, {"cat"}, set()]
    assert "road" in prompts[2]


def test_the_loss_is_that_of_the_captions_and_that_of_the_class_words(tokenizer):
    model = make_clip(tokenizer)
    batch = Batches(Store(), tokenizer, torch.device("cpu")).draw(np.random.default_rng(1), 8)
    pixels, ids, positive = batch
    with torch.no_grad():
        loss = float(contrast(model, *batch))
        images = model.get_image_features(pixel_values=pixels).pooler_output
        texts = model.get_text_features(input_ids=ids).pooler_output
        images, texts = (part / part.norm(dim=-1, keepdim=True) for part in (images, texts))
        logits = math.exp(2.6592) * images @ texts.T
        captions, prompts = (
            multi_positive_loss(logits[:, p], positive[:, p]) for p in (range(8), [8, 9, 10])
        )
    assert loss == pytest.approx(float(captions + prompts), rel=1e-5)


# Captions


def test_captions_without_place_and_color_name_the_same_classes():
    captions, table = Captions(), load_table("voc")
    words = {label.name: {*label.base, *label.aliases} for label in table.classes}
    for kind in KINDS:
        words.setdefault(kind.thing, {kind.thing}).update(kind.names)
    for index in range(300):
        kinds = np.random.default_rng([22, index]).choice(len(KINDS), 1 + index % 3)
        scene = {"things": [[int(k), "turquoise"] for k in kinds], "place": "at dusk"}
        text = captions(without_place_and_color(scene), np.random.default_rng(index)).lower()
        assert "turquoise" not in text
        assert "dusk" not in text
        shown = {KINDS[k].thing for k in kinds}
        assert shown_classes(scene) == shown
        for name in shown:
            assert any(form.lower() in text for word in words[name] for form in (word, plural(word))), text
        assert scene["place"] == "at dusk"  # the scene itself stays as it is


def test_a_plain_ground_keeps_its_name():
    assert without_place_and_color(GROUND) == GROUND
    assert shown_classes(GROUND) == {"road"}
    assert "road" in Captions()(without_place_and_color(GROUND), np.random.default_rng(0))


def test_half_of_the_captions_have_no_place_and_no_color(tokenizer, monkeypatch):
    batches, told = Batches(Store(), tokenizer, torch.device("cpu")), []
    monkeypatch.setattr(batches, "captions", lambda scene, rng: told.append(scene) or "a dog")
    batches.draw(np.random.default_rng(0), 600)
    things = [scene for scene in told[:600] if scene["things"]]
    bare = [scene for scene in things if not scene["place"]]
    assert len(bare) / len(things) == pytest.approx(0.5, abs=0.07)
    assert all(color == "" for scene in bare for _, color in scene["things"])
    assert all(color for scene in things if scene["place"] for _, color in scene["things"])


def test_each_class_of_a_batch_gets_one_scene_of_its_own():
    single = class_scenes([DOGS, DOG_AND_CAT, GROUND])
    assert single == {
        "dog": {"things": [[DOG, ""]], "place": ""},
        "cat": {"things": [[CAT, ""]], "place": ""},
        "road": GROUND,
    }


# Images


def test_crops_are_normalized_and_may_be_mirrored():
    ramp = np.broadcast_to(np.arange(128, dtype=np.uint8)[None, None, :, None], (16, 128, 128, 3))
    crops = random_crops(ramp, np.random.default_rng(0))
    assert crops.shape == (16, 3, 128, 128)
    values = (crops * 0.26862954 + 0.48145466)[:, 0] * 255  # red, with the mean and deviation of CLIP
    slopes = values[:, 64, 96] - values[:, 64, 32]
    assert 0 < (slopes > 0).sum() < 16
    assert float(slopes.abs().min()) > 64 * 96 / 128 - 2  # the smallest crop is enlarged the most
    assert float(values.min()) > -0.01
    assert float(values.max()) < 127.01


# The figures of held-out scenes


def test_figures_of_a_model_without_knowledge(tokenizer):
    """All patches and images have one vector: every class is retrieved equally, and areas are at chance."""
    model = make_clip(tokenizer)
    model.visual_projection.weight.data.zero_()
    one, two = (
        [draw_scene("variety", np.random.default_rng(k), 128, things) for k in range(3)]
        for things in (("aeroplane",), ("dog", "bicycle"))
    )
    figures = held_out_figures(model, tokenizer, [*one, *two])
    assert figures["retrieval"] == 1.0  # the first class of the table, at a draw
    assert figures["area"] == 0.5
    bicycle, dog = (sum((scene.mask == k).sum() for scene in two) for k in (2, 12))
    assert figures["mean_iou_given_labels"] == pytest.approx(bicycle / (bicycle + dog) / 2)  # dogs: 0
    others = [draw_scene("variety", np.random.default_rng(k), 128, ("dog",)) for k in range(3)]
    assert held_out_figures(model, tokenizer, [*others, *two])["retrieval"] == 0.0


# The run


def toy(out, *more: str) -> CLIPTrainingConfig:
    argv = ["--output-dir", str(out), "--scenes", "12", "--steps", "3", "--batch-size", "4", *more]
    return parse(CLIPTrainingConfig, argv, "clip_training.py", "")


def test_a_toy_training_makes_weights_that_maskclip_reads_and_resumes_bit_for_bit(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(clip_training, "CHECKED", 6)
    monkeypatch.setattr(trainer, "SAVED_EVERY", 2)
    clip_training.run(toy(tmp_path / "a", "--export", str(tmp_path / "exported")))
    assert f"{tmp_path / 'exported'}: the CLIP model, after " in capsys.readouterr().out
    table = load_table("voc")
    segmenter = load_segmenter(
        "maskclip", str(tmp_path / "exported"), common(table, background="none", size=128), table
    )
    values = segmenter.network(torch.zeros(1, 3, 128, 128)).logits
    assert values.shape == (1, len(segmenter.decision.protocol.queries), 8, 8)
    assert float(values.detach().std()) > 0
    made = json.loads((tmp_path / "exported" / "training.json").read_text())
    assert made["options"]["steps"] == 3
    assert made["images_a_step"] == 4
    log = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    (check,) = (line for line in log if line["stage"] == "check")
    assert check["step"] == 3
    assert all(0 <= value <= 1 for value in made["held_out"].values())
    assert made["held_out"].keys() == check.keys() - {"stage", "step"}

    class Interrupted(Exception):
        pass

    def interrupted(model, *batch):
        if (tmp_path / "b" / "clip.safetensors").exists():
            raise Interrupted
        return contrast(model, *batch)

    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(clip_training, "contrast", interrupted)
    with pytest.raises(Interrupted):
        clip_training.run(toy(tmp_path / "b"))
    monkeypatch.setattr(clip_training, "contrast", contrast)
    AcceleratorState._reset_state(reset_partial_state=True)
    clip_training.run(toy(tmp_path / "b"))
    straight = load_file(tmp_path / "exported" / "model.safetensors")
    resumed = load_file(tmp_path / "b" / "weights" / "model.safetensors")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)

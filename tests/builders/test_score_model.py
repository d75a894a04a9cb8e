"""Scores of images and texts, beside their formulas on the tensors of the models."""

import io
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel, CLIPTextModel, ResNetConfig, ResNetModel, SiglipModel
from zeroshot_models import SIZE, save_clip, save_scorer, save_siglip

from attn2mask.builders.errors import UserError
from attn2mask.builders.images import encode_png
from attn2mask.builders.score_model import RowScorer, load_score_model, presence
from attn2mask.builders.table_reader import load_table

# Mean and standard deviation of the pixels, 0 to 1, that each model is trained with.
CLIP_PIXELS = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
SIGLIP_PIXELS = ([0.5] * 3, [0.5] * 3)
THINGS = load_table("voc").names[1:]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"clip": save_scorer(root / "clip"), "siglip": save_siglip(root / "siglip")}


@pytest.fixture(scope="module")
def scorers(folders) -> dict[str, RowScorer]:
    table = load_table("voc")
    return {kind: RowScorer(load_score_model(str(folder)), table) for kind, folder in folders.items()}


def rows(number: int) -> list[dict]:
    """Rows of noise in the size that the models read."""
    rng, classes = np.random.default_rng(0), [[12], [8, 12], []]
    return [
        {
            "image": {"bytes": encode_png(rng.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8))},
            "prompt": f"a dog number {k}",
            "classes": classes[k % 3],
        }
        for k in range(number)
    ]


def cosines(folder: Path, kind: str, row: dict, texts: list[str]) -> tuple[np.ndarray, float]:
    """The cosines of an image with texts, from single calls of the model, and its scale."""
    network = (CLIPModel if kind == "clip" else SiglipModel).from_pretrained(folder).eval()
    mean, std = CLIP_PIXELS if kind == "clip" else SIGLIP_PIXELS
    image = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) / 255
    pixels = torch.tensor((image - mean) / std).permute(2, 0, 1)[None].float()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    with torch.no_grad():
        of_image = network.get_image_features(pixel_values=pixels).pooler_output[0].double().numpy()
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            if kind == "siglip":  # all texts have the length that it was trained with
                ids = (
                    [*ids[:31], ids[-1]]
                    if len(ids) > 32
                    else ids + [tokenizer.pad_token_id] * (32 - len(ids))
                )
            of_text = network.get_text_features(input_ids=torch.tensor([ids]))
            vector = of_text.pooler_output[0].double().numpy()
            found.append(vector @ of_image / np.linalg.norm(vector) / np.linalg.norm(of_image))
    return np.array(found), network.logit_scale.exp().item()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_scores_are_the_cosine_and_a_softmax_over_the_things_that_the_prompt_does_not_name(
    folders, scorers, kind
):
    row = rows(2)[1]
    made = scorers[kind].scores([row])[0]
    (cosine,), scale = cosines(folders[kind], kind, row, [row["prompt"]])
    assert made["clip_score"] == pytest.approx(cosine, abs=1e-5)
    vowels = ("aeroplane",)
    texts = [f"a photo of {'an' if name in vowels else 'a'} {name}" for name in THINGS]
    found, _ = cosines(folders[kind], kind, row, [*texts, "a photo"])
    weights = np.exp(scale * found)
    cat, dog = THINGS.index("cat"), THINGS.index("dog")
    others = weights.sum() - weights[cat] - weights[dog]
    expected = [weights[cat] / (weights[cat] + others), weights[dog] / (weights[dog] + others)]
    assert made["presence"] == pytest.approx(expected, abs=1e-4)
    assert len(set(made["presence"])) == 2


def test_presence_of_logits():
    """The class has 1 of 4 parts beside three equal ones. The other class of the prompt has no effect."""
    made = presence(torch.tensor([0.0, math.log(9)]), torch.zeros(3)).tolist()
    assert made == pytest.approx([1 / 4, 9 / 12])


def test_the_only_class_of_a_table_competes_with_a_neutral_text(folders, scorers, tmp_path):
    (tmp_path / "t.yaml").write_text("name: t\nclasses: [{name: dog}]\n")
    table, row = load_table(str(tmp_path / "t.yaml")), {**rows(1)[0], "classes": [1]}
    made = RowScorer(scorers["clip"].model, table).scores([row])[0]["presence"]
    (dog, neutral), scale = cosines(folders["clip"], "clip", row, ["a photo of a dog", "a photo"])
    assert made == pytest.approx([1 / (1 + math.exp(scale * (neutral - dog)))], abs=1e-4)


def test_stuff_that_the_prompt_does_not_name_does_not_compete(folders, scorers, tmp_path):
    text = "name: t\nbackground: false\nclasses: [{name: dog}, {name: sky, thing: false}, {name: cat}]\n"
    (tmp_path / "t.yaml").write_text(text)
    table, row = load_table(str(tmp_path / "t.yaml")), {**rows(1)[0], "classes": [0]}
    made = RowScorer(scorers["clip"].model, table).scores([row])[0]["presence"]
    texts = ["a photo of a dog", "a photo of a cat", "a photo"]
    found, scale = cosines(folders["clip"], "clip", row, texts)
    weights = np.exp(scale * found)
    assert made == pytest.approx([weights[0] / weights.sum()], abs=1e-4)


def test_scores_do_not_depend_on_the_batch(scorers):
    scorer, many = scorers["clip"], rows(35)
    together = scorer.scores(many)
    for row, made in zip(many, together, strict=True):
        (alone,) = scorer.scores([row])
        assert made["clip_score"] == pytest.approx(alone["clip_score"], abs=1e-5)
        assert made["presence"] == pytest.approx(alone["presence"], abs=1e-5)
    assert len({round(made["clip_score"], 4) for made in together}) > 30
    assert scorer.scores([]) == []


def test_the_facts_name_the_model_and_a_digest_of_its_files(folders, scorers, tmp_path):
    facts = scorers["clip"].model.facts
    assert facts["score_model"] == "clip"
    copy = shutil.copytree(folders["clip"], tmp_path / "clip")
    assert load_score_model(str(copy)).facts == facts
    (copy / "tokenizer_config.json").write_text("{}")
    (copy / "note.txt").write_text("changed")
    assert load_score_model(str(copy)).facts["score_model_version"] != facts["score_model_version"]


def test_a_long_prompt_is_cut_off(scorers):
    """The tokenizer spells every word, so that 77 tokens with their ends are 75 letters."""
    row = rows(1)[0]
    long, cut = ({**row, "prompt": "dog " * number} for number in (200, 25))
    first, second = scorers["clip"].scores([long, cut])
    assert first["clip_score"] == pytest.approx(second["clip_score"], abs=1e-5)


def broken(folder: Path, kind: str, clip: Path) -> Path:
    """The folder of what is no model of scores."""
    if kind == "no text tower":
        ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(folder)
    elif kind == "no image tower":
        CLIPTextModel(CLIPModel.from_pretrained(clip).config.text_config).save_pretrained(folder)
    elif kind == "no processor":
        save_clip(folder)
    else:
        shutil.copytree(clip, folder)
        if kind == "no safetensors":
            (folder / "model.safetensors").unlink()
            torch.save(CLIPModel.from_pretrained(clip).state_dict(), folder / "pytorch_model.bin")
        if kind == "damaged":
            (folder / "model.safetensors").write_bytes(b"damaged")
        if kind == "no config":
            (folder / "config.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no text tower", "is a ResNetModel, which does not compare images with texts"),
        ("no image tower", "is a CLIPTextModel, which does not compare images with texts"),
        ("no processor", "its processor of images and texts cannot be loaded"),
        ("no safetensors", "has no weights in the format safetensors"),
        ("damaged", "cannot be loaded"),
        ("no config", "cannot be loaded"),
    ],
)
def test_what_is_no_model_of_scores_is_one_line(folders, tmp_path, kind, said):
    folder = broken(tmp_path / "model", kind, folders["clip"])
    with pytest.raises(UserError, match=f"--score-model {folder}.* ?{said}") as raised:
        load_score_model(str(folder))
    assert len(str(raised.value).splitlines()) == 1


def test_a_model_that_is_nowhere_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("nowhere", "owner/nowhere", "./nowhere/model"):
        with pytest.raises(UserError, match=f"--score-model {name}: there is no such folder, and it cannot"):
            load_score_model(name)

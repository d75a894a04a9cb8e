"""What trains the embedded painter: its words, its captions, and a trainer that resumes to the last bit."""

import numpy as np
import pytest
import torch

from attn2mask.builders.drawn.kinds import KINDS
from attn2mask.builders.drawn.scenes import VOC_THINGS, draw_scene
from attn2mask.builders.prompts import find_occurrences
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words.english import plural
from attn2mask.training.pretraining.painter_training import (
    TOKENS,
    UNKNOWN,
    Captions,
    make_autoencoder,
    make_tokenizer,
    make_unet,
    timesteps,
    vocabulary,
)
from attn2mask.training.pretraining.trainer import Ranks, Trainer


def test_the_tokenizer_knows_every_class_word():
    words = set(vocabulary())
    for name in ("voc", "cityscapes"):
        for label in load_table(name).classes:
            for word in label.base:
                assert all(part in words for part in word.replace("-", " ").split()), word
    for label in load_table("voc").classes:
        for alias in label.aliases:
            for form in (alias, plural(alias)):
                assert all(part in words for part in form.replace("-", " ").split()), form


def test_a_word_that_it_does_not_know_costs_one_token():
    tokenizer = make_tokenizer()
    ids = tokenizer("a quizzaciously red bus").input_ids
    assert len(ids) == 6
    assert ids[2] == tokenizer.convert_tokens_to_ids(UNKNOWN)
    assert tokenizer.model_max_length == TOKENS
    assert len(tokenizer("a dog " * 40, truncation=True).input_ids) == TOKENS


def test_captions_are_true_of_their_scene():
    captions, table = Captions(), load_table("voc")
    for index in range(120):
        scene = draw_scene("objects", np.random.default_rng([21, index]))
        things = [[KINDS.index(t.kind), t.color] for t in scene.things]
        text = captions({"things": things, "place": scene.place}, np.random.default_rng(index))
        named = {table.classes[o.class_index].name for o in find_occurrences(table, text)}
        shown = {t.kind.thing for t in scene.things}
        assert named <= shown, text
        assert shown <= set(VOC_THINGS)


def trainer(path, steps):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1))
    return net, Trainer({"net": net}, Ranks(), path, learning_rate=1e-2, steps=steps, ema=0.9)


def run(net, worker, until):
    def loss(step):
        x = torch.from_numpy(np.random.default_rng(step).normal(size=(16, 4)).astype(np.float32))
        return (
            (net(x.to(worker.params[0])).float() - x.sum(1, keepdim=True).to(worker.params[0].device))
            .square()
            .mean()
        )

    while worker.step < until:
        worker.update(loss(worker.step))


def test_training_resumes_to_the_last_bit(tmp_path):
    net, straight = trainer(tmp_path / "a.safetensors", 20)
    run(net, straight, 20)
    net, broken = trainer(tmp_path / "b.safetensors", 20)
    run(net, broken, 11)
    broken.save()
    net, resumed = trainer(tmp_path / "b.safetensors", 20)
    assert resumed.step == 11
    run(net, resumed, 20)
    for one, two in zip(straight.masters + straight.means, resumed.masters + resumed.means, strict=True):
        assert torch.equal(one, two)


def test_shapes():
    vae, unet = make_autoencoder().eval(), make_unet()
    with torch.no_grad():
        latent = vae.encode(torch.zeros(1, 3, 128, 128)).latent_dist
        assert latent.mean.shape == (1, 8, 16, 16)
        assert float(latent.std.max()) < 0.01
        assert vae.decode(latent.mean).sample.shape == (1, 3, 128, 128)
        text = torch.zeros(1, TOKENS, 128)
        assert unet(latent.mean, 10, text).sample.shape == latent.mean.shape


def test_timesteps_cover_the_schedule():
    drawn = timesteps(4000, np.random.default_rng(0))
    assert drawn.min() >= 0
    assert drawn.max() <= 999
    assert drawn.float().mean() == pytest.approx(520, abs=40)

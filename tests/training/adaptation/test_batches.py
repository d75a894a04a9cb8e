"""Batches of crops: functions of the seed and the position."""

from dataclasses import replace

import numpy as np
import torch

from attn2mask.training.adaptation.batches import Batches, training_prompt
from attn2mask.training.adaptation.config import AdaptConfig
from attn2mask.training.adaptation.images import Crop, Latents


def test_a_place_of_the_run_has_its_crop_words_and_noise(tmp_path):
    Latents.write(tmp_path / "l", {str(k): torch.rand(4, 9, 20).half() for k in (0, 2, 3)}, ["1.png"])
    latents = Latents(tmp_path / "l")
    assert (latents.places, latents.skipped, len(latents)) == ([0, 2, 3], ["1.png"], 3)
    config = AdaptConfig(instance_prompt="sks", seed=5, preset="cityscapes").resolve()
    batches = Batches(config, Crop(64, 64, 8), latents, ["a dog", None, "a cat"], 1000)
    batch = batches([(7, 0), (8, 1)])
    alone = batches([(8, 1)])
    assert torch.equal(alone.noise[0], batch.noise[1])
    assert torch.equal(alone.latents[0], batch.latents[1])
    assert (alone.timesteps[0], alone.prompts[0]) == (batch.timesteps[1], batch.prompts[1])
    assert not torch.equal(batch.noise[0], batch.noise[1])
    height, width, top, left, high, wide = (int(side) // 8 for side in batch.time_ids[0])
    assert (height, width, high, wide) == (9, 20, 8, 8)
    assert torch.equal(batch.latents[0], latents[0][:, top : top + 8, left : left + 8])
    seen = {
        (float(b.time_ids[0, 2]), float(b.time_ids[0, 3])) for b in (batches([(p, 0)]) for p in range(200))
    }
    assert seen == {(8.0 * top, 8.0 * left) for top in range(2) for left in range(13)}
    emptied = replace(batches, config=replace(config, dropout=0.25))
    share = np.mean([emptied([(position, 0)]).prompts[0] == "" for position in range(400)])
    assert 0.15 < share < 0.35


def test_prompts_have_the_identifier_half_of_the_time():
    rng = np.random.default_rng(0)
    said = [training_prompt("in sks style", "a bus.", False, rng) for _ in range(200)]
    assert set(said) == {"a bus.", "a bus, in sks style"}
    assert 70 < said.count("a bus.") < 130
    assert {training_prompt("in sks style", None, False, rng) for _ in range(9)} == {"in sks style"}
    assert {training_prompt("in sks style", "a bus.", True, rng) for _ in range(9)} == {"a bus, in sks style"}

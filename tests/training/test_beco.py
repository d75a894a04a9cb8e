"""The co-training step against an oracle: the targets and losses of BECO's step, written pixel by pixel."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from attn2mask.training import cotraining
from attn2mask.training.config import TrainConfig
from attn2mask.training.cotraining import Pair, cotraining_losses, normalize

CLASSES, IGNORE, BACKGROUND = 5, 255, 0
STEP = TrainConfig(preset="voc-resnet50", confidence=0.6).resolve()  # random networks are rarely confident


class RandomNetwork(nn.Module):
    """A convolution, batch normalization and a convolution, whose logits are confident in some pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, CLASSES, 1)
        )
        nn.init.normal_(self.layers[-1].weight, std=1.5)
        self.layers[1].running_mean.normal_()
        self.layers[1].running_var.uniform_(0.5, 2)

    def forward(self, pixel_values: torch.Tensor):
        return type("Output", (), {"logits": self.layers(pixel_values)})


def random_batch(count: int = 4, side: int = 7) -> dict[str, torch.Tensor]:
    """Labels in blocks, some of them ignored, and random reliability."""
    label = torch.randint(0, CLASSES, (count, side, side)).float()
    label = nn.functional.interpolate(label[:, None, ::3, ::3], (side, side))[:, 0].long()
    label[torch.rand(count, side, side) < 0.1] = IGNORE
    return {
        "pixels": torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8),
        "label": label,
        "trusted": torch.rand(count, side, side) < 0.6,
    }


def brighter(images: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """A change of colors without chance, so that the oracle can repeat it."""
    return 0.5 * images + 0.25 * config.brightness


# The oracle. It knows nothing of the code under test but the order of the random draws.


def oracle(networks, batch, config, warm_up: bool, background: int | None) -> list[float]:
    """The loss of each network on a batch, as a sum over single pixels."""
    images, label = batch["pixels"].double() / 255, batch["label"]
    mask = batch["trusted"]
    count, side = len(images), images.shape[-1]
    pixels = [(y, x) for y in range(side) for x in range(side)]
    if config.mixing:
        online, sure = online_labels(networks, images, config.confidence)
        images, label, mask, outline = mixed(
            images, label, mask, online, sure, config.mix_probability, warm_up, background
        )
    else:
        outline = torch.zeros(count, side, side, dtype=torch.bool)
    colored = normalize(brighter(images, config)).float()
    with torch.no_grad():
        logits = [network.train()(pixel_values=colored).logits.double() for network in networks]
    logarithms = [
        each - each.exp().sum(1, keepdim=True).log() for each in logits
    ]  # of the probability of each class
    losses = []
    for own in range(len(networks)):
        label_term = cotraining_term = 0.0
        for i in range(count):
            for y, x in pixels:
                if mask[i, y, x] and label[i, y, x] != IGNORE:
                    weight = config.boundary_weight if outline[i, y, x] else 1.0
                    label_term -= weight * float(logarithms[own][i, label[i, y, x], y, x])
                if not mask[i, y, x] and len(networks) == 2:
                    taught = int(logits[1 - own][i, :, y, x].argmax())
                    cotraining_term -= float(logarithms[own][i, taught, y, x])
        every = count * side * side
        losses.append(label_term / every + cotraining_term / every)
    return losses


def online_labels(networks, images, confidence):
    """The prediction of the mean of the logits, and where its probability is above the confidence."""
    with torch.no_grad():
        logits = [network.eval()(pixel_values=normalize(images).float()).logits for network in networks]
    exponentials = (sum(logits) / len(logits)).double().exp()
    probabilities = exponentials / exponentials.sum(1, keepdim=True)
    return probabilities.argmax(1), probabilities.amax(1) > confidence


def mixed(images, label, mask, online, sure, probability, warm_up, background):
    """BECO pairs the two halves of a batch; each image of a pair may get things of the other one."""
    count, side = len(images), images.shape[-1]
    is_mixed = (torch.rand(count) < probability).tolist()
    made = images.clone(), label.clone(), mask.clone(), torch.zeros(count, side, side, dtype=torch.bool)
    for i in range(count):
        if not is_mixed[i]:
            continue
        j = (i + count // 2) % count
        named, certain = (label, mask) if warm_up else (online, sure)
        seen = [
            [int(named[j, y, x]) if warm_up or sure[j, y, x] else IGNORE for x in range(side)]
            for y in range(side)
        ]
        classes = sorted({c for line in seen for c in line} - {IGNORE, background})
        order = torch.randperm(len(classes)).tolist()
        chosen = {classes[k] for k in order[: math.ceil(len(classes) / 2)]}
        pasted = [[seen[y][x] in chosen for x in range(side)] for y in range(side)]
        for y in range(side):
            for x in range(side):
                k = j if pasted[y][x] else i
                made[0][i, :, y, x] = images[k, :, y, x]
                made[1][i, y, x], made[2][i, y, x] = named[k, y, x], certain[k, y, x]
                around = [
                    pasted[v][u]
                    for v in range(max(0, y - 1), min(side, y + 2))
                    for u in range(max(0, x - 1), min(side, x + 2))
                ]
                made[3][i, y, x] = not warm_up and any(around) and not all(around)
    return made


PARTS = {
    "labels alone": (STEP, {"no_mixing": True, "no_co_training": True}, False),
    "co-training": (STEP, {"no_mixing": True}, False),
    "mixing in the warm-up": (STEP, {"no_co_training": True}, True),
    "mixing every image": (STEP, {"no_co_training": True, "mix_probability": 1.0}, True),
    "online labels": (STEP, {"no_co_training": True, "boundary_weight": 1.0}, False),
    "the weight of outlines": (STEP, {"no_co_training": True, "boundary_weight": 3.0}, False),
    "colors": (STEP, {"no_mixing": True, "no_co_training": True, "brightness": 1.0}, False),
    "the warm-up": (STEP, {}, True),
    "the whole step": (STEP, {}, False),
    "an unsure pair": (STEP, {"confidence": 1.0, "mix_probability": 1.0}, False),
}


@pytest.mark.parametrize("background", [BACKGROUND, None])
@pytest.mark.parametrize("part", PARTS)
def test_losses_are_those_of_a_step_written_pixel_by_pixel(part, background, monkeypatch):
    monkeypatch.setattr(cotraining, "photometric", brighter)
    config, changed, warm_up = PARTS[part]
    config = replace(config, **changed)
    for seed in range(3):
        torch.manual_seed(seed)
        networks = [RandomNetwork() for _ in range(2 if config.co_training else 1)]
        batch = random_batch()
        pair = Pair(*networks, *[None] * (2 - len(networks)))
        torch.manual_seed(100 + seed)
        expected = oracle(deepcopy(networks), batch, config, warm_up, background)
        torch.manual_seed(100 + seed)
        online = None if warm_up else pair.train().online
        losses = cotraining_losses(pair.train(), online, batch, config, IGNORE, background)
        assert len(losses) == len(networks)
        assert [loss.item() for loss in losses] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_the_parts_that_the_oracle_checks_change_the_loss(monkeypatch):
    """So that none of the cases above compares a step in which the part did nothing."""
    monkeypatch.setattr(cotraining, "photometric", brighter)
    torch.manual_seed(0)
    networks, batch = [RandomNetwork(), RandomNetwork()], random_batch()
    found = set()
    for config, changed, warm_up in PARTS.values():
        torch.manual_seed(1)
        used = networks[:1] if "no_co_training" in changed else networks
        found.add(round(oracle(deepcopy(used), batch, replace(config, **changed), warm_up, 0)[0], 9))
    assert len(found) == len(PARTS)

"""One step of co-training, on logits that are known."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from attn2mask.training import cotraining
from attn2mask.training.config import TrainConfig
from attn2mask.training.cotraining import (
    Pair,
    cotraining_losses,
    half_of_classes,
    mix,
    normalize,
    photometric,
)

MIXED = TrainConfig(preset="voc-resnet50").resolve()
PLAIN = replace(MIXED, no_mixing=True)


class Fixed(torch.nn.Module):
    """Answers one class everywhere, `scale` sure of it."""

    def __init__(self, answer: int, scale: float = 3.0) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(scale * F.one_hot(torch.tensor(answer), 4).float())

    def forward(self, pixel_values):
        n, _, h, w = pixel_values.shape
        return type("Output", (), {"logits": self.logits[None, :, None, None].expand(n, 4, h, w)})


def batch(n: int = 2, side: int = 8) -> dict:
    label = torch.zeros(n, side, side, dtype=torch.long)
    label[:, 2:6, 2:6] = 1
    return {
        "pixels": torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8),
        "label": label,
        "trusted": torch.ones_like(label, dtype=torch.bool),
    }


def losses(pair, given, config=PLAIN):
    return cotraining_losses(pair, pair.online, given, config, 255, 0)


def test_reliable_pixels_learn_the_label():
    pair, given = Pair(Fixed(0), Fixed(1)), batch()
    expected = F.cross_entropy(pair.a(given["pixels"]).logits, given["label"])
    assert torch.allclose(losses(pair, given)[0], expected)


def test_unreliable_pixels_learn_the_other_networks_answer():
    pair, given = Pair(Fixed(2), Fixed(3)), batch()
    given["trusted"][:] = False
    a, b = losses(pair, given)
    logits = pair.a(given["pixels"]).logits
    assert torch.allclose(a, F.cross_entropy(logits, torch.full_like(given["label"], 3)))
    assert torch.allclose(
        b, F.cross_entropy(pair.b(given["pixels"]).logits, torch.full_like(given["label"], 2))
    )
    a.backward()
    assert pair.a.logits.grad.abs().sum() > 0
    assert pair.b.logits.grad is None  # the answer is a label: nothing flows back to who gave it


def test_one_network_alone_leaves_unreliable_pixels_out_of_a_mean_over_all():
    pair, given = Pair(Fixed(2), None), batch()
    given["trusted"][:, :, 4:] = False
    (found,) = losses(pair, given)
    half = F.cross_entropy(pair.a(given["pixels"]).logits[..., :4], given["label"][..., :4])
    assert torch.allclose(found, half / 2)


def test_nothing_is_learned_where_an_ignored_label_is_trusted():
    pair, given = Pair(Fixed(2), Fixed(3)), batch()
    given["label"][:] = 255
    assert [loss.item() for loss in losses(pair, given)] == [0.0, 0.0]


def classes_of(label: torch.Tensor) -> set[int]:
    return set(label.unique().tolist())


def test_half_of_the_classes_is_chosen_with_all_that_belongs_to_them():
    label = torch.zeros(12, 12, dtype=torch.long)
    label[:4, :4], label[8:, 8:], label[:4, 8:], label[5] = 1, 2, 3, 255
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        chosen = half_of_classes(label, 255, 0)
        classes = classes_of(label[chosen])
        assert len(classes) == 2  # of three; neither the background nor what is ignored
        assert classes < {1, 2, 3}
        assert torch.equal(chosen, torch.isin(label, torch.tensor(sorted(classes))))
        seen.add(frozenset(classes))
    assert len(seen) == 3
    assert half_of_classes(torch.zeros(3, 3, dtype=torch.long), 255, None).all()  # without a background
    assert not half_of_classes(torch.zeros(3, 3, dtype=torch.long), 255, 0).any()


def test_images_are_mixed_with_the_probability_of_the_preset():
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 3, 6, 6)
    label = torch.ones(8, 6, 6, dtype=torch.long)
    trusted = torch.ones_like(label, dtype=torch.bool)
    torch.manual_seed(0)
    changed = torch.zeros(8)
    for _ in range(200):
        made, *_ = mix(images, label, trusted, None, MIXED, ignore=255, background=0)
        first = made[:, 0, 0, 0]
        assert all(first[k] in (k, (k + 4) % 8) for k in range(8))  # a partner in the other half
        changed += first != torch.arange(8)
    assert (changed / 200 - 0.5).abs().max() < 0.12


def test_only_images_that_are_mixed_are_predicted():
    images, label = torch.rand(8, 3, 6, 6), torch.ones(8, 6, 6, dtype=torch.long)
    predicted = []

    def online(given):
        predicted.append(len(given))
        return torch.full((len(given), 4, 6, 6), 0.25)

    for seed in range(20):
        torch.manual_seed(seed)
        mix(images, label, label > 0, online, MIXED, ignore=255, background=0)
    assert max(predicted) <= 8
    assert sum(predicted) / (20 * 8) == pytest.approx(0.75, abs=0.1)  # one of each pair or both are mixed


def test_mixing_leaves_the_batch_as_it_was():
    given = batch(4)
    before = {name: part.clone() for name, part in given.items()}
    losses(Pair(Fixed(1, 9.0), Fixed(1, 9.0)), given, replace(MIXED, mix_probability=1.0))
    assert all(torch.equal(given[name], before[name]) for name in before)


class Deep(torch.nn.Module):
    """Two convolutions with a norm, in which casts to bfloat16 are cached by autocast."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, padding=1),
            torch.nn.BatchNorm2d(16),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 4, 3, padding=1),
        )

    def forward(self, pixel_values):
        return type("Output", (), {"logits": self.layers(pixel_values)})


def test_bfloat16_loses_no_gradient_of_a_mixed_step(monkeypatch):
    """As training runs it: accelerate gives the pair its autocast context."""
    monkeypatch.setattr(cotraining, "photometric", lambda images, config: images)
    config, given = replace(MIXED, mix_probability=1.0, confidence=0.3), batch(4, 16)
    gradients = []
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        pair = accelerator.prepare(Pair(Deep(0), Deep(1)).train())
        torch.manual_seed(3)
        online = accelerator.unwrap_model(pair).online
        sum(cotraining_losses(pair, online, given, config, 255, 0)).backward()
        gradients.append({name: parameter.grad for name, parameter in pair.named_parameters()})
    AcceleratorState._reset_state(reset_partial_state=True)
    assert len(gradients[0]) == 12
    for name, exact in gradients[0].items():
        rounded = gradients[1][name]
        assert rounded is not None, name
        if exact.abs().max() > 1e-6:  # a bias before a norm has none
            assert float((rounded - exact).norm() / exact.norm()) < 0.1, name


def test_the_online_forward_leaves_the_networks_as_they_were():
    net = torch.nn.BatchNorm2d(3)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = net

        def forward(self, pixel_values):
            return type("Output", (), {"logits": self.norm(pixel_values)})

    pair = Pair(Net(), None).train()
    before = net.running_mean.clone()
    probabilities = pair.online(torch.rand(2, 3, 4, 4))
    assert torch.equal(net.running_mean, before)
    assert pair.training
    assert not probabilities.requires_grad
    assert torch.allclose(probabilities.sum(1), torch.ones(2, 4, 4))


def test_colors_change_and_stay_in_range():
    torch.manual_seed(1)
    images = torch.rand(6, 3, 16, 16)
    changed = photometric(images, MIXED)
    assert changed.shape == images.shape
    assert not torch.equal(changed, images)
    assert float(changed.min()) >= -1e-5
    assert float(changed.max()) <= 1 + 1e-5
    assert abs(float(normalize(torch.full((1, 3, 1, 1), 0.485))[0, 0])) < 1e-6


@pytest.mark.parametrize(
    ("changed", "share"), [({}, 0.2), ({"gray_probability": 1.0}, 1.0), ({"gray_probability": 0.0}, 0.0)]
)
def test_images_become_gray_with_their_probability(changed, share):
    torch.manual_seed(1)
    made = photometric(torch.rand(300, 3, 4, 4), replace(MIXED, **changed))
    gray = ((made - made.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-3).float().mean()
    assert float(gray) == pytest.approx(share, abs=0.07)


def test_each_change_of_colors_has_its_strength():
    still = {"color_probability": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    still |= {"gray_probability": 0.0, "blur_probability": 0.0}
    torch.manual_seed(1)
    images = 0.3 + 0.2 * torch.rand(200, 3, 4, 4)
    assert (photometric(images, replace(MIXED, **still)) - images).abs().max() < 1e-4
    moved = photometric(images, replace(MIXED, **still | {"brightness": 0.2})) - images
    assert 0.18 < float(moved.abs().max()) < 0.2001  # it is added
    scaled = photometric(images, replace(MIXED, **still | {"contrast": 0.2})) / images
    assert 1.18 < float(scaled.max()) < 1.2001
    blurred = photometric(images, replace(MIXED, **still | {"blur_probability": 1.0}))
    assert blurred.std() < 0.8 * images.std()

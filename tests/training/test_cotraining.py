"""One step of co-training, on logits that are known."""

import pytest
import torch
import torch.nn.functional as F

from attn2mask.training.config import TrainConfig
from attn2mask.training.cotraining import (
    Pair,
    add_online_labels,
    classmix,
    cotraining_losses,
    normalize,
    photometric,
    weighted_loss,
)

PLAIN = TrainConfig(no_mixing=True).resolve()


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


def losses(pair, given, config=PLAIN, cotrained=True):
    return cotraining_losses(pair, pair.online, given, config, cotrained, 255, 0)


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


@pytest.mark.parametrize("alone", [False, True])
def test_in_the_warm_up_and_alone_unreliable_pixels_are_left_out(alone):
    pair, given = Pair(Fixed(2), None if alone else Fixed(3)), batch()
    given["trusted"][:, :, 4:] = False
    found = losses(pair, given, cotrained=alone)
    half = F.cross_entropy(pair.a(given["pixels"]).logits[..., :4], given["label"][..., :4])
    assert len(found) == (1 if alone else 2)
    assert torch.allclose(found[0], half)


def test_nothing_is_learnt_beyond_the_rim():
    pair, given = Pair(Fixed(2), Fixed(3)), batch()
    given["label"][:] = 255
    assert [loss.item() for loss in losses(pair, given)] == [0.0, 0.0]


def test_confident_online_labels_replace_what_is_not_trusted():
    probabilities = torch.tensor([0.01, 0.02, 0.97]).view(1, 3, 1, 1).expand(1, 3, 1, 4).clone()
    probabilities[..., 3] = torch.tensor([0.3, 0.3, 0.4])[None, :, None]
    label = torch.zeros(1, 1, 4, dtype=torch.long)
    trusted = torch.tensor([[[True, False, False, False]]])
    new, sure = add_online_labels(probabilities, label, trusted, 0.95)
    assert new.tolist() == [[[0, 2, 2, 0]]]
    assert sure.tolist() == [[[True, True, True, False]]]


def test_classmix_pastes_half_of_the_classes_with_all_that_belongs_to_them():
    torch.manual_seed(0)
    label = torch.zeros(3, 12, 12, dtype=torch.long)
    label[:, :4, :4], label[:, 8:, 8:] = 1, 2
    label[1, 5] = 255
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 12, 12).clone()
    trusted = torch.tensor([True, False, True])[:, None, None].expand(3, 12, 12).clone()
    mixed, new, sure, weight = classmix(images, label, trusted, 255, 0, 1.2)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        pasted = mixed[i, 0] == j
        shown = label[j][pasted].unique().tolist()
        assert len(shown) == 1  # half of two classes, and never background or ignore
        assert shown[0] in (1, 2)
        assert torch.equal(pasted, label[j] == shown[0])
        assert torch.equal(new[i][pasted], label[j][pasted])
        assert (sure[i][pasted] == trusted[j, 0, 0]).all()
        assert torch.equal(new[i][~pasted], label[i][~pasted])
        assert (mixed[i, 0][~pasted] == i).all()
        inner = F.max_pool2d(-pasted[None, None].float(), 3, 1, 1)[0, 0] == -1
        outer = F.max_pool2d(pasted[None, None].float(), 3, 1, 1)[0, 0] == 1
        assert torch.allclose(weight[i], 1 + 0.2 * (outer & ~inner).float())


def test_an_image_with_nothing_to_paste_leaves_its_neighbor_alone():
    label = torch.zeros(2, 6, 6, dtype=torch.long)
    images = torch.rand(2, 3, 6, 6)
    mixed, *_, weight = classmix(images, label, torch.ones_like(label, dtype=torch.bool), 255, 0, 1.2)
    assert torch.equal(mixed, images)
    assert (weight == 1).all()


def test_stuff_tables_have_no_background_to_spare():
    label = torch.zeros(2, 6, 6, dtype=torch.long)
    images = torch.rand(2, 3, 6, 6)
    mixed, *_ = classmix(images, label, torch.ones_like(label, dtype=torch.bool), 255, None, 1.2)
    assert torch.equal(mixed, images.roll(-1, 0))


def test_weights_and_ignored_pixels():
    logits = torch.randn(1, 3, 2, 2)
    target = torch.tensor([[[0, 255], [2, 1]]])
    weight = torch.tensor([[[2.0, 9.0], [1.0, 1.0]]])
    each = F.cross_entropy(logits, target, ignore_index=255, reduction="none")
    assert torch.allclose(weighted_loss(logits, target, weight, 255), (each * weight).sum() / 3)
    assert float(weighted_loss(logits, torch.full_like(target, 255), weight, 255)) == 0.0


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
    changed = photometric(images)
    assert changed.shape == images.shape
    assert not torch.equal(changed, images)
    assert float(changed.min()) >= -1e-5
    assert float(changed.max()) <= 1 + 1e-5
    assert abs(float(normalize(torch.full((1, 3, 1, 1), 0.485))[0, 0])) < 1e-6

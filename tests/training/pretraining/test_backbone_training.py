"""What pretrains the small backbone, and that the one which ships is one."""

import torch

from attn2mask.builders.table_reader import load_table
from attn2mask.training.models import build_network
from attn2mask.training.pretraining.backbone_training import precision, settle_norms


def test_running_statistics_are_those_of_all_batches():
    norm = torch.nn.BatchNorm2d(2)
    torch.nn.init.constant_(norm.running_mean, 9.0)
    batches = [torch.randn(4, 2, 3, 3) + k for k in range(3)]
    settle_norms(torch.nn.Sequential(norm), batches)
    assert torch.allclose(
        norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0), atol=1e-6
    )
    assert norm.momentum == 0.1


def test_average_precision():
    class Net(torch.nn.Module):
        def forward(self, x):
            return type("Output", (), {"logits": x})

    logits = torch.tensor([[3.0, 0.0], [2.0, 1.0], [1.0, 2.0]])
    shown = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    assert abs(precision(Net(), [(logits, shown)]) - (1 + 2 / 3) / 2) < 1e-6


def test_two_networks_share_the_backbone_that_ships_and_differ_in_their_heads():
    one, two = (build_network("deeplabv3plus", "embedded", load_table("voc"), seed) for seed in (0, 1))
    assert not one.config.backbone_config.name_or_path  # no path of this machine
    assert not one.config.backbone_from_scratch
    first, second = (dict(net.named_parameters()) for net in (one, two))
    for name in first:
        if name.startswith("backbone."):
            assert torch.equal(first[name], second[name]), name
    assert not torch.equal(first["decode_head.classifier.weight"], second["decode_head.classifier.weight"])

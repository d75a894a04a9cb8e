"""The backbone's training runs from scenes to weights that a segmenter starts from."""

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import ResNetForImageClassification

from attn2mask.builders.drawn.kinds import KINDS
from attn2mask.builders.options import parse
from attn2mask.builders.table_reader import load_table
from attn2mask.training.models import build_network
from attn2mask.training.pretraining import backbone_training
from attn2mask.training.pretraining.backbone_training import (
    NORM_BATCHES,
    BackboneTrainingConfig,
    mean_precision,
)


@pytest.fixture(autouse=True)
def fresh_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_toy_training_makes_weights_that_a_segmenter_starts_from(tmp_path, capsys):
    argv = ["--output-dir", str(tmp_path), "--scenes", "16", "--steps", "2", "--batch-size", "2"]
    backbone_training.run(parse(BackboneTrainingConfig, argv, "backbone_training.py", ""))
    weights = tmp_path / "weights"
    assert f"{weights}: the backbone, mean average precision 0." in capsys.readouterr().out
    trained = ResNetForImageClassification.from_pretrained(weights, dtype=torch.float32)
    assert trained.config.num_labels == len(KINDS)
    norm = trained.resnet.embedder.embedder.normalization
    assert int(norm.num_batches_tracked) == NORM_BATCHES  # statistics of the averaged weights alone
    network = build_network("deeplabv3plus", str(weights), load_table("voc"), 0)
    first = dict(network.named_parameters())["backbone.embedder.embedder.convolution.weight"]
    assert torch.equal(first, trained.resnet.embedder.embedder.convolution.weight)


def test_mean_precision_counts_the_kinds_that_are_shown():
    class Net(torch.nn.Module):
        def forward(self, x):
            return type("Output", (), {"logits": x})

    logits = torch.tensor([[3.0, 0.0, 9.0], [2.0, 1.0, 8.0], [1.0, 2.0, 7.0]])
    shown = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    expected = ((1 + 2 / 3) / 2 + 1) / 2
    assert mean_precision(Net(), [(logits, shown)]) == pytest.approx(expected)


def test_two_networks_share_the_backbone_that_ships_and_differ_in_their_heads():
    one, two = (build_network("deeplabv3plus", "embedded", load_table("voc"), seed) for seed in (0, 1))
    assert not one.config.backbone_config.name_or_path  # no path of this machine
    assert not one.config.backbone_from_scratch
    first, second = (dict(net.named_parameters()) for net in (one, two))
    for name in first:
        if name.startswith("backbone."):
            assert torch.equal(first[name], second[name]), name
    assert not torch.equal(first["decode_head.classifier.weight"], second["decode_head.classifier.weight"])

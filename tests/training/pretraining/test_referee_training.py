"""The referee's training runs from scenes to weights that load."""

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from attn2mask.builders.options import parse
from attn2mask.training.pretraining import referee_training
from attn2mask.training.pretraining.referee_training import RefereeTrainingConfig
from attn2mask.training.referee import load_referee


@pytest.fixture(autouse=True)
def fresh_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_toy_training_makes_weights_that_load(tmp_path, capsys):
    argv = ["--output-dir", str(tmp_path), "--scenes", "16", "--steps", "2", "--batch-size", "5"]
    referee_training.run(parse(RefereeTrainingConfig, argv, "referee_training.py", ""))
    assert (
        f"{tmp_path / 'weights' / 'referee.safetensors'}: the referee after 2 steps"
        in capsys.readouterr().out
    )
    referee = load_referee(tmp_path / "weights")
    masks = referee.segment(np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8))
    assert masks.shape == (2, 64, 96)
    assert masks.max() < 21

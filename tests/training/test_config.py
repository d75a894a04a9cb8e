"""The presets of training, and how a global batch is spread over processes."""

import subprocess
import sys

import pytest

from attn2mask.builders.errors import UserError
from attn2mask.training.config import TrainConfig, plan_batches


def test_presets_hold_table_1():
    for name, rate, backbone in (
        ("voc-resnet50", 0.001, "resnet-50"),
        ("voc-swin-base", 0.01, "swin-base"),
        ("voc-swin-base-upernet", 0.01, "swin-base"),
    ):
        preset = TrainConfig(preset=name).resolve()
        assert (preset.optimizer, preset.learning_rate, preset.power) == ("sgd", rate, 0.9)
        assert (preset.weight_decay, preset.batch_size, preset.max_steps) == (1e-5, 12, 25_000)
        assert backbone in preset.backbone
        assert preset.architecture == ("upernet" if name.endswith("upernet") else "deeplabv3plus")
    preset = TrainConfig(preset="voc-resnet50").resolve()
    assert preset.rate(0) == 1.0
    assert preset.rate(12_500) == pytest.approx(0.5**0.9)
    assert preset.rate(25_000) == 0.0
    assert TrainConfig(preset="voc-resnet50", learning_rate=0.5).resolve().learning_rate == 0.5


@pytest.mark.parametrize(
    ("processes", "micro", "expected"), [(1, None, (1, 1, 12)), (6, None, (6, 1, 2)), (2, 3, (2, 2, 3))]
)
def test_a_global_batch_is_shared_by_processes(processes, micro, expected):
    plan = plan_batches(12, processes, micro, True)
    assert (plan.processes, plan.accumulation, plan.per_process) == expected
    assert plan.total == 12
    assert str(plan).endswith("= 12 in a step")


@pytest.mark.parametrize(
    ("batch", "processes", "micro", "message"),
    [(12, 5, None, "multiple"), (12, 2, 4, "does not divide"), (2, 2, None, "pastes one image on another")],
)
def test_batches_that_cannot_be_shared(batch, processes, micro, message):
    with pytest.raises(UserError, match=message):
        plan_batches(batch, processes, micro, True)


@pytest.mark.parametrize("module", ["config", "adaptation.config", "evaluate_command"])
def test_options_are_read_without_torch(module):
    program = f"import sys, attn2mask.training.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0

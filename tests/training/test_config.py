"""The presets of training, and how a global batch is spread over processes."""

import subprocess
import sys
from dataclasses import replace

import pytest

from attn2mask.builders.errors import UserError
from attn2mask.training.config import TrainConfig, plan_batches


def test_presets_hold_table_1():
    for name, rate, backbone in (
        ("voc-resnet50", 0.001, "resnet50d"),
        ("voc-swin-base", 0.01, "swin-base"),
        ("voc-swin-base-upernet", 0.01, "swin-base"),
    ):
        preset = TrainConfig(preset=name).resolve()
        assert (preset.optimizer, preset.learning_rate, preset.power) == ("sgd", rate, 0.9)
        assert (preset.weight_decay, preset.batch_size, preset.max_steps) == (1e-5, 12, 25_000)
        assert backbone in preset.backbone
        assert preset.architecture == ("upernet" if name.endswith("upernet") else "deeplabv3plus")
        # BECO's values for what Table 1 does not state
        assert (preset.head_multiplier, preset.clip, preset.momentum) == (1.0, 0.0, 0.9)
        assert (preset.mix_probability, preset.warmup_epochs) == (0.5, 1.0)
        assert (preset.confidence, preset.boundary_weight) == (0.95, 1.2)
        assert (preset.crop_size, preset.crop_area_min, preset.crop_area_max) == (512, 0.5, 0.75)
        assert (preset.color_probability, preset.gray_probability, preset.blur_probability) == (0.8, 0.2, 0.5)
        assert (preset.brightness, preset.contrast) == (0.2, 0.2)
        assert preset.multi_grid == (name == "voc-resnet50")
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


@pytest.mark.parametrize(("rows", "steps"), [(20_000, 1667), (12, 1), (1, 1)])
def test_the_warm_up_is_a_pass_over_the_rows(rows, steps):
    preset = TrainConfig(preset="voc-resnet50").resolve()
    assert preset.warmup_steps(rows) == steps
    assert replace(preset, warmup_epochs=0.0).warmup_steps(rows) == 0


def test_both_scales_of_crops_are_given():
    with pytest.raises(UserError, match="--crop-scale-min and --crop-scale-max must be given together"):
        TrainConfig(preset="voc-resnet50", crop_scale_max=2.0).resolve()
    assert TrainConfig(preset="demo", crop_scale_max=0.9).resolve().crop_scale_max == 0.9


def test_areas_of_crops_in_the_wrong_order():
    with pytest.raises(UserError, match=r"--crop-area-min 0\.8 is above --crop-area-max 0\.75"):
        TrainConfig(preset="voc-resnet50", crop_area_min=0.8).resolve()

"""The presets of adaptation, and what must not change when a run resumes."""

from dataclasses import replace

import pytest

from attn2mask.builders.options import facts_of
from attn2mask.training.adaptation.config import AdaptConfig
from attn2mask.training.config import plan_batches


def test_the_preset_holds_table_2():
    preset = AdaptConfig(preset="cityscapes").resolve()
    assert (preset.learning_rate, preset.power, preset.weight_decay) == (2e-5, 1.0, 0.01)
    assert (preset.batch_size, preset.max_steps) == (4, 40_000)
    assert preset.rate(0) == 1.0
    assert preset.rate(10_000) == pytest.approx(0.75)
    assert preset.rate(40_000) == 0.0


@pytest.mark.parametrize(
    ("processes", "micro", "expected"), [(4, None, (1, 1)), (1, None, (1, 4)), (1, 1, (4, 1))]
)
def test_its_batch_is_shared_by_processes(processes, micro, expected):
    plan = plan_batches(AdaptConfig(preset="cityscapes").resolve().batch_size, processes, micro, mixing=False)
    assert (plan.accumulation, plan.per_process) == expected
    assert plan.total == 4


def test_options_win_over_the_preset():
    preset = AdaptConfig(preset="cityscapes").resolve()
    assert AdaptConfig(preset="cityscapes", rank=7).resolve() == replace(preset, rank=7)
    assert preset.rank == 4


def test_options_of_the_prior_count_only_with_the_prior():
    plain, other = AdaptConfig().resolve(), AdaptConfig(prior_weight=0.5, class_prompt="a dog").resolve()
    assert plain.identity() == other.identity()
    prior = replace(other, prior_preservation=True).identity()
    assert (prior["prior_weight"], prior["class_prompt"], prior["prior_images"]) == (0.5, "a dog", 100)
    assert all(facts_of(AdaptConfig)[name].identity for name in prior)

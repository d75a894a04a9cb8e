"""Presets are found by the painter, and each holds the values that its source states."""

from dataclasses import fields

import pytest

from attn2mask.builders.build import BuildConfig, resolve
from attn2mask.builders.errors import UserError
from attn2mask.builders.options import preset_names, read_preset
from attn2mask.builders.remask import RemaskConfig
from attn2mask.builders.rules import PAINTERS, PRESETS, Rules, load_rules, preset_for

MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def test_every_preset_says_what_painters_it_is_for():
    assert tuple(sorted(PAINTERS)) == preset_names(PRESETS)


@pytest.mark.parametrize("name", PAINTERS)
def test_a_preset_has_every_rule_and_perhaps_the_number_of_steps(name):
    values, rules = read_preset(PRESETS, name), {f.name for f in fields(Rules)}
    assert set(values) - {"steps"} == rules - {"crf"}  # an implementation, and no rule


def test_the_painter_decides_about_the_preset():
    assert preset_for("embedded") == "embedded"
    assert preset_for(MODEL) == preset_for("runs/my-painter") == "photo"
    assert preset_for(MODEL, "paper") == preset_for("embedded", "paper") == "paper"
    built = resolve(BuildConfig("voc", model=MODEL))
    assert (built.config.preset, built.rules) == ("photo", load_rules("photo"))
    assert resolve(BuildConfig("voc")).config.preset == "embedded"
    assert resolve(BuildConfig("voc", threshold="fixed")).rules.threshold == "fixed"


@pytest.mark.parametrize("name", ["default", "Paper", ""])
def test_an_unknown_preset_is_refused_with_the_painter_that_each_is_for(name):
    with pytest.raises(UserError) as error:
        resolve(BuildConfig("voc", preset=name))
    message = str(error.value)
    assert message.startswith(f"--preset {name}: there is no such preset")
    for preset, painters in PAINTERS.items():
        assert f"{preset} (for {painters})" in message
    assert "\n" not in message
    with pytest.raises(UserError, match="there is no such preset"):
        RemaskConfig("data/voc", preset=name).rules(load_rules("paper"), MODEL)


def test_the_rules_of_the_embedded_painter_are_for_it_alone():
    with pytest.raises(UserError, match="alone, not for stable-diffusion"):
        resolve(BuildConfig("voc", model=MODEL, preset="embedded"))
    with pytest.raises(UserError, match="for the embedded painter alone"):
        RemaskConfig("data/voc", preset="embedded").rules(load_rules("paper"), MODEL)
    rules = RemaskConfig("data/voc", preset="embedded").rules(load_rules("paper"), "embedded")
    assert rules.dense_crf == load_rules("embedded").dense_crf


def test_remask_without_a_preset_keeps_the_rules_of_the_build():
    assert RemaskConfig("data/voc").rules(load_rules("replication"), MODEL) == load_rules("replication")


def test_the_replication_sets_its_steps_its_one_recorded_step_and_its_threshold():
    built = resolve(BuildConfig("voc", model=MODEL, preset="replication"))
    assert built.config.steps == 100
    assert [int(part * 99 + 0.5) for part in built.rules.window] == [50, 50]  # as in `Painter.paint`
    assert (built.rules.threshold, built.rules.beta, built.rules.normalization) == ("fixed", 0.2, "minmax")
    assert resolve(BuildConfig("voc", preset="replication", steps=20)).config.steps == 20
    assert resolve(BuildConfig("voc", model=MODEL)).config.steps is None  # the model's


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"least_threshold": 0.5, "threshold": "fixed"},
            "--least-threshold is used only with --threshold otsu",
        ),
        ({"beta": 0.5}, "--beta is used only with --threshold fixed"),
        ({"map_fraction_min": 0.5, "map_fraction_max": 0.25}, "--map-fraction-min 0.5 is above"),
    ],
)
def test_rules_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        resolve(BuildConfig("voc", **options))

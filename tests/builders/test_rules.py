"""Presets are found by the painter, and each holds the values that its source states."""

from dataclasses import fields, replace

import pytest

from attn2mask.builders.build import BuildConfig, resolve
from attn2mask.builders.errors import UserError
from attn2mask.builders.masks import fixed_threshold
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
    assert rules == load_rules("embedded")


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


def test_the_rules_of_other_methods_are_those_of_their_code():
    daam, ovam = load_rules("daam-like"), load_rules("ovam-like")
    for rules in (daam, ovam):
        assert (rules.threshold, fixed_threshold(rules.beta)) == ("fixed", pytest.approx(0.4))
        assert (rules.normalization, rules.map_fraction_min, rules.map_fraction_max) == ("max", 0.25, 1.0)
    assert (daam.crf_iterations, ovam.crf_iterations) == (0, 5)
    dataset_diffusion = load_rules("dataset-diffusion-like")
    assert fixed_threshold(dataset_diffusion.beta) == pytest.approx(0.6)
    assert fixed_threshold(dataset_diffusion.beta) - dataset_diffusion.uncertain_band == pytest.approx(0.5)
    assert (dataset_diffusion.propagation_power, dataset_diffusion.crf_iterations) == (4, 0)
    assert (load_rules("diffumask-like").threshold, load_rules("mosaicfusion-like").threshold) == (
        "agreement",
        "otsu",
    )
    comment = (PRESETS / "diffumask-like.yaml").read_text("utf-8")
    assert "the CRF takes the place of AffinityNet" in comment


# What `remask` can take from a build with the rules of the preset `embedded`.

SCORES, MAPS, ALL = ("scores",), ("scores", "maps"), ("scores", "maps", "self_attention")
SIDES = "--map-fraction-min 0.25, --map-fraction-max"


@pytest.mark.parametrize(
    ("options", "stored"),
    [
        ({"threshold": "fixed", "beta": 0.4}, SCORES),
        ({"preset": "embedded", "threshold": "fixed"}, SCORES),
        ({"map_fraction_min": 0.5}, SCORES),  # as it is
        ({"map_fraction_min": 0.25, "normalization": "max"}, MAPS),
        ({"preset": "paper"}, MAPS),
        ({"preset": "daam-like"}, MAPS),
        ({"preset": "diffumask-like"}, MAPS),
        ({"preset": "mosaicfusion-like"}, MAPS),
        ({"preset": "ovam-like"}, MAPS),
        ({"preset": "replication", "record_from": 0.0, "record_to": 1.0}, MAPS),
        ({"preset": "dataset-diffusion-like", "propagation_power": 0}, MAPS),
        ({"preset": "dataset-diffusion-like"}, ALL),
        ({"propagation_power": 1}, ALL),
        ({"background_words": False, "normalization": "max"}, MAPS),
    ],
)
def test_remask_takes_all_rules_that_the_stored_attention_allows(options, stored):
    chosen = options.get("preset", "embedded")
    given = {name: value for name, value in options.items() if name != "preset"}
    rules = RemaskConfig("data/voc", **options).rules(load_rules("embedded"), "embedded", stored)
    assert rules == replace(load_rules(chosen), **given)


@pytest.mark.parametrize(
    ("options", "stored", "message"),
    [
        ({"record_from": 0.5}, ALL, "cannot take --record-from 0.5: the recorded steps"),
        (
            {"preset": "replication"},
            ALL,
            "cannot take --record-from 0.5, --record-to 0.5 of --preset replication: the recorded steps and"
            " the side of the self-attention were fixed while painting (--record-from 0.0, --record-to 1.0)",
        ),
        ({"propagation_fraction": 0.25}, ALL, "cannot take --propagation-fraction 0.25: the recorded steps"),
        (
            {"normalization": "max"},
            SCORES,
            "cannot take --normalization max from scores alone, which have --normalization minmax: build with"
            " --store-maps",
        ),
        (
            {"preset": "paper"},
            SCORES,
            f"{SIDES} 0.5, --normalization max of --preset paper from scores alone",
        ),
        ({"preset": "daam-like"}, SCORES, "of --preset daam-like from scores alone"),
        (
            {"preset": "dataset-diffusion-like"},
            MAPS,
            "cannot take --propagation-power 4 of --preset dataset-diffusion-like without the self-attention:"
            " build with --store-maps --store-self-attention",
        ),
        (
            {"preset": "daam-like", "propagation_power": 2},
            MAPS,
            "cannot take --propagation-power 2 of --pres",
        ),
        (
            {"background_words": True},
            ALL,
            "cannot take --background-words True: with --background-words, scores need the attention of the"
            " background words, which rows do not hold",
        ),
    ],
)
def test_remask_refuses_rules_that_the_stored_attention_does_not_allow(options, stored, message):
    with pytest.raises(UserError) as error:
        RemaskConfig("data/voc", **options).rules(load_rules("embedded"), "embedded", stored)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_remask_of_a_build_with_background_words():
    """The scores stay with them. New scores can only be made without them."""
    built = replace(load_rules("embedded"), background_words=True)

    def rules(stored, **options):
        return RemaskConfig("data/voc", **options).rules(built, "embedded", stored)

    assert rules(SCORES, threshold="fixed", beta=0.4) == replace(built, threshold="fixed", beta=0.4)
    assert rules(MAPS, background_words=False) == load_rules("embedded")
    assert rules(MAPS, preset="paper") == load_rules("paper")
    with pytest.raises(UserError, match="cannot take --normalization max: with --background-words, scores"):
        rules(ALL, normalization="max")
    with pytest.raises(UserError, match="cannot take --background-words False from scores alone"):
        rules(SCORES, background_words=False)

"""The painter's quality: what counts as recognized, and the whole measurement at toy size."""

import json
from dataclasses import replace

import numpy as np
import torch

from attn2mask.builders.options import parse
from attn2mask.builders.painter import load_painter
from attn2mask.builders.rules import load_rules
from attn2mask.builders.table_reader import load_table
from attn2mask.training.experiments import painter_quality
from attn2mask.training.experiments.painter_quality import PainterQualityConfig
from attn2mask.training.mask_quality import RecordedImage


def image_of(*classes: int) -> RecordedImage:
    return RecordedImage(np.zeros((10, 20, 3), np.uint8), classes, [], 2)


def mask_of(**areas: int) -> np.ndarray:
    ids = np.zeros(200, np.uint8)
    start = 0
    for name, pixels in areas.items():
        ids[start : start + pixels] = int(name.removeprefix("id"))
        start += pixels
    return ids.reshape(10, 20)


def test_a_class_is_recognized_where_it_is_the_largest():
    table = load_table("voc")
    images = [image_of(k) for k in range(1, 21) for _ in range(2)]
    judged = [mask_of(**{f"id{image.classes[0]}": 50}) for image in images]
    judged[1] = mask_of(id1=50, id2=60)  # another class is larger
    judged[2] = mask_of(id2=2)  # too small
    found = painter_quality.recognized(images, judged, table)
    assert found.pop("aeroplane") == 0.5
    assert found.pop("bicycle") == 0.5
    assert set(found.values()) == {1.0}


def test_all_classes_of_a_pair_must_be_present():
    images = [image_of(1, 2), image_of(1, 2), image_of(1, 2)]
    judged = [mask_of(id1=5, id2=2), mask_of(id1=100), mask_of(id1=50, id2=1)]
    assert painter_quality.all_present(images, judged) == 1 / 3


def test_the_rules_that_are_compared_differ():
    rules = painter_quality.rule_sets()
    assert rules["embedded"] == load_rules("embedded")
    assert {"paper", "replication", "embedded, threshold fixed", "embedded, reliability margin"} <= set(rules)
    assert rules["embedded, background words"] == replace(load_rules("embedded"), background_words=True)
    assert len(set(rules.values())) == len(rules)


def test_rules_without_their_self_attention_are_named_and_left_out(caplog):
    rules, image = painter_quality.rule_sets(), image_of(1)
    others = {name for name, rule in rules.items() if not rule.propagation_power}
    assert {"daam-like", "diffumask-like", "mosaicfusion-like", "ovam-like"} <= others
    assert set(painter_quality.measurable(rules, [image])) == others
    assert "dataset-diffusion-like; embedded, propagation power 1" in caplog.text
    attended = replace(image, self_attention={(2, 2): torch.eye(4)})
    assert painter_quality.measurable(rules, [attended]) == rules
    assert set(painter_quality.measurable(rules, [attended, image])) == others


def test_a_toy_measurement_writes_its_report(tmp_path, monkeypatch, capsys):
    rules = painter_quality.rule_sets()
    few = {name: rules[name] for name in ("embedded", "embedded, threshold fixed")}
    monkeypatch.setattr(painter_quality, "rule_sets", lambda: few)
    painter = load_painter()
    painter.defaults = replace(painter.defaults, steps=5)
    monkeypatch.setattr(painter_quality, "load_painter", lambda model: painter)
    argv = ["--out", str(tmp_path), "--drawn", "2", "--singles", "1", "--pairs", "2", "--referee-scenes", "8"]
    painter_quality.run(parse(PainterQualityConfig, argv, "painter_quality.py", ""))
    report = json.loads((tmp_path / "painter_quality.json").read_text())
    assert 0.4 < report["referee_miou"] <= 1
    assert 0.3 < report["referee_miou_shifted"] <= 1
    assert set(report["recognized"]) == {label.name for label in load_table("voc").classes}
    assert np.mean(list(report["recognized"].values())) > 0.5
    assert 0 <= report["pairs"] <= 1
    assert set(report["distance"]) == {"painted", "halves"}
    assert list(report["grounding"]) == ["16x16", "8x8", "4x4"]
    assert report["grounding"]["16x16"]["auc"] > 0.7
    for kind in ("drawn", "painted"):
        assert set(report[kind]) == set(few)
        for quality in report[kind].values():
            assert 0.1 < quality["crf"] <= 1
            assert 0 < quality["reliable"] <= 1
    out = capsys.readouterr().out
    assert "embedded, threshold fixed" in out
    assert f"kernel distance from drawn scenes {report['distance']['painted']:.1f}" in out
    assert f"maps of 16x16 {report['grounding']['16x16']['auc']:29.3f}" in out
    assert f"made {tmp_path / 'painter_quality.json'}" in out

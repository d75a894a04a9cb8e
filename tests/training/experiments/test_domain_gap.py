"""The domain gap: distances are those of their formulas, and table and sheet show what was measured."""

import json

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from attn2mask.builders.drawn.rows import draw_rows
from attn2mask.builders.errors import UserError
from attn2mask.builders.options import parse
from attn2mask.training.experiments import domain_gap
from attn2mask.training.experiments.domain_gap import DomainGapConfig


def plain(count: int, *colors: tuple[int, int, int]) -> np.ndarray:
    """Images of one color each, in turn."""
    images = np.empty((count, 128, 256, 3), np.uint8)
    for k in range(count):
        images[k] = colors[k % len(colors)]
    return images


def test_a_frame_is_the_widest_middle():
    wide = np.zeros((100, 400, 3), np.uint8)
    wide[:, 100:300] = 255
    assert (domain_gap.middle(Image.fromarray(wide)) == 255).all()
    high = np.zeros((480, 480, 3), np.uint8)
    high[120:360] = 255
    found = domain_gap.middle(Image.fromarray(high))
    assert found.shape == (128, 256, 3)
    assert (found == 255).all()


def test_color_distance_is_that_of_lightness_between_greys():
    black, white = plain(3, (0, 0, 0)), plain(5, (255, 255, 255))
    assert domain_gap.color_distance(black, black) == 0
    assert domain_gap.color_distance(black, white) == pytest.approx(100 / 3, abs=0.1)  # L alone differs
    half = plain(4, (0, 0, 0), (255, 255, 255))
    assert domain_gap.color_distance(black, half) == pytest.approx(50 / 3, abs=0.2)


def test_frames_come_from_rows_and_from_files(tmp_path):
    rows = domain_gap.draw_streets(tmp_path / "rows", 2, 5)
    assert domain_gap.read_images(rows).shape == (2, 128, 256, 3)
    before = (rows / "data/train-00000.parquet").stat().st_mtime_ns
    domain_gap.draw_streets(tmp_path / "rows", 2, 5)
    assert (rows / "data/train-00000.parquet").stat().st_mtime_ns == before
    files = tmp_path / "files"
    files.mkdir()
    Image.new("RGB", (64, 48), "red").save(files / "a.png")
    assert domain_gap.read_images(files)[0, 5, 5].tolist() == [255, 0, 0]
    with pytest.raises(UserError, match="holds no images"):
        domain_gap.read_images(tmp_path / "none")


def test_what_masks_name_is_counted_without_what_is_ignored(tmp_path):
    mask = np.zeros((2, 4), np.uint8)
    mask[0, 0], mask[1] = 255, 2
    other = np.full((2, 4), 2, np.uint8)
    rows = Dataset.from_dict({"mask": [Image.fromarray(mask), Image.fromarray(other)]})
    rows.to_parquet(tmp_path / "rows.parquet")
    found = domain_gap.label_statistics(tmp_path, ["road", "sidewalk", "building"])
    shares = {"road": 3 / 15, "sidewalk": 0, "building": 12 / 15}
    assert found == {"classes_per_image": 1.5, "shares": shares}


def test_table_and_sheet_show_what_was_measured(tmp_path):
    values = {"mean": 0.25, "std": 0.01, "seeds": [0.24, 0.26]}
    scores = {"streets": {"mean_iou": values, "mean_iou_given_labels": values}}
    found = {
        "distances": {"streets": {"before": {"color": 12.345, "feature": 678.9}}},
        "segmenters": {"adapted": scores},
        "labels": {"adapted": {"classes_per_image": 2.25, "shares": {"road": 0.25, "sky": 0.75}}},
    }
    text = domain_gap.as_text(found)
    assert "| streets: before | 12.35 | 678.9 |" in text or "| streets: before | 12.34 | 678.9 |" in text
    assert "| adapted | 25.0 ± 1.0 (25.0 ± 1.0) |" in text
    assert "| adapted | 2.2 | sky 75, road 25 |" in text
    rows = {"real": plain(6, (255, 0, 0)), "before": plain(7, (0, 255, 0))}
    domain_gap.image_sheet(rows, tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as image:
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 20)}
    assert {(255, 0, 0), (0, 255, 0)} <= colors


def test_frames_need_others_to_compare_with(tmp_path):
    argv = ["--frames", str(tmp_path), "--out", str(tmp_path / "o")]
    with pytest.raises(UserError, match="must be given together"):
        parse(DomainGapConfig, argv, "domain_gap.py", "")


def toy(tmp_path, *more: str) -> dict:
    argv = ["--out", str(tmp_path / "out"), "--num-images", "4", "--held-out", "4", "--adapt-steps", "1"]
    argv += ["--max-steps", "1", "--seeds", "1", "--jobs", "1", *more]
    domain_gap.run(parse(DomainGapConfig, argv, "domain_gap.py", ""))
    assert (tmp_path / "out" / "domain_gap.png").exists()
    return json.loads((tmp_path / "out" / "domain_gap.json").read_text())


def check(results: dict, *domains: str) -> None:
    assert set(results["distances"]) == set(results["adaptations"]) == set(domains)
    for rows in results["distances"].values():
        assert set(rows) == {"before", "after", "two halves of the real"}
        assert all(np.isfinite(value) for values in rows.values() for value in values.values())
    for adaptation in results["adaptations"].values():
        assert adaptation["step"] == 1


def test_a_toy_domain_gap_is_measured_to_the_end(tmp_path, monkeypatch, capsys):
    """Drawn streets stand in for painted ones, without adaptation and trainings. The slow test runs all."""
    values = {"mean": 0.25, "std": 0.0, "seeds": [0.25]}
    scores = {"streets": {"mean_iou": values, "mean_iou_given_labels": values}}
    monkeypatch.setattr(
        domain_gap, "run_trials", lambda trials, jobs: {trial.name: scores for trial in trials}
    )
    monkeypatch.setattr(domain_gap, "adapt", lambda data, out, steps: {"step": steps})
    monkeypatch.setattr(
        domain_gap, "paint", lambda out, count, lora: domain_gap.draw_streets(out, count, 5 if lora else 6)
    )
    results = toy(tmp_path)
    check(results, "streets")
    assert set(results["labels"]) == set(results["segmenters"]) == {"unadapted", "adapted", "exact masks"}
    assert results["labels"]["exact masks"]["classes_per_image"] > 5
    assert "| streets: after | " in capsys.readouterr().out


@pytest.mark.slow
def test_a_toy_domain_gap_with_frames_and_trainings(tmp_path):
    for name, seed in (("frames", 3), ("more", 4)):
        (tmp_path / name).mkdir()
        for index, row in enumerate(draw_rows("streets", 4, seed, (128, 256))):
            (tmp_path / name / f"{index}.png").write_bytes(row["image"]["bytes"])
    frames = ("--frames", str(tmp_path / "frames"), "--held-out-frames", str(tmp_path / "more"))
    results = toy(tmp_path, *frames)
    check(results, "streets", "frames")
    for scores in results["segmenters"].values():
        assert 0 <= scores["streets"]["mean_iou"]["mean"] <= 1

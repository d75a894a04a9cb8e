"""The tables of the small Table 3, and how its thresholds and masks are measured."""

import json

import pytest
from zeroshot_models import save_clip

from attn2mask.builders.drawn.rows import draw_rows, write_rows
from attn2mask.builders.errors import UserError
from attn2mask.training.experiments import table3
from attn2mask.training.experiments.table3 import (
    END,
    START,
    Table3Config,
    as_table,
    as_text,
    best_threshold,
    entry,
    measure,
    replace_part,
)


def test_an_entry_is_the_mean_and_the_spread_over_seeds():
    assert entry([0.5]) == "50.0"
    assert entry([0.5, 0.6, 0.7]) == "60.0 ± 10.0"
    assert entry([None]) == entry([]) == "-"


def test_a_table_has_eight_scores_in_each_row():
    metrics = {key: (k + 1) / 100 for k, key in enumerate([*table3.WITHOUT_LABELS, *table3.GIVEN_LABELS])}
    masks = {"mean_iou_given_labels": 0.5, "crf_mean_iou_given_labels": 0.75}
    rows = {"networks": {"objects": [metrics]}, "masks": {"objects": [masks]}}
    head, _, networks, only_given_labels = as_table(rows, "objects").splitlines()
    assert head.startswith(
        "| drawn scenes, % | mIoU | mIoU, CRF | boundary IoU | boundary IoU, CRF | mIoU, given"
    )
    assert networks == "| networks | 1.0 | 2.0 | 3.0 | 4.0 | 5.0 | 6.0 | 7.0 | 8.0 |"
    assert only_given_labels == "| masks | - | - | - | - | 50.0 | 75.0 | - | - |"


def test_the_text_states_command_time_machine_and_compute():
    metrics = dict.fromkeys((*table3.WITHOUT_LABELS, *table3.GIVEN_LABELS), 0.25)
    results = {
        "rows": {"a row": {name: [metrics] for name in table3.SETS}},
        "thresholds": {"MaskCLIP": [0.3, 0.25]},
        "seconds": {"training": 125.0},
        "cores": 2,
        "machine": "A Processor",
        "pairs": 307200,
    }
    text = as_text(results, Table3Config())
    assert text.startswith("```console\n$ make table3\n```\n")
    assert "Time on 2 cores of A Processor: training 2 minutes." in text
    assert "307,200 pairs of image and caption of 20,000 scenes" in text
    assert "MaskCLIP 0.3 and 0.25" in text
    assert text.count("| a row | 25.0 |") == 3
    text = as_text(results, Table3Config(seeds=1, clip_steps=5))
    assert "$ python training/experiments/table3.py --clip-steps 5 --seeds 1\n" in text


def test_only_the_part_between_the_marks_is_replaced(tmp_path):
    file = tmp_path / "results.md"
    file.write_text(f"before\n\n{START}\nold\n{END}\n\nafter\n")
    for _ in range(2):
        replace_part(file, "new")
        assert file.read_text() == f"before\n\n{START}\n\nnew\n\n{END}\n\nafter\n"
    file.write_text("nothing\n")
    with pytest.raises(UserError, match="has no lines"):
        replace_part(file, "new")
    assert file.read_text() == "nothing\n"


def test_the_threshold_is_the_best_one_of_the_command(tmp_path, monkeypatch):
    """The same as the best of one evaluation for each threshold."""
    monkeypatch.setattr(table3, "THRESHOLDS", [0.05, 0.06, 0.5])
    write_rows(draw_rows("objects", 3, 5), tmp_path / "rows")
    clip = str(save_clip(tmp_path / "clip"))
    scores = {}
    for threshold in table3.THRESHOLDS:
        out = tmp_path / f"{threshold}.json"
        options = {"method": "maskclip", "weights": clip, "dataset": str(tmp_path / "rows"), "size": 128}
        found = measure(out, background="threshold", threshold=threshold, **options)
        scores[threshold] = found["mean_iou"] + found["mean_iou_given_labels"]
        assert {"crf_boundary_iou", "crf_mean_iou_given_labels"} <= found.keys()
        out.write_text(json.dumps({"mean_iou": "kept"}))
        assert measure(out, **options) == {"mean_iou": "kept"}
    assert len(set(scores.values())) > 1
    assert best_threshold("maskclip", clip, tmp_path / "rows") == max(scores, key=scores.get)

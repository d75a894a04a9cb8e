"""The progress of an evaluation: what is kept, and when it counts."""

import json

from attn2mask.training.evaluation import ImageCounts
from attn2mask.training.evaluation_progress import EvaluationProgress

IDENTITY = {"weights": "abc", "options": {"method": "maskclip"}}
COUNTS = ImageCounts("a", {"both": [[0, 1, 7]]}, {"both": [[1, 2, 3]]}, True)


def test_counts_are_kept_for_the_same_evaluation_alone(tmp_path):
    file = tmp_path / "m_progress.jsonl"
    EvaluationProgress(file, IDENTITY).add(3, COUNTS)
    assert EvaluationProgress(file, IDENTITY).counts == {3: COUNTS}
    assert EvaluationProgress(file, IDENTITY | {"weights": "def"}).counts == {}
    assert EvaluationProgress(file, IDENTITY).counts == {}  # the other evaluation replaced the file


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    file = tmp_path / "m_progress.jsonl"
    progress = EvaluationProgress(file, IDENTITY)
    progress.add(0, COUNTS)
    progress.add(1, COUNTS)
    text = file.read_text()
    for length in range(len(text) - len(text.splitlines()[-1]) - 1, len(text) - 1):
        file.write_text(text[:length])
        again = EvaluationProgress(file, IDENTITY)
        assert again.counts == {0: COUNTS}
        again.add(1, COUNTS)
        assert EvaluationProgress(file, IDENTITY).counts == {0: COUNTS, 1: COUNTS}
    assert all(json.loads(line) for line in file.read_text().splitlines())

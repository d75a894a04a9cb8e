"""Durations come from a clock that is never set back."""

from pathlib import Path

import attn2mask

ROOT = Path(attn2mask.__file__).parent


def test_no_duration_is_measured_with_the_time_of_day():
    """A clock that is set back would give negative times in messages, records and cards."""
    files = [file for folder in ("builders", "training", "hub") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    assert [file for file in files if "time.time()" in file.read_text("utf-8")] == []

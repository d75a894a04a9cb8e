"""Images that painters are adapted to."""

from pathlib import Path

import pytest
from streets import street


@pytest.fixture(scope="session")
def frames(tmp_path_factory) -> Path:
    """Six street scenes of 144 x 72, two of them with captions."""
    folder = tmp_path_factory.mktemp("frames")
    for index in range(6):
        street(index).save(folder / f"{index}.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a bus"}\n')
    (folder / "2.txt").write_text("a dog on\nthe street.\n")
    return folder

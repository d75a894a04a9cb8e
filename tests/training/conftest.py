"""What trainings need: images that painters are adapted to, and a small backbone."""

from pathlib import Path

import pytest
from streets import street
from transformers import ResNetConfig


@pytest.fixture(scope="session")
def frames(tmp_path_factory) -> Path:
    """Six street scenes of 144 x 72, two of them with captions."""
    folder = tmp_path_factory.mktemp("frames")
    for index in range(6):
        street(index).save(folder / f"{index}.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a bus"}\n')
    (folder / "2.txt").write_text("a dog on\nthe street.\n")
    return folder


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> str:
    """A folder with the configuration of a very small ResNet."""
    folder = tmp_path_factory.mktemp("backbone")
    ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic"
    ).save_pretrained(folder)
    return str(folder)

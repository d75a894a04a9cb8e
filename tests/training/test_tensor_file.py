"""Tensors with a note and a checksum in one file."""

import pytest
import torch

from attn2mask.builders.errors import UserError
from attn2mask.training.tensor_file import open_tensors, write_tensors

TENSORS = {
    "scalar": torch.tensor(3.0),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "empty": torch.zeros(0, 2),
    "transposed": torch.arange(6).reshape(2, 3).T,
}


def test_tensors_and_note_come_back(tmp_path):
    write_tensors(tmp_path / "file", TENSORS, {"step": 5})
    stored, note = open_tensors(tmp_path / "file", "delete it")
    assert note == {"step": 5}
    assert set(stored.keys()) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(stored.get_tensor(name), tensor)
        assert stored.get_tensor(name).dtype == tensor.dtype


def test_every_bit_that_flips_is_found(tmp_path):
    file = tmp_path / "file"
    write_tensors(file, TENSORS, {"step": 5})
    content = file.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        with pytest.raises(UserError, match="file is damaged: delete it"):
            open_tensors(file, "delete it")


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 100])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match="file is damaged: delete it"):
        open_tensors(tmp_path / "file", "delete it", verify=False)


def test_without_verification_the_bytes_are_not_read(tmp_path):
    file = tmp_path / "file"
    write_tensors(file, TENSORS, {"step": 5})
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert open_tensors(file, "delete it", verify=False)[1] == {"step": 5}

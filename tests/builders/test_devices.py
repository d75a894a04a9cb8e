"""The choice of the device, where torch reports the devices of other machines."""

import pytest
import torch
from accelerate import PartialState, state

from attn2mask.builders.devices import default_device, device_name, gpu_count
from attn2mask.builders.painter import load_painter


@pytest.fixture
def machine(monkeypatch):
    """A function that pretends that this machine has a kind of device, and so many of them."""

    def pretend(kind: str, count: int) -> None:
        monkeypatch.setattr(state, "is_mps_available", lambda: kind == "mps")
        monkeypatch.setattr(state, "is_xpu_available", lambda: kind == "xpu")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
        # accelerate sets it with MPS; the test puts back what was there before.
        monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "0")

    PartialState._reset_state()  # its device is kept for the whole process
    yield pretend
    PartialState._reset_state()


@pytest.mark.parametrize(
    ("kind", "there", "device", "gpus"),
    [("cuda", 2, "cuda:1", 2), ("xpu", 4, "xpu:1", 4), ("mps", 1, "mps", 0), ("none", 0, "cpu", 0)],
)
def test_the_device_is_the_one_that_accelerate_chooses(machine, kind, there, device, gpus):
    machine(kind, there)
    assert default_device(1) == device
    assert gpu_count() == gpus
    assert PartialState().default_device.type == torch.device(device).type


def test_a_process_of_a_launcher_is_not_connected_to_the_others(monkeypatch):
    """Without a server at this address, a process that connects would wait and fail."""
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert default_device(1) == "cpu"
    assert not torch.distributed.is_initialized()


def test_a_painter_runs_on_the_default_device(tiny_model, monkeypatch):
    """The device "meta" holds no numbers, so that this test needs no GPU."""
    monkeypatch.setattr("attn2mask.builders.painter.default_device", lambda: "meta")
    painter = load_painter(str(tiny_model("sd15")))
    assert painter.device == painter.pipe.unet.device.type == "meta"


def test_the_name_of_a_device(monkeypatch):
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda device: f"model of {device}")
    assert device_name("xpu:1") == "model of xpu:1"
    assert device_name(torch.device("mps")) == "mps"
    assert device_name("cpu") == "cpu"

"""The devices on which networks run, as accelerate chooses them."""

import torch


def default_device(index: int = 0) -> str:
    """The device of a process: "mps", "cuda:0", "xpu:0" or another kind of GPU, and "cpu" without one.

    `index` is that of the process among those on this machine; each takes its own GPU. The kind is the
    `default_device` of accelerate's `PartialState`.
    """
    from accelerate import PartialState

    # `PartialState()` would connect the processes of a launcher, but those of a build work on their own.
    kind = PartialState.__new__(PartialState).default_device.type
    return kind if kind in ("cpu", "mps") else f"{kind}:{index}"


def gpu_count() -> int:
    """The number of GPUs that processes can divide among themselves: 0 with MPS, which has one for all."""
    return 0 if default_device() in ("cpu", "mps") else torch.accelerator.device_count()


def device_name(device: str | torch.device) -> str:
    """The model of a GPU if torch knows it, such as "NVIDIA H100"; otherwise the kind of the device."""
    device = torch.device(device)
    name_of = getattr(getattr(torch, device.type), "get_device_name", None)
    return device.type if name_of is None else name_of(device)

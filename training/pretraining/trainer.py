"""The training loop of the painter, the referee and the backbone, on any number of processes.

Parameters and activations have the `fast_dtype` of the device, with float32 master weights. The loop is
written here and not taken from a framework because plain arithmetic is the fastest on CPUs, and because a
checkpoint is one safetensors file from which training resumes bit for bit.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from attn2mask.builders.devices import gpu_count
from attn2mask.builders.options import SAME_COMMAND, CheckedOptions, option
from attn2mask.training.run import load_state, save_state

LOGGED_EVERY, SAVED_EVERY, CHECKED_EVERY = 50, 250, 1000  # steps
WARMUP_STEPS = 150  # of the learning rate


@dataclass(frozen=True)
class PretrainingConfig(CheckedOptions):
    """The options that the scripts share. Raises UserError for numbers out of range."""

    RESUMES: ClassVar = SAME_COMMAND

    output_dir: str = option("directory of scenes and checkpoints", "runs/pretraining", stored=False)
    export: str | None = option(
        "directory that the finished model is written to",
        None,
        stored=False,
        default_text="a folder in --output-dir",
        metavar="DIR",
    )
    scenes: int = option("number of drawn scenes to train on", 30_000, at_least=1)
    steps: int = option("number of training steps", 8_000, at_least=1)
    batch_size: int = option("images of a step in each process", 16, at_least=1)
    learning_rate: float = option("highest learning rate", 2e-3, above=0)
    seed: int = option("random seed", 0, at_least=0)


def start_processes() -> PartialState:
    """This process among those that `torchrun` started: its index, their number, its device.

    Without a GPU they communicate through gloo, which accelerate uses only with `cpu=True`.
    """
    return PartialState(cpu=gpu_count() == 0)


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, which is about twice as fast, else float32."""
    fast = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def gaussian_noise(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Standard normal float32 values on the CPU, a function of the state of `rng`."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(int(rng.integers(2**62))))


class Trainer:
    """AdamW on float32 master weights of `modules`, whose own weights get the `fast_dtype`; an exponential
    moving average of the masters, whose decay rises to `ema`; and checkpoints in `path`.

    The learning rate rises over `WARMUP_STEPS`, stays at `learning_rate`, and falls linearly from the
    fraction `decay_from` of `steps` on. If `path` exists, training resumes from it.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        state: PartialState,
        path: Path,
        learning_rate: float,
        steps: int,
        ema: float = 0.998,
        decay_from: float = 0.4,
    ) -> None:
        self.modules, self.state, self.path = modules, state, path
        self.learning_rate, self.steps, self.ema, self.decay_from = learning_rate, steps, ema, decay_from
        for module in modules.values():
            module.to(state.device)
        named = [(f"{m}.{n}", p) for m, module in modules.items() for n, p in module.named_parameters()]
        self.params = {name: param for name, param in named if param.requires_grad}
        self.masters = [param.detach().float().clone() for param in self.params.values()]
        self.frozen = [(p, p.detach().clone()) for _, p in named if not p.requires_grad]
        self.means = [master.clone() for master in self.masters]
        for module in modules.values():
            module.to(fast_dtype(state.device))
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01, foreach=True
        )
        self.step = 0
        if path.exists():
            self._load()

    def rate(self) -> float:
        """The learning rate of the next step."""
        left = (self.steps - self.step) / max(1, self.steps * (1 - self.decay_from))
        return self.learning_rate * min(1.0, (self.step + 1) / WARMUP_STEPS, max(left, 0.01))

    def update(self, loss: Tensor) -> None:
        """One optimizer step on the mean gradient of all processes, its norm clipped to 1."""
        loss.backward()
        gradient = torch.cat([param.grad.reshape(-1) for param in self.params.values()]).float()
        if self.state.num_processes > 1:  # `reduce` copies its input, which costs a tenth of a step
            gradient = reduce(gradient, "mean")
        norm = gradient.norm()
        gradient *= min(1.0, 1.0 / float(norm)) if torch.isfinite(norm) else 0.0
        parts = gradient.split([master.numel() for master in self.masters])
        for master, param, part in zip(self.masters, self.params.values(), parts, strict=True):
            master.grad, param.grad = part.view_as(master), None
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        decay = min(self.ema, (self.step + 1) / (self.step + 10))
        get_ema_multi_avg_fn(decay)(self.means, self.masters, self.step)
        self._use(self.masters)
        self.step += 1

    def run(
        self, name: str, loss: Callable[[int], Tensor], check: Callable[[int], None] | None = None
    ) -> None:
        """Train until `steps`, with the loss of each step, and put the averaged weights into the modules, in
        float32. Weights that need no gradient stay as they were.

        Every `CHECKED_EVERY` steps, and at the end, the main process calls `check` with the step.
        """
        main = self.state.is_main_process
        bar = tqdm(total=self.steps, initial=self.step, desc=name, disable=not main, mininterval=5)
        total, started = 0.0, time.monotonic()
        while self.step < self.steps:
            value = loss(self.step)
            self.update(value)
            total += float(value.detach())
            bar.update()
            done = self.step == self.steps
            if self.step % LOGGED_EVERY == 0:
                mean, total = total / LOGGED_EVERY, 0.0
                bar.set_postfix(loss=f"{mean:.4f}", lr=f"{self.rate():.1e}")
                if main:
                    self.log(stage=name, step=self.step, loss=mean, seconds=time.monotonic() - started)
            if main and (done or self.step % SAVED_EVERY == 0):
                self.save()
            if main and check and (done or self.step % CHECKED_EVERY == 0):
                check(self.step)
        bar.close()
        self.state.wait_for_everyone()
        for module in self.modules.values():
            module.float()
        self._use(self.means)
        with torch.no_grad():
            for param, weight in self.frozen:
                param.copy_(weight)

    def log(self, **record: object) -> None:
        """Append a line to log.jsonl beside the checkpoint."""
        with (self.path.parent / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def save(self) -> None:
        """Write the checkpoint, in one step."""
        save_state(self.path, self._weights(), self.optimizer, {"step": self.step})

    def _load(self) -> None:
        weights, moments, note = load_state(self.path)
        for name, tensor in self._weights().items():
            tensor.copy_(weights[name])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.step = note["step"]
        self._use(self.masters)

    def _weights(self) -> dict[str, Tensor]:
        masters = {f"master/{name}": master for name, master in zip(self.params, self.masters, strict=True)}
        return masters | {f"mean/{name}": mean for name, mean in zip(self.params, self.means, strict=True)}

    @torch.no_grad()
    def _use(self, weights: list[Tensor]) -> None:
        for param, weight in zip(self.params.values(), weights, strict=True):
            param.copy_(weight)

"""What the painter and the referee train with: bfloat16 weights with float32 masters on any number of
processes.

The loop of a few lines that both share, rather than a framework's: on CPUs it is its plain arithmetic that
makes training fast, and a checkpoint is one safetensors file from which training goes on to the last bit.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm


class Ranks:
    """The processes that train together: a rank, their number, and the mean of their gradients."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        cuda = torch.cuda.is_available()
        self.device = (
            torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
        )
        if self.size > 1:
            dist.init_process_group("nccl" if cuda else "gloo")

    @property
    def main(self) -> bool:
        return self.rank == 0

    def mean_(self, flat: torch.Tensor) -> torch.Tensor:
        """``flat`` averaged over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(flat)
            flat /= self.size
        return flat

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """End the process group, after all work."""
        if self.size > 1:
            dist.destroy_process_group()


class Trainer:
    """bfloat16 parameters with float32 masters, AdamW, an exponential mean of the weights, and exact
    resume.
    """

    def __init__(
        self,
        modules: dict[str, torch.nn.Module],
        ranks: Ranks,
        path: Path,
        *,
        learning_rate: float,
        steps: int,
        ema: float,
        decay_from: float = 0.4,
    ) -> None:
        self.ranks, self.path, self.steps, self.ema = ranks, path, steps, ema
        self.learning_rate, self.decay_from = learning_rate, decay_from
        self.modules = modules
        for module in modules.values():
            module.to(ranks.device)
        named = [(f"{m}.{n}", p) for m, module in modules.items() for n, p in module.named_parameters()]
        named = [(n, p) for n, p in named if p.requires_grad]
        self.names = [n for n, _ in named]
        self.masters = [p.detach().float().clone() for _, p in named]
        self.means = [m.clone() for m in self.masters]
        for _, p in named:
            p.data = p.data.to(torch.bfloat16)
        for module in modules.values():
            module.to(torch.bfloat16)
        self.params = [p for _, p in named]
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01, foreach=True
        )
        self.step = 0
        if path.exists():
            self._load()

    def rate(self) -> float:
        """The learning rate: warm-up, constant, then linear decay."""
        left = (self.steps - self.step) / max(1, self.steps * (1 - self.decay_from))
        return self.learning_rate * min(1.0, (self.step + 1) / 150, max(left, 0.01))

    def update(self, loss: torch.Tensor) -> None:
        """One optimizer step on the mean gradient of all processes."""
        loss.backward()
        flat = torch.cat([p.grad.reshape(-1) for p in self.params]).float()
        self.ranks.mean_(flat)
        norm = flat.norm()
        flat *= min(1.0, 1.0 / float(norm)) if torch.isfinite(norm) else 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        offset = 0
        for master, param in zip(self.masters, self.params, strict=True):
            master.grad = flat[offset : offset + master.numel()].view_as(master)
            offset += master.numel()
            param.grad = None
        self.optimizer.step()
        torch._foreach_lerp_(self.means, self.masters, 1 - min(self.ema, (self.step + 1) / (self.step + 10)))
        for master, param in zip(self.masters, self.params, strict=True):
            param.data.copy_(master)
        self.step += 1

    def save(self) -> None:
        """Write the state under a temporary name, then rename it."""
        if not self.ranks.main:
            return
        tensors = {}
        for i, name in enumerate(self.names):
            state = self.optimizer.state[self.masters[i]]
            tensors |= {f"master/{name}": self.masters[i], f"mean/{name}": self.means[i]}
            tensors |= {f"first/{name}": state["exp_avg"], f"second/{name}": state["exp_avg_sq"]}
        temporary = self.path.with_suffix(".tmp")
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, temporary, {"step": str(self.step)})
        os.replace(temporary, self.path)

    def _load(self) -> None:
        with safe_open(self.path, "pt", device=str(self.ranks.device)) as file:
            self.step = int(file.metadata()["step"])
            for i, name in enumerate(self.names):
                self.masters[i].copy_(file.get_tensor(f"master/{name}"))
                self.means[i].copy_(file.get_tensor(f"mean/{name}"))
                self.params[i].data.copy_(self.masters[i])
                self.optimizer.state[self.masters[i]] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": file.get_tensor(f"first/{name}"),
                    "exp_avg_sq": file.get_tensor(f"second/{name}"),
                }

    def mean_weights(self) -> None:
        """Put the averaged weights into the modules, in float32."""
        for module in self.modules.values():
            module.float()
        for param, mean in zip(self.params, self.means, strict=True):
            param.data = mean.clone()

    def run(
        self, name: str, loss: Callable[[int], torch.Tensor], every: Callable[[int], None] | None = None
    ) -> None:
        """Step until ``steps``; log, checkpoint and call ``every`` now and then."""
        bar = tqdm(total=self.steps, initial=self.step, desc=name, disable=not self.ranks.main, mininterval=5)
        log = (self.path.parent / "log.jsonl").open("a") if self.ranks.main else None
        shown, started = 0.0, time.time()
        while self.step < self.steps:
            value = loss(self.step)
            self.update(value)
            shown += float(value.detach())
            bar.update()
            if self.step % 50 == 0:
                bar.set_postfix(loss=f"{shown / 50:.4f}", lr=f"{self.rate():.1e}")
                if log:
                    record = {
                        "stage": name,
                        "step": self.step,
                        "loss": shown / 50,
                        "seconds": time.time() - started,
                    }
                    log.write(json.dumps(record) + "\n")
                    log.flush()
                shown = 0.0
            if self.step % 250 == 0 or self.step == self.steps:
                self.save()
            if every and self.ranks.main and (self.step % 1000 == 0 or self.step == self.steps):
                every(self.step)
        bar.close()
        self.ranks.wait()

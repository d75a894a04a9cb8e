"""The training loop resumes bit for bit, averages by its formula, and runs on two processes."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from attn2mask.training.pretraining.trainer import Trainer, start_processes
from attn2mask.training.run import load_state


@pytest.fixture(autouse=True)
def fresh_state():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def trainer(path, steps):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1))
    return net, Trainer({"net": net}, start_processes(), path, learning_rate=1e-2, steps=steps, ema=0.9)


def loss_of(net):
    def loss(step):
        weight = next(net.parameters())
        x = torch.from_numpy(np.random.default_rng(step).normal(size=(16, 4)).astype(np.float32)).to(weight)
        return (net(x).float() - x.float().sum(1, keepdim=True)).square().mean()

    return loss


def run(net, worker, until):
    while worker.step < until:
        worker.update(loss_of(net)(worker.step))


def test_training_resumes_bit_for_bit(tmp_path):
    net, straight = trainer(tmp_path / "a.safetensors", 20)
    run(net, straight, 20)
    net, broken = trainer(tmp_path / "b.safetensors", 20)
    run(net, broken, 11)
    broken.save()
    net, resumed = trainer(tmp_path / "b.safetensors", 20)
    assert resumed.step == 11
    run(net, resumed, 20)
    for one, two in zip(straight.masters + straight.means, resumed.masters + resumed.means, strict=True):
        assert torch.equal(one, two)


def test_a_process_among_others_on_cpus_resumes(tmp_path):
    """Its device has a number, which safetensors does not take."""
    net, straight = trainer(tmp_path / "a.safetensors", 3)
    run(net, straight, 2)
    straight.save()
    weights, _, note = load_state(tmp_path / "a.safetensors")
    assert note == {"step": 2}
    assert torch.equal(weights["master/net.0.weight"], straight.masters[0])


def test_the_average_is_that_of_its_formula(tmp_path):
    net, worker = trainer(tmp_path / "a.safetensors", 6)
    expected = [master.clone() for master in worker.masters]
    for step in range(6):
        worker.update(loss_of(net)(step))
        decay = min(0.9, (step + 1) / (step + 10))
        expected = [decay * e + (1 - decay) * m for e, m in zip(expected, worker.masters, strict=True)]
    torch.testing.assert_close(worker.means, expected)


def test_a_finished_run_leaves_the_averaged_weights_and_a_log(tmp_path):
    checked = []
    net, worker = trainer(tmp_path / "a.safetensors", 50)
    worker.run("toy", loss_of(net), checked.append)
    assert checked == [50]
    for param, mean in zip(net.parameters(), worker.means, strict=True):
        assert param.dtype == torch.float32
        assert torch.equal(param, mean)
    assert '"step": 50' in (tmp_path / "log.jsonl").read_text()
    assert (tmp_path / "a.safetensors").exists()


def test_frozen_weights_stay_as_they_were(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1))
    net[0].requires_grad_(False)
    before = [param.clone() for param in net[0].parameters()]
    worker = Trainer({"net": net}, start_processes(), tmp_path / "a.safetensors", learning_rate=1e-2, steps=2)
    trained = [param.clone() for param in worker.masters]
    worker.run("net", loss_of(net))
    assert all(torch.equal(a, b) for a, b in zip(before, net[0].parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(trained, worker.masters, strict=True))


def test_two_processes_learn_from_the_mean_gradient(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        "import torch, sys\nfrom pathlib import Path\n"
        "from attn2mask.training.pretraining.trainer import Trainer, start_processes\n"
        "state = start_processes()\n"
        "net = torch.nn.Linear(1, 1, bias=False)\n"
        "net.weight.data.fill_(1.0)\n"
        "path = Path(sys.argv[1]) / f'{state.process_index}.safetensors'\n"
        "trainer = Trainer({'net': net}, state, path, learning_rate=0.1, steps=5, ema=0.9)\n"
        "for _ in range(3):\n"  # gradients of 1 and -3: their mean is -1, so the weight grows
        "    x = torch.tensor([[1.0, -3.0][state.process_index]], dtype=net.weight.dtype)\n"
        "    trainer.update(net(x).sum())\n"
        "trainer.save()\n"
        "result = f'{state.num_processes} {float(trainer.masters[0])}'\n"
        "path.with_suffix('.txt').write_text(result)\n"  # lines of two processes may mix on standard output
        "state.destroy_process_group()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (processes, weight), other = ((tmp_path / f"{rank}.txt").read_text().split() for rank in range(2))
    assert [processes, weight] == other
    assert processes == "2"
    assert float(weight) > 1

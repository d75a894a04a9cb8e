"""A run of training: what it leaves, that it resumes bit for bit after a kill, and what it refuses."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import load_dataset
from PIL import Image
from places import ROOT
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSemanticSegmentation, pipeline

from attn2mask.builders.drawn.rows import draw_rows, exact_row, write_rows
from attn2mask.builders.errors import UserError
from attn2mask.builders.locks import locked
from attn2mask.builders.options import parse
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cli import main
from attn2mask.training import run as run_module
from attn2mask.training import train as module
from attn2mask.training.checkpoint import load_checkpoint
from attn2mask.training.config import TrainConfig
from attn2mask.training.tensor_file import write_tensors


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Twelve drawn scenes of 64 pixels, the left half of each not reliable."""
    folder = tmp_path_factory.mktemp("rows")

    def rows():
        from attn2mask.builders.drawn.scenes import draw_scene

        for index in range(12):
            scene = draw_scene("objects", np.random.default_rng([4, index]), 64)
            reliability = np.full_like(scene.mask, 255)
            reliability[:, :32] = 0
            yield exact_row(f"r{index}", scene.image, scene.mask, reliability)

    write_rows(rows(), folder)
    return folder


SIX_STEPS = {"max_steps": 6, "batch_size": 4, "crop_size": 48, "checkpoint_every": 2, "workers": 0}


@pytest.fixture
def config(data, backbone, tmp_path) -> TrainConfig:
    return TrainConfig(
        dataset=str(data),
        output_dir=str(tmp_path / "run"),
        preset="demo-beco",
        backbone=backbone,
        **SIX_STEPS,
    )


def test_a_run_leaves_networks_that_anyone_can_load(config, data):
    module.train(replace(config, eval_dataset=str(data), eval_every=3, report_to="tensorboard"))
    output = Path(config.output_dir)
    checkpoint = load_checkpoint(output)
    assert checkpoint.names[:2] == ("background", "aeroplane")
    record = checkpoint.record
    assert (record["format_version"], record["command"], record["step"]) == (3, "train", 6)
    assert record["options"]["max_steps"] == 6
    assert record["options"]["learning_rate"] == 1.5e-3  # the preset's
    assert (
        parse(TrainConfig, ["--config", str(output / "train.yaml")], "", "")
        == replace(
            config, eval_dataset=str(data), eval_every=3, output_dir=TrainConfig.output_dir, workers=None
        ).resolve()
    )
    one, two = (net.state_dict() for net in (checkpoint.network, checkpoint.peer))
    assert not any(torch.equal(one[name], two[name]) for name in one if name.endswith("conv.weight"))
    labels = pipeline("image-segmentation", model=str(output))(
        str(next(iter((output / "predictions").glob("*.png"))))
    )
    assert labels[0]["mask"].size[0] > 0
    assert isinstance(AutoModelForSemanticSegmentation.from_pretrained(output), type(checkpoint.network))
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["num_images"] == 12
    assert 0 <= metrics["mean_iou"] <= 1
    assert set(metrics["networks"]) == {"a", "b"}
    assert record["chosen_on"] is None
    best = json.loads((output / "best" / "selection.json").read_text())
    assert best["mean_iou"] >= metrics["mean_iou"]
    chosen = load_checkpoint(output / "best")
    assert chosen.peer is not None
    assert chosen.record["chosen_on"] == {"dataset": str(data), "split": None}
    assert {p.name for p in (output / "predictions").iterdir()} == {"step-000003.png", "step-000006.png"}
    logged = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert {"loss_a", "loss_b", "learning_rate", "images_per_second"} <= set(logged[0])
    assert any("eval_mean_iou" in line for line in logged)
    images = tracked_images(output / "logs")
    assert set(images) == {
        "crops",
        "labels",
        *(f"predictions/{number}" for number in range(1, len(images) - 1)),
    }
    assert {tag: [step for step, _ in of_tag] for tag, of_tag in images.items() if tag[:4] != "pred"} == {
        "crops": [0],
        "labels": [0],
    }
    assert [step for step, _ in images["predictions/1"]] == [3, 6]
    strip = images["predictions/1"][0][1]
    side = strip.shape[1] // 3
    assert strip.shape == (side, 3 * side, 3)
    # The rows are those of the data set, one of which the strip shows.
    shown = [np.asarray(example["image"]) for example in load_dataset(str(data), split="train")]
    assert any(np.array_equal(strip[:, :side], image) for image in shown)


def tracked_images(folder: Path) -> dict[str, list[tuple[int, np.ndarray]]]:
    """The images that TensorBoard's files hold: steps and pixels (H, W, 3) uint8 of each tag."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {
        tag: [
            (event.step, np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")))
            for event in events.Images(tag)
        ]
        for tag in events.Tags()["images"]
    }


def test_trackers_get_images_in_the_form_that_each_takes():
    given = []

    def tracker(name: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, log_images=lambda *args, **more: given.append((name, args, more)))

    trackers = [tracker(name) for name in ("tensorboard", "mlflow", "wandb")]
    run = SimpleNamespace(accelerator=SimpleNamespace(trackers=trackers), step=7)
    images = [np.full((2, 3, 3), level, np.uint8) for level in (1, 2)]
    run_module.Run.log_images(run, {"labels": images})
    (_, (stacked,), board), (_, (listed,), wandb) = given
    assert [name for name, _, _ in given] == ["tensorboard", "wandb"]
    assert stacked["labels"].shape == (2, 2, 3, 3)
    assert (stacked["labels"][1] == 2).all()
    assert board == {"step": 7, "dataformats": "NHWC"}
    assert listed["labels"] is images
    assert wandb == {"step": 7}


def test_the_labels_of_crops_are_white_where_they_are_not_trusted():
    """A grey image, so that a class has its color and the ignore value is lighter than all of them."""
    table, given = load_table("voc"), {}
    batch = {
        "pixels": torch.full((9, 3, 1, 3), 100, dtype=torch.uint8),
        "label": torch.tensor([[[0, 12, 12]]]).repeat(9, 1, 1),
        "trusted": torch.tensor([[[True, True, False]]]).repeat(9, 1, 1),
    }
    module.Training.log_crops(SimpleNamespace(table=table, log_images=given.update), batch)
    assert len(given["crops"]) == len(given["labels"]) == 8
    assert (given["crops"][0] == 100).all()
    background, dog, ignored = given["labels"][0][0].astype(int)
    assert background.tolist() == [100, 100, 100]
    assert dog.tolist() == [int(0.65 * channel + 0.35 * 100) for channel in table.palette[12].tolist()]
    assert ignored.tolist() == [int(0.65 * 255 + 0.35 * 100)] * 3


class Killed(Exception):
    pass


@pytest.mark.parametrize("changed", [{}, {"no_co_training": True}, {"streaming": True}, {"micro_batch": 2}])
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(config, changed, tmp_path, monkeypatch):
    config = replace(config, **changed)
    straight = replace(config, output_dir=str(tmp_path / "straight"))
    module.train(straight)
    count = module.Training.count
    for dies_at in (1, 3, 5):

        def dying(run, losses, rows, dies_at=dies_at):
            if run.step + 1 == dies_at:
                raise Killed
            count(run, losses, rows)

        monkeypatch.setattr(module.Training, "count", dying)
        with pytest.raises(Killed):
            module.train(replace(config, resume=dies_at > 1))
    monkeypatch.setattr(module.Training, "count", count)
    module.train(replace(config, resume=True))
    one, two = (load_file(f"{c.output_dir}/state.safetensors") for c in (straight, config))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    steps = [json.loads(line)["step"] for line in (Path(config.output_dir) / "log.jsonl").open()]
    assert steps == sorted(set(steps))
    module.train(replace(config, resume=True))  # finished: nothing to do


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_that_was_made(config, tmp_path, monkeypatch, capsys, which):
    """Then the same command with --resume ends with the weights of a run that was not disturbed."""
    config = replace(config, checkpoint_every=100, workers=1)
    straight = replace(config, output_dir=str(tmp_path / "straight"))
    module.train(straight)
    count = module.Training.count

    def interrupted(run, *rest):
        count(run, *rest)
        if run.step == 3:
            os.kill(os.getpid(), which)

    monkeypatch.setattr(run_module, "end", lambda accelerator: None)
    given = {name: getattr(config, name) for name in ("preset", "checkpoint_every", "workers")}
    options = arguments(config, **{"max-steps": 6}, **{k.replace("_", "-"): v for k, v in given.items()})
    with monkeypatch.context() as patch:
        patch.setattr(module.Training, "count", interrupted)
        with pytest.raises(SystemExit, match="143") if which == signal.SIGTERM else nullcontext():
            assert main(["train", *options]) == 130
    assert f"{config.output_dir} holds step 3" in capsys.readouterr().err
    assert run_module.saved_step(Path(config.output_dir)) == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert main(["train", *options, "--resume"]) == 0
    one, two = (load_file(f"{c.output_dir}/state.safetensors") for c in (straight, config))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def killed(data, backbone, tmp_path_factory) -> TrainConfig:
    """A run of 6 steps with a checkpoint of step 2, which was killed after step 3."""
    config = TrainConfig(
        dataset=str(data),
        output_dir=str(tmp_path_factory.mktemp("killed") / "run"),
        backbone=backbone,
        **SIX_STEPS,
        no_co_training=True,
        resume=True,
    )
    count = module.Training.count

    def dying(run, *rest):
        count(run, *rest)
        if run.step == 3:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Training, "count", dying)
        with pytest.raises(Killed):
            module.train(config)
    return config


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        *(
            ("run.json", text, "run.json is not as it was written: choose")
            for text in ("[]", "null", "1", "{}")
        ),
        *(("log.jsonl", text, "log.jsonl, line 1 is damaged: delete") for text in ("[]\n", "{}\n", "null\n")),
        ("state.safetensors", "x", "state.safetensors is damaged: delete it"),
    ],
)
def test_damaged_files_of_a_run_end_in_one_line(killed, file, content, message, tmp_path):
    run = replace(killed, output_dir=str(shutil.copytree(killed.output_dir, tmp_path / "run")))
    (tmp_path / "run" / file).write_text(content)
    with pytest.raises(UserError, match=message):
        module.train(run)


def test_a_state_that_is_not_the_last_one_of_this_run_is_refused(killed, tmp_path):
    output = shutil.copytree(killed.output_dir, tmp_path / "run")
    run, state = replace(killed, output_dir=str(output)), output / "state.safetensors"
    with safe_open(state, "pt") as stored:
        note = json.loads(stored.metadata()["note"])
    assert note["step"] == 2
    tensors = load_file(state)
    for changed, message in (
        ({"step": -5}, "is damaged"),
        ({"step": 1.5}, "is damaged"),
        ({"run": "0" * 64}, "is of another run than run.json"),
    ):
        write_tensors(state, tensors, note | changed)
        with pytest.raises(UserError, match=rf"state.safetensors {message}: delete it"):
            module.train(run)
    write_tensors(state, {**tensors, next(iter(tensors)): torch.zeros(1, 2, 3)}, note)
    with pytest.raises(UserError, match=r"state.safetensors does not fit this run: delete it"):
        module.train(run)
    content = bytearray((Path(killed.output_dir) / "state.safetensors").read_bytes())
    content[-2] ^= 64
    state.write_bytes(content)
    with pytest.raises(UserError, match=r"state.safetensors is damaged: delete it"):
        module.train(run)
    state.unlink()
    module.train(run)  # it starts again, as the message says
    assert run_module.saved_step(output) == 6


def test_a_run_resumes_from_another_folder_with_the_same_content_alone(killed, data, backbone, tmp_path):
    output = shutil.copytree(killed.output_dir, tmp_path / "run")
    rows, weights = shutil.copytree(data, tmp_path / "a"), shutil.copytree(backbone, tmp_path / "b")
    run = replace(killed, output_dir=str(output), dataset=str(rows), backbone=str(weights))
    write_rows(draw_rows("objects", 12, 5, 64), rows)
    with pytest.raises(UserError, match=r"holds another run: rows \(sha256:\w+ there, sha256:\w+ now\);"):
        module.train(run)
    shutil.copytree(data, rows, dirs_exist_ok=True)
    (weights / "config.json").write_text((weights / "config.json").read_text() + " ")
    with pytest.raises(UserError, match=r"holds another run: backbone \(sha256:\w+ there"):
        module.train(run)
    shutil.copy(Path(backbone) / "config.json", weights)
    module.train(run)
    assert run_module.saved_step(output) == 6


def test_two_runs_in_one_directory(killed, tmp_path, monkeypatch):
    output = shutil.copytree(killed.output_dir, tmp_path / "run")
    monkeypatch.setattr(run_module, "PATIENCE", 0.1)
    before = {name: (output / name).read_bytes() for name in ("run.json", "state.safetensors", "log.jsonl")}
    with (
        locked(output, 0, "process 1 on a machine", "run"),
        pytest.raises(UserError, match=r"another run is working in .*: process 1 on a machine; wait"),
    ):
        module.train(replace(killed, output_dir=str(output)))
    assert {name: (output / name).read_bytes() for name in before} == before


def test_damaged_weights_of_a_finished_run_are_written_again(killed, tmp_path):
    output = shutil.copytree(killed.output_dir, tmp_path / "run")
    run = replace(killed, output_dir=str(output))
    module.train(run)
    content = (output / "model.safetensors").read_bytes()
    (output / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 64]))
    with pytest.raises(UserError, match=r"model.safetensors is .*run the command that made it with --resume"):
        load_checkpoint(output)
    module.train(run)
    assert (output / "model.safetensors").read_bytes() == content


def test_full_memory_ends_in_one_line(config, monkeypatch):
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("can't allocate memory")):

        def full(*rest, error=error):
            raise error

        monkeypatch.setattr(module, "cotraining_losses", full)
        with pytest.raises(UserError, match=r"memory was full at step 1: lower --micro-batch, .*memory"):
            module.train(replace(config, resume=True))


@pytest.mark.slow
def test_a_compiled_run_goes_on_without_a_compiler(config, tmp_path, monkeypatch):
    """As under `accelerate launch --dynamo_backend`; this backend traces, and runs that as it is."""
    straight = replace(config, output_dir=str(tmp_path / "straight"))
    module.train(straight)
    losses = module.cotraining_losses
    count = module.Training.count

    def compiled(forward, *rest):
        assert isinstance(forward, torch._dynamo.OptimizedModule)
        return losses(forward, *rest)

    def dying(run, *rest):
        if run.step + 1 == 3:
            raise Killed
        count(run, *rest)

    monkeypatch.setattr(module, "cotraining_losses", compiled)
    monkeypatch.setattr(module.Training, "count", dying)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
    AcceleratorState._reset_state()  # it reads the environment once in a process
    with pytest.raises(Killed):
        module.train(config)
    AcceleratorState._reset_state()
    monkeypatch.undo()
    module.train(replace(config, resume=True))
    one, two = (load_file(f"{c.output_dir}/state.safetensors") for c in (straight, config))
    assert one.keys() == two.keys()
    for name, values in one.items():
        torch.testing.assert_close(two[name], values, rtol=1e-4, atol=1e-5)


def test_a_run_killed_before_its_last_export_makes_up_for_it(config, monkeypatch):
    def killed(run):
        raise Killed

    finish = module.Training.finish
    monkeypatch.setattr(module.Training, "finish", killed)
    with pytest.raises(Killed):
        module.train(config)
    monkeypatch.setattr(module.Training, "finish", finish)
    module.train(replace(config, resume=True))
    assert load_checkpoint(config.output_dir).record["step"] == config.max_steps


def test_the_learning_rate_follows_the_schedule(config):
    module.train(config)
    logged = [json.loads(line) for line in (Path(config.output_dir) / "log.jsonl").open()]
    config = config.resolve()
    assert logged
    for line in logged:
        expected = config.learning_rate * config.rate(line["step"])
        assert line["learning_rate"] == pytest.approx(expected)


def test_a_loss_that_is_not_finite_names_its_rows(config):
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step \d, on rows r\d+, r\d+, r\d+, r\d+;"):
        module.train(replace(config, learning_rate=1e30))


def test_directories_that_are_not_this_runs(config, tmp_path):
    module.train(config)
    with pytest.raises(UserError, match="give --resume"):
        module.train(config)
    with pytest.raises(UserError, match=r"another run: seed \(0 there, 1 now\)"):
        module.train(replace(config, seed=1, resume=True))
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        module.train(replace(config, output_dir=str(other)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 1}, "pastes one image on another"),
        ({"batch_size": 1, "no_mixing": True}, "one image at a time"),
        ({"crop_size": 16}, "--crop-size"),
        ({"max_steps": 0}, "--max-steps"),
        ({"architecture": "unet"}, "--architecture"),
        ({"backbone": "scratch:giant"}, "scratch: takes small"),
        ({"dataset": "no/such/place"}, "rows that can be read"),
    ],
)
def test_mistakes_end_in_one_line(config, changed, message):
    with pytest.raises(UserError, match=message) as found:
        module.train(replace(config, **changed))
    assert "\n" not in str(found.value)
    assert not (Path(config.output_dir) / "run.json").exists()


def test_a_bad_row_in_a_loading_process_ends_in_one_line(config, tmp_path):
    """The mask has another size than its image, which is seen while the row is loaded."""
    image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    write_rows([exact_row("bad", image, mask) | {"mask": Image.fromarray(mask[1:])}], tmp_path / "bad")
    with pytest.raises(UserError, match=r"^row bad: the image has \(64, 64\) pixels, but its mask has"):
        module.train(replace(config, dataset=str(tmp_path / "bad"), workers=1))


def launch(arguments: list[str], processes: int = 1) -> subprocess.CompletedProcess:
    """`torchrun` on the CPU; accelerate's own launcher starts processes in the same way."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
            str(ROOT / "training" / "train.py"),
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


def arguments(config: TrainConfig, **more) -> list[str]:
    given = {
        "dataset": config.dataset[0],
        "output-dir": config.output_dir,
        "max-steps": 2,
        "batch-size": 4,
        "crop-size": 48,
        "workers": 0,
        "backbone": config.backbone,
        **more,
    }
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def test_two_processes_train_together(config):
    done = launch(arguments(config), processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 processes x 2 images x 1 accumulated = 4 in a step") == 1
    assert load_checkpoint(config.output_dir).peer is not None


def test_a_preset_without_its_weights_ends_in_one_line(config):
    done = launch(arguments(config, preset="voc-resnet50", backbone=None))
    assert done.returncode == 1
    error = next(line for line in done.stderr.splitlines() if "cannot be fetched" in line)
    assert "local folder or file with its weights, or --backbone scratch:resnet50d" in error
    assert not Path(config.output_dir).exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("preset", "backbone"),
    [
        ("voc-resnet50", "scratch:resnet50d"),
        ("voc-swin-base", "scratch:swin-base"),
        ("voc-swin-base-upernet", "scratch:swin-base"),
    ],
)
def test_presets_run_from_random_weights(config, preset, backbone, processes):
    options = arguments(
        config, preset=preset, backbone=backbone, **{"batch-size": 2 * processes, "crop-size": 128}
    )
    done = launch(options, processes)
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(config.output_dir).record["options"]["max_steps"] == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_online_labels_wait_for_a_pass_over_the_first_rows(config, monkeypatch, streaming):
    losses, used = module.cotraining_losses, []

    def watched(forward, online, *rest):
        used.append(online is not None)
        return losses(forward, online, *rest)

    monkeypatch.setattr(module, "cotraining_losses", watched)
    module.train(replace(config, num_rows=8, streaming=streaming))
    assert used == [False, False, True, True, True, True]  # 8 rows in batches of 4
    record = load_checkpoint(config.output_dir).record
    assert record["options"]["num_rows"] == 8


@pytest.mark.slow
def test_kill_9_loses_nothing(config, data, tmp_path):
    import time

    straight = str(tmp_path / "straight")
    many = {"max-steps": 30, "checkpoint-every": 3}
    assert launch(arguments(config, **many, **{"output-dir": straight})).returncode == 0
    rng = np.random.default_rng(0)
    command = [sys.executable, str(ROOT / "training" / "train.py"), *arguments(config, **many), "--resume"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for _ in range(8):
        running = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(4, 14))
        running.kill()
        running.wait()
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    one, two = (load_file(Path(d) / "state.safetensors") for d in (straight, config.output_dir))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_drawn_rows_are_functions_of_seed_and_index(tmp_path):
    first, again = (list(draw_rows("shifted", 2, 9, 64)) for _ in range(2))
    assert first == again
    assert first[0]["sample_id"] == "shifted-9-000000"

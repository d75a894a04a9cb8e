"""Adaptation: what a run leaves, that it resumes bit for bit after a kill, and what it refuses."""

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from PIL import Image
from places import ROOT
from safetensors.torch import load_file
from streets import png, street

from attn2mask.builders.errors import UserError
from attn2mask.builders.locks import locked
from attn2mask.builders.options import parse
from attn2mask.builders.painter import load_painter
from attn2mask.builders.provenance import LORA_WEIGHTS, fingerprint
from attn2mask.builders.recorder import AttentionRecorder
from attn2mask.hub.cli import main
from attn2mask.training import adapt as module
from attn2mask.training import run as run_module
from attn2mask.training.adaptation.config import AdaptConfig
from attn2mask.training.adaptation.lora import check_pipeline

CAMVID = ROOT.parent / "shared" / "data" / "camvid" / "val" / "images"
PROMPT = "a red bus on the street"


@pytest.fixture(scope="module")
def small(tiny_pipeline, tmp_path_factory) -> str:
    """The folder of a painter with hardly any layers."""
    pipe = tiny_pipeline("sd15")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(
            pipe.unet.config,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    folder = tmp_path_factory.mktemp("models") / "small"
    type(pipe)(**{**pipe.components, "unet": unet}, requires_safety_checker=False).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def config(frames, small, tmp_path) -> AdaptConfig:
    return AdaptConfig(
        data=str(frames),
        output_dir=str(tmp_path / "run"),
        model=small,
        max_steps=4,
        batch_size=2,
        rank=2,
        crop_size=64,
        checkpoint_every=2,
        sample_every=0,
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Samples and class images of two steps each, and no collecting of garbage at the end of a run."""

    def load(*args, **options):
        painter = load_painter(*args, **options)
        painter.defaults = replace(painter.defaults, steps=2)
        return painter

    monkeypatch.setattr(module, "load_painter", load)
    monkeypatch.setattr(module, "end", lambda accelerator: accelerator.end_training())


def lora(config: AdaptConfig) -> dict[str, torch.Tensor]:
    return load_file(Path(config.output_dir) / LORA_WEIGHTS)


def paint(pipe: DiffusionPipeline) -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    options = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np"}
    return pipe(PROMPT, generator=generator, **options).images


def command(config: AdaptConfig) -> list[str]:
    given = {k: v for k, v in asdict(config).items() if v is not None and v is not False}
    return ["adapt", *flags(given)]


def flags(given: dict) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("sd15", {"layers": "all", "text_encoder": True, "sample_every": 2}),
        ("sd2", {"layers": "attention", "gradient_checkpointing": True}),
        (
            "sdxl",
            {"layers": "attention", "text_encoder": True, "prior_preservation": True, "prior_images": 4},
        ),
    ],
)
def test_a_run_leaves_a_lora_that_diffusers_loads(config, tiny_model, kind, changed):
    model = str(tiny_model(kind))
    module.adapt(replace(config, model=model, max_steps=2, **changed))
    output = Path(config.output_dir)
    record = json.loads((output / "training_config.json").read_text())
    assert (record["format_version"], record["command"], record["step"]) == (3, "adapt", 2)
    assert (record["options"]["rank"], record["options"]["learning_rate"]) == (2, 3e-3)
    assert record["data"]["images"] == 6
    assert record["data"]["with_caption"] == 2
    assert (record["options"]["seed"], record["base_model"]) == (0, Path(model).name)
    again = replace(config, model=model, max_steps=2, output_dir=AdaptConfig.output_dir, **changed)
    assert parse(AdaptConfig, ["--config", str(output / "adapt.yaml")], "", "") == again.resolve()
    assert record["base_version"].startswith("sha256:")
    if "sample_every" in changed:
        assert Image.open(output / "samples" / "step-000002.png").size == (module.SAMPLES * 128, 64)
        assert (output / "samples.png").exists()
    if "prior_preservation" in changed:
        assert len(list((output / "class_images").glob("*.png"))) == 4

    pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert fingerprint(pipe.unet) == record["base_fingerprint"]
    for part in filter(None, (pipe.unet, pipe.text_encoder, getattr(pipe, "text_encoder_2", None))):
        part.requires_grad_(False)  # as a LoRA leaves it: torch rounds otherwise for weights with gradients
    plain = paint(pipe)
    pipe.load_lora_weights(output, adapter_name="style")
    loaded = lora(config)
    parts = {"unet", *(["text_encoder"] if "text_encoder" in changed else [])}
    parts |= {"text_encoder_2"} if kind == "sdxl" else set()
    assert {name.split(".")[0] for name in loaded} == parts
    for part in parts:
        found = getattr(pipe, part).peft_config["style"]
        assert (found.r, found.lora_alpha) == (2, 2)
        inside = {
            f"{part}.{name.replace('.style', '')}": weight
            for name, weight in getattr(pipe, part).named_parameters()
            if ".lora_" in name
        }
        assert inside.keys() == {name for name in loaded if name.startswith(f"{part}.")}
        assert all(torch.equal(inside[name], loaded[name]) for name in inside)
    pipe.set_adapters("style", 30.0)
    assert np.abs(paint(pipe) - plain).max() > 0
    pipe.set_adapters("style", 0.0)
    assert np.array_equal(paint(pipe), plain)
    pipe.unload_lora_weights()
    assert np.array_equal(paint(pipe), plain)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "changed",
    [{}, {"text_encoder": True, "micro_batch": 1}, {"prior_preservation": True, "prior_images": 4}],
)
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(config, changed, tmp_path, monkeypatch):
    config = replace(config, **changed)
    straight = replace(config, output_dir=str(tmp_path / "straight"))
    module.adapt(straight)
    count = module.Adaptation.count
    for dies_at in (1, 3):

        def dying(run, losses, dies_at=dies_at):
            if run.step + 1 == dies_at:
                raise Killed
            count(run, losses)

        monkeypatch.setattr(module.Adaptation, "count", dying)
        with pytest.raises(Killed):
            module.adapt(replace(config, resume=True))
    monkeypatch.setattr(module.Adaptation, "count", count)
    module.adapt(replace(config, resume=True))
    one, two = (load_file(f"{c.output_dir}/state.safetensors") for c in (straight, config))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.equal(weight, lora(config)[name]) for name, weight in lora(straight).items())
    written = (Path(config.output_dir) / LORA_WEIGHTS).stat().st_mtime_ns
    module.adapt(replace(config, resume=True))  # finished: nothing to do
    assert (Path(config.output_dir) / LORA_WEIGHTS).stat().st_mtime_ns == written


def test_a_run_killed_while_it_encodes_or_exports_goes_on(config, monkeypatch):
    def killed(*_):
        raise Killed

    for owner, name in (
        (module.Latents, "write"),
        (module.Adaptation, "export"),
        (module.Adaptation, "finish"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, killed)
            with pytest.raises(Killed):
                module.adapt(replace(config, max_steps=2, resume=True))
    with monkeypatch.context() as patched:
        patched.setattr(
            module, "is_exported", lambda output, step: False
        )  # as if its record had not been written
        module.adapt(replace(config, max_steps=2, resume=True))
    assert json.loads((Path(config.output_dir) / "training_config.json").read_text())["loss"] > 0


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_keeps_the_step_that_was_made(config, monkeypatch, capsys, which):
    monkeypatch.setattr(run_module, "end", lambda accelerator: None)
    count = module.Adaptation.count

    def interrupted(run, losses):
        count(run, losses)
        if run.step == 3:
            os.kill(os.getpid(), which)

    monkeypatch.setattr(module.Adaptation, "count", interrupted)
    with pytest.raises(SystemExit, match="143") if which == signal.SIGTERM else nullcontext():
        assert main(command(replace(config, checkpoint_every=100))) == 130
    assert "holds step 3" in capsys.readouterr().err
    assert run_module.saved_step(Path(config.output_dir)) == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_damaged_files_of_a_run_end_in_one_line(config):
    """The same command goes on when the file that is named has been deleted."""
    config, output = replace(config, max_steps=2, resume=True), Path(config.output_dir)
    module.adapt(config)
    found = lora(config)
    latents = bytearray((output / "latents.safetensors").read_bytes())
    latents[-2] ^= 4
    for name, content, message in (
        ("training_config.json", b"[]", "is not as it was written: delete it"),
        ("training_config.json", b"{}", "is not as it was written: delete it"),
        ("latents.safetensors", b"x", "is damaged: delete it, and the same command encodes the images again"),
        ("latents.safetensors", latents, "is damaged: delete it"),
    ):
        (output / "training_config.json").unlink()  # as if it had been killed before its end
        (output / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} {message}"):
            module.adapt(config)
        (output / name).unlink()
        module.adapt(config)
    weights = bytearray((output / LORA_WEIGHTS).read_bytes())
    weights[-2] ^= 64
    (output / LORA_WEIGHTS).write_bytes(weights)
    assert main(["build", "cityscapes", f"--model={config.model}", f"--lora={output}", "--num-images=1"]) == 2
    module.adapt(config)
    assert all(torch.equal(weight, found[name]) for name, weight in lora(config).items())


def test_two_runs_in_one_directory(config, monkeypatch):
    monkeypatch.setattr(run_module, "PATIENCE", 0.1)
    with (
        locked(Path(config.output_dir), 0, "process 1 on a machine", "run"),
        pytest.raises(UserError, match=r"another run is working in .*: process 1 on a machine; wait"),
    ):
        module.adapt(config)
    assert not (Path(config.output_dir) / "run.json").exists()


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(config, monkeypatch):
    count = module.Adaptation.count

    def breaking(run, losses):
        count(run, {"loss": losses["loss"] * float("nan")} if run.step + 1 == 3 else losses)

    monkeypatch.setattr(module.Adaptation, "count", breaking)
    with pytest.raises(UserError, match=r"the loss is nan at step 3; the checkpoint of step 2 is kept"):
        module.adapt(config)
    assert run_module.saved_step(Path(config.output_dir)) == 2
    assert all(weight.isfinite().all() for weight in lora(config).values())
    with pytest.raises(UserError, match=r"the loss is|a weight is not finite"):
        module.adapt(replace(config, output_dir=f"{config.output_dir}-2", learning_rate=1e30))


def test_a_full_disk_is_one_line_and_loses_nothing(config, monkeypatch, capsys):
    module.adapt(replace(config, max_steps=2))
    kept = lora(config)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "there")

    monkeypatch.setattr(module, "is_exported", lambda output, step: False)
    monkeypatch.setattr(run_module, "save_state", full)
    monkeypatch.setattr(run_module, "saved_step", lambda output: 0)
    assert main(command(replace(config, max_steps=2, resume=True))) == 2
    assert "free some space" in capsys.readouterr().err
    assert all(torch.equal(weight, kept[name]) for name, weight in lora(config).items())


def test_what_is_skipped_is_named(config, frames, tmp_path, caplog):
    data = tmp_path / "data"
    data.mkdir()
    for file in frames.glob("*.png"):
        (data / file.name).write_bytes(file.read_bytes())
    (data / "3.png").write_bytes((data / "3.png").read_bytes()[:200])
    (data / "z.jpg").write_text("no image")
    module.adapt(replace(config, data=str(data), max_steps=1))
    assert "skipped 2 images that cannot be read: 3.png, z.jpg (the first: it is not an image" in caplog.text
    record = json.loads((Path(config.output_dir) / "training_config.json").read_text())
    assert (record["data"]["images"], record["data"]["skipped"]) == (5, 2)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"--data .* holds 0 images, but at least 4 are needed"),
        ({f"{k}.png": b"broken" for k in range(5)}, "0 of 5 images can be read.*0.png, 1.png"),
        ({f"{k}.png": png(Image.new("RGB", (90, 40))) for k in range(4)}, "0.png has 90 x 40 pixels and is"),
        ({"metadata.jsonl": b"{"}, "metadata.jsonl, line 1: it must be JSON with a file_name"),
        ({"metadata.jsonl": b'{"file_name": "a.png"}'}, "line 1: there is no image 'a.png'"),
        ({"x.parquet": b"broken"}, "no rows with images that can be read"),
    ],
)
def test_images_that_cannot_be_used(config, tmp_path, files, message):
    data = tmp_path / "data"
    data.mkdir()
    for name, content in files.items():
        (data / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as found:
        module.adapt(replace(config, data=str(data)))
    assert "\n" not in str(found.value)
    assert not list(Path(config.output_dir).glob("[!.]*"))  # nothing but the lock


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": "no/such/place"}, "--data no/such/place: give a folder"),
        ({"preset": "sdxl"}, "invalid choice: 'sdxl'"),
        ({"layers": "some"}, "argument --layers: invalid choice: 'some'"),
        ({"rank": 0}, "--rank 0"),
        ({"crop_size": 60}, "--crop-size 60: the model makes multiples of 8 pixels"),
        ({"aspect": -1.0}, "--aspect -1.0: it must be above 0"),
        ({"instance_prompt": " "}, "--instance-prompt is empty"),
        ({"table": "paris"}, "no class table 'paris'"),
        ({"model": "./nowhere"}, "no model './nowhere'"),
        ({"micro_batch": 3}, "--micro-batch 3 does not divide"),
        ({"report_to": "nothing"}, "--report-to"),
    ],
)
def test_mistakes_end_in_one_line(config, changed, message, capsys):
    given = {k: v for k, v in {**asdict(config), **changed}.items() if v is not None and v is not False}
    assert main(["adapt", *flags(given)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in said
    assert not Path(config.output_dir).exists()


def test_a_pipeline_that_cannot_be_adapted_is_refused(tiny_pipeline):
    pipe = deepcopy(tiny_pipeline("sd15"))
    check_pipeline(pipe, "it")
    pipe.unet.register_to_config(in_channels=9)  # as inpainting has
    with pytest.raises(UserError, match="--model it: a StableDiffusionPipeline of this kind"):
        check_pipeline(pipe, "it")


def test_a_transformer_is_not_adapted(family):
    with pytest.raises(UserError, match=r"a FluxPipeline of this kind cannot be adapted; .*docs/painters.md"):
        check_pipeline(family("flux"), "it")


def test_directories_that_are_not_this_runs(config, frames, tmp_path, tiny_model):
    config = replace(config, max_steps=2)
    module.adapt(config)
    with pytest.raises(UserError, match="give --resume"):
        module.adapt(config)
    changes = (
        ({"rank": 3}, r"rank \(2 there, 3 now\)"),
        ({"seed": 1}, r"seed \(0 there, 1 now\)"),
        ({"model": str(tiny_model("sd2"))}, "painter"),
        ({"data": str(more(frames, tmp_path))}, "images"),
    )
    for changed, message in changes:
        with pytest.raises(UserError, match=f"another run: .*{message}"):
            module.adapt(replace(config, resume=True, **changed))
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        module.adapt(replace(config, output_dir=str(other)))


def more(frames: Path, tmp_path: Path) -> Path:
    """The frames and one more."""
    folder = tmp_path / "more"
    folder.mkdir()
    for file in frames.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    street(7).save(folder / "7.png")
    return folder


def test_an_identifier_that_the_painter_does_not_know_is_named(caplog):
    painter = load_painter()
    module.warn_of_unknown_words(painter, AdaptConfig.instance_prompt)
    assert not caplog.records
    module.warn_of_unknown_words(painter, "a photo in zwx style, blorp")
    assert "the painter does not know zwx, blorp in --instance-prompt" in caplog.text


# What a build makes of it


def test_an_adapter_of_another_painter_is_refused(config, tiny_model, tmp_path):
    module.adapt(replace(config, max_steps=1))
    output = config.output_dir
    adapted = load_painter(config.model, lora=output)
    assert adapted.facts["lora_version"].startswith("sha256:")
    again = load_painter(config.model, lora=f"{output}/{LORA_WEIGHTS}")  # the weights' own path
    assert again.pipe.unet.peft_config.keys() == {"lora"}
    for model in (str(tiny_model("sd2")), "embedded"):
        with pytest.raises(UserError, match=rf"--lora .* adapts small \(sha256:.*--model {model} has oth"):
            load_painter(model, lora=output)
    same_shape = DiffusionPipeline.from_pretrained(config.model, dtype=torch.float32)
    same_shape.unet.conv_in.weight.data += 0.1
    same_shape.save_pretrained(tmp_path / "small")
    with pytest.raises(UserError, match="has other weights"):
        load_painter(str(tmp_path / "small"), lora=output)
    (Path(output) / "training_config.json").unlink()
    with pytest.raises(UserError, match=r"its weights have other shapes than those of --model .*sd2"):
        load_painter(str(tiny_model("sd2")), lora=output)


def test_fingerprints_are_of_weights_in_any_precision(tiny_model):
    one, half = (
        DiffusionPipeline.from_pretrained(tiny_model("sd15"), dtype=dtype)
        for dtype in (torch.float32, torch.float16)
    )
    assert fingerprint(one.unet) == fingerprint(half.unet)


def test_a_recorder_reads_an_adapted_painter(config):
    module.adapt(replace(config, max_steps=2))
    pipe = load_painter(config.model, lora=config.output_dir, lora_scale=20.0).pipe
    plain = paint(pipe)
    with AttentionRecorder(pipe, [{"bus": (3,)}]) as recorder:
        recorded = paint(pipe)
    assert np.array_equal(plain, recorded)
    assert set(recorder.maps[0]["bus"]) == {(8, 8), (4, 4)}
    with AttentionRecorder(load_painter(config.model).pipe, [{"bus": (3,)}]) as other:
        paint(other.pipe)
    assert not torch.equal(other.maps[0]["bus"][8, 8], recorder.maps[0]["bus"][8, 8])


def test_a_build_at_scale_0_has_the_rows_of_one_without(tmp_path, frames):
    from datasets import load_dataset

    adapted = str(tmp_path / "adapted")
    options = "--max-steps 1 --batch-size 1 --rank 2 --crop-size 64 --sample-every 0"
    assert main(["adapt", "--data", str(frames), "--output-dir", adapted, *options.split()]) == 0
    built = {}
    for name, lora in (
        ("plain", ""),
        ("off", f"--lora {adapted} --lora-scale 0"),
        ("on", f"--lora {adapted}"),
    ):
        out = tmp_path / name
        given = f"build cityscapes --out {out} --num-images 1 --steps 2 --height 64 {lora}"
        assert main([*given.split(), "--workers", "1"]) == 0
        built[name] = load_dataset(str(out), split="train").with_format("numpy")[0]
    assert all(np.array_equal(built["plain"][k], built["off"][k]) for k in ("image", "mask", "reliability"))
    assert not np.array_equal(built["plain"]["image"], built["on"]["image"])


# Processes, and what takes long


def launch(config: AdaptConfig, processes: int) -> subprocess.CompletedProcess:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
            str(ROOT / "training" / "adapt.py"),
            *command(config)[1:],
        ],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(config, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_painter", load_painter)  # class images of all steps, as there
    config = replace(config, prior_preservation=True, prior_images=4, text_encoder=True, max_steps=1)
    module.adapt(config)
    both = replace(config, output_dir=str(tmp_path / "both"))
    done = launch(both, 2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 processes x 1 images x 1 accumulated = 2 in a step") == 1
    # Adam's first moments are the gradients; what it makes of those next to nothing is chance.
    one, two = (
        torch.cat([state[name].flatten() for name in sorted(state) if name.endswith("/exp_avg")])
        for state in (load_file(f"{c.output_dir}/state.safetensors") for c in (config, both))
    )
    assert one.norm() > 0
    assert (one - two).norm() < 1e-3 * one.norm()


@pytest.mark.slow
@pytest.mark.skipif(not CAMVID.is_dir(), reason="the real frames are not there")
def test_real_frames_of_another_shape(config):
    module.adapt(replace(config, data=str(CAMVID), model="embedded", crop_size=128, max_steps=2))
    record = json.loads((Path(config.output_dir) / "training_config.json").read_text())
    assert record["data"]["images"] == 101

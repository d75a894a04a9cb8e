"""Adaptation: what a run leaves, that it resumes bit for bit after a kill, and what it refuses."""

import errno
import json
import os
import signal
import subprocess
import sys
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from PIL import Image
from places import ROOT
from safetensors import safe_open
from safetensors.torch import load_file

from attn2mask.builders.drawn.rows import draw_rows, write_rows
from attn2mask.builders.drawn.scenes import draw_scene
from attn2mask.builders.errors import UserError
from attn2mask.builders.options import facts_of, parse
from attn2mask.builders.painter import load_painter
from attn2mask.builders.provenance import LORA_WEIGHTS, fingerprint
from attn2mask.builders.recorder import AttentionRecorder
from attn2mask.hub.cli import main
from attn2mask.training import adapt as module
from attn2mask.training import run as run_module
from attn2mask.training.adaptation.batches import Batch, Batches, training_prompt
from attn2mask.training.adaptation.config import AdaptConfig
from attn2mask.training.adaptation.images import (
    Crop,
    Latents,
    TrainingImage,
    decoded,
    encode_images,
    find_images,
    images_digest,
)
from attn2mask.training.adaptation.lora import (
    add_lora,
    batch_loss,
    check_pipeline,
    encode_prompts,
    make_schedule,
    prediction_errors,
)
from attn2mask.training.config import plan_batches

CAMVID = ROOT.parent / "shared" / "data" / "camvid" / "val" / "images"
PROMPT = "a red bus on the street"


def street(index: int, size: tuple[int, int] = (72, 144)) -> Image.Image:
    return Image.fromarray(draw_scene("streets", np.random.default_rng([6, index]), size).image)


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    """Six street scenes of 144 x 72, two of them with captions."""
    folder = tmp_path_factory.mktemp("frames")
    for index in range(6):
        street(index).save(folder / f"{index}.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a bus"}\n')
    (folder / "2.txt").write_text("a dog on\nthe street.\n")
    return folder


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


# Options


def test_the_preset_holds_table_2():
    preset = AdaptConfig(preset="cityscapes").resolve()
    assert (preset.learning_rate, preset.power, preset.weight_decay) == (2e-5, 1.0, 0.01)
    assert (preset.batch_size, preset.max_steps) == (4, 40_000)
    assert preset.rate(0) == 1.0
    assert preset.rate(10_000) == pytest.approx(0.75)
    assert preset.rate(40_000) == 0.0


@pytest.mark.parametrize(
    ("processes", "micro", "expected"), [(4, None, (1, 1)), (1, None, (1, 4)), (1, 1, (4, 1))]
)
def test_its_batch_is_shared_by_processes(processes, micro, expected):
    plan = plan_batches(AdaptConfig(preset="cityscapes").resolve().batch_size, processes, micro, mixing=False)
    assert (plan.accumulation, plan.per_process) == expected
    assert plan.total == 4


def test_options_win_over_the_preset():
    preset = AdaptConfig(preset="cityscapes").resolve()
    assert AdaptConfig(preset="cityscapes", rank=7).resolve() == replace(preset, rank=7)
    assert preset.rank == 4


def test_options_of_the_prior_count_only_with_the_prior():
    plain, other = AdaptConfig().resolve(), AdaptConfig(prior_weight=0.5, class_prompt="a dog").resolve()
    assert plain.identity() == other.identity()
    prior = replace(other, prior_preservation=True).identity()
    assert (prior["prior_weight"], prior["class_prompt"], prior["prior_images"]) == (0.5, "a dog", 100)
    assert all(facts_of(AdaptConfig)[name].identity for name in prior)


# Images


def test_captions_are_found_where_they_are(frames):
    found = find_images(str(frames))
    assert [image.name for image in found] == [f"{k}.png" for k in range(6)]
    assert [image.caption for image in found] == [None, "a bus", "a dog on the street.", None, None, None]


def test_rows_are_images_with_captions(tmp_path):
    write_rows(draw_rows("streets", 4, 3, (32, 64)), tmp_path)
    found = find_images(str(tmp_path))
    assert found[2].name == "streets-3-000002"
    assert all(" " in image.caption for image in found)
    assert decoded(found[2].read()).size == (64, 32)


def test_the_digest_is_of_names_contents_and_captions(frames, tmp_path):
    def of(change) -> str:
        folder = tmp_path / "copy"
        folder.mkdir(exist_ok=True)
        for file in frames.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        change(folder)
        return images_digest(find_images(str(folder)))

    same = images_digest(find_images(str(frames)))
    assert of(lambda folder: None) == same
    assert of(lambda folder: (folder / "2.txt").write_text("a cat")) != same
    assert of(lambda folder: street(9).save(folder / "0.png")) != same


@pytest.mark.parametrize(
    ("size", "expected"), [((200, 100), (128, 64)), ((480, 360), (128, 96)), ((300, 64), (296, 64))]
)
def test_images_are_as_small_as_their_crops_allow(size, expected):
    assert Crop(64, 128, 8).fit(Image.new("RGB", size), "x").size == expected


def test_a_place_of_the_run_has_its_crop_words_and_noise(tmp_path):
    Latents.write(tmp_path / "l", {str(k): torch.rand(4, 9, 20).half() for k in (0, 2, 3)}, ["1.png"])
    latents = Latents(tmp_path / "l")
    assert (latents.places, latents.skipped, len(latents)) == ([0, 2, 3], ["1.png"], 3)
    config = AdaptConfig(instance_prompt="sks", seed=5, preset="cityscapes").resolve()
    batches = Batches(config, Crop(64, 64, 8), latents, ["a dog", None, "a cat"], 1000)
    batch = batches([(7, 0), (8, 1)])
    alone = batches([(8, 1)])
    assert torch.equal(alone.noise[0], batch.noise[1])
    assert torch.equal(alone.latents[0], batch.latents[1])
    assert (alone.timesteps[0], alone.prompts[0]) == (batch.timesteps[1], batch.prompts[1])
    assert not torch.equal(batch.noise[0], batch.noise[1])
    height, width, top, left, high, wide = (int(side) // 8 for side in batch.time_ids[0])
    assert (height, width, high, wide) == (9, 20, 8, 8)
    assert torch.equal(batch.latents[0], latents[0][:, top : top + 8, left : left + 8])
    seen = {
        (float(b.time_ids[0, 2]), float(b.time_ids[0, 3])) for b in (batches([(p, 0)]) for p in range(200))
    }
    assert seen == {(8.0 * top, 8.0 * left) for top in range(2) for left in range(13)}
    emptied = replace(batches, config=replace(config, dropout=0.25))
    share = np.mean([emptied([(position, 0)]).prompts[0] == "" for position in range(400)])
    assert 0.15 < share < 0.35


def test_prompts_have_the_identifier_half_of_the_time():
    rng = np.random.default_rng(0)
    said = [training_prompt("in sks style", "a bus.", False, rng) for _ in range(200)]
    assert set(said) == {"a bus.", "a bus, in sks style"}
    assert 70 < said.count("a bus.") < 130
    assert {training_prompt("in sks style", None, False, rng) for _ in range(9)} == {"in sks style"}
    assert {training_prompt("in sks style", "a bus.", True, rng) for _ in range(9)} == {"a bus, in sks style"}


# The error


@pytest.mark.parametrize("kind", ["sd15", "sd2", "sdxl"])
def test_the_error_is_that_of_what_the_unet_predicts(tiny_pipeline, kind):
    pipe = tiny_pipeline(kind)
    schedule, generator = make_schedule(pipe), torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 2, 4, 8, 8, generator=generator).unbind()
    t = torch.tensor([10, 700])
    with torch.no_grad():
        conditions = encode_prompts(pipe, [PROMPT, ""], torch.tensor([[64, 64, 0, 0, 64, 64]] * 2))
        errors = prediction_errors(pipe, schedule, x, noise, t, conditions)
        a = pipe.scheduler.alphas_cumprod[t].view(2, 1, 1, 1)
        noisy = a.sqrt() * x + (1 - a).sqrt() * noise
        said = pipe.unet(noisy, t, conditions.texts, added_cond_kwargs=conditions.added).sample
    target = a.sqrt() * noise - (1 - a).sqrt() * x if kind == "sd2" else noise
    torch.testing.assert_close(errors, (said - target).square().mean((1, 2, 3)))
    if kind == "sdxl":
        assert conditions.added["time_ids"].shape == (2, 6)
        assert conditions.texts[0].any()
        assert not conditions.texts[1].any()  # as XL's guidance has it


def test_prior_preservation_adds_the_error_on_class_images(tiny_pipeline):
    pipe = tiny_pipeline("sd15")
    batch = Batch(
        torch.randn(4, 4, 8, 8),
        torch.randn(4, 4, 8, 8),
        torch.tensor([5, 50, 500, 900]),
        [PROMPT] * 4,
        torch.zeros(4, 6),
    )
    with torch.no_grad():
        schedule, config = make_schedule(pipe), AdaptConfig().resolve()
        alone = [Batch(*(values[k : k + 1] for values in vars(batch).values())) for k in range(4)]
        each = [float(batch_loss(pipe, schedule, one, config)) for one in alone]
        loss = batch_loss(pipe, schedule, batch, replace(config, prior_preservation=True, prior_weight=0.5))
    assert float(loss) == pytest.approx((each[0] + each[1]) / 2 + 0.5 * (each[2] + each[3]) / 2, rel=1e-4)


def test_a_lora_learns(tmp_path):
    """The embedded painter's error on what it is shown falls."""
    painter = load_painter()
    streets = [TrainingImage(str(k), None, lambda k=k: png(street(k))) for k in range(4)]
    latents, _ = encode_images(painter.pipe.vae, streets, Crop(64, 128, 8))
    Latents.write(tmp_path / "l", latents, [])
    config = AdaptConfig(learning_rate=2e-3, rank=8, dropout=0.0, instance_prompt="sks").resolve()
    batches = Batches(config, Crop(64, 128, 8), Latents(tmp_path / "l"), [None] * 4, 1000)
    weights = list(add_lora(painter.pipe, config).values())
    optimizer, schedule = torch.optim.AdamW(weights, config.learning_rate), make_schedule(painter.pipe)
    fixed = batches([(position, position % 4) for position in range(1000, 1008)])

    def error() -> float:
        with torch.no_grad():
            return float(batch_loss(painter.pipe, schedule, fixed, config))

    before = error()
    for step in range(10):
        batch_loss(painter.pipe, schedule, batches([(4 * step + k, k) for k in range(4)]), config).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert error() < 0.95 * before


def png(image: Image.Image) -> bytes:
    from attn2mask.builders.images import encode_png

    return encode_png(np.asarray(image))


# A run


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
    assert (record["format_version"], record["command"], record["step"]) == (1, "adapt", 2)
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
        patched.setattr(module, "exported_step", lambda output: 0)  # as if its record had not been written
        module.adapt(replace(config, max_steps=2, resume=True))
    assert json.loads((Path(config.output_dir) / "training_config.json").read_text())["loss"] > 0


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_keeps_the_step_that_was_made(config, monkeypatch, capsys, which):
    count = module.Adaptation.count

    def interrupted(run, losses):
        count(run, losses)
        if run.step == 3:
            os.kill(os.getpid(), which)

    monkeypatch.setattr(module.Adaptation, "count", interrupted)
    assert main(command(replace(config, checkpoint_every=100))) == 130
    assert "holds step 3" in capsys.readouterr().err
    with safe_open(Path(config.output_dir) / "state.safetensors", "pt") as file:
        assert json.loads(file.metadata()["state"])["step"] == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


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

    monkeypatch.setattr(module, "exported_step", lambda output: 0)
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
    assert "skipped 2 broken images: 3.png, z.jpg" in caplog.text
    record = json.loads((Path(config.output_dir) / "training_config.json").read_text())
    assert (record["data"]["images"], record["data"]["skipped"]) == (5, ["3.png", "z.jpg"])


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
    assert not Path(config.output_dir).exists()


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
def test_two_processes_learn_what_one_learns(config, tmp_path):
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

"""Loading and painting with the models of every family, and builds with them."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from families import FAMILIES
from huggingface_hub.errors import GatedRepoError
from peft import LoraConfig, get_peft_model_state_dict

from attn2mask.builders.build import BuildConfig, resolve, run
from attn2mask.builders.errors import UserError
from attn2mask.builders.families import family_of
from attn2mask.builders.painter import Painting, load_painter, load_stretches
from attn2mask.builders.prompts import PromptSource
from attn2mask.builders.shards import plan
from attn2mask.builders.show import token_sheet
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words.captions import Caption

SMALL = Painting(steps=2, guidance_scale=3.0, height=128, width=128)
QUICK = ["sd3", "flux", "zimage"]
kinds = pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in FAMILIES]
)


def defaults(index: dict, denoiser: dict | None = None, scheduler: dict | None = None, name: str = "model"):
    parts = {part: ["diffusers", kind] for part, kind in index.items()}
    family = family_of(name, {"_class_name": "Pipeline", **parts}, denoiser or {}, scheduler or {})
    return family.steps, family.guidance_scale, family.text_length, family.dtype


UNET, EULER = {"unet": "UNet2DConditionModel"}, {"timestep_spacing": "trailing"}
SD3, FLUX = {"transformer": "SD3Transformer2DModel"}, {"transformer": "FluxTransformer2DModel"}
HALF, BRAIN = torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (defaults(UNET | {"scheduler": "PNDMScheduler"}), (None, None, None, HALF)),
        (defaults(UNET | {"scheduler": "EulerDiscreteScheduler"}, {}, EULER), (4, 0.0, None, HALF)),
        (defaults(UNET | {"scheduler": "DDIMScheduler"}, {}, {}, "org/sdxl-turbo"), (4, 0.0, None, HALF)),
        (defaults(UNET | {"scheduler": "LCMScheduler"}, {"time_cond_proj_dim": 256}), (4, 8.0, None, HALF)),
        (defaults(SD3), (None, None, 256, BRAIN)),
        (defaults(SD3, {"qk_norm": "rms_norm"}), (28, 3.5, 256, BRAIN)),
        (defaults(SD3, {"qk_norm": "rms_norm"}, {}, "sd3.5-large-turbo"), (4, 0.0, 256, BRAIN)),
        (
            defaults(SD3, {"qk_norm": "rms_norm", "dual_attention_layers": [0, 1]}),
            (40, 4.5, 256, BRAIN),
        ),
        (defaults(FLUX, {"guidance_embeds": True}), (None, None, 512, BRAIN)),
        (defaults(FLUX, {"guidance_embeds": False}), (4, 0.0, 256, BRAIN)),
        (defaults({"transformer": "QwenImageTransformer2DModel"}), (None, 4.0, 512, BRAIN)),
        (defaults({"transformer": "ZImageTransformer2DModel"}), (None, None, 512, BRAIN)),
        (defaults({"transformer": "ZImageTransformer2DModel"}, name="Z-Image-Turbo"), (8, 0.0, 512, BRAIN)),
    ],
)
def test_defaults_of_families_and_their_variants(found, expected):
    assert found == expected


@kinds
def test_painting_with_a_family(family_model, kind):
    """The image of a prompt does not depend on its batch, and its words have maps."""
    painter = load_painter(str(family_model(kind)))
    texts = ["a photo of a dog and a cat", "a horse on the street", "a cat with a bus and a dog"]
    source = PromptSource(
        load_table("voc"),
        [Caption(text, "1") for text in texts],
        painter.stretches,
        seed=0,
        alias_probability=0.0,
    )
    prompts = [source.prompt(index, 0) for index in range(3)]
    images, maps, faults = painter.paint(prompts, [1, 2, 3], SMALL)
    assert images.shape == (3, 128, 128, 3)
    assert faults == [None] * 3
    for k, prompt in enumerate(prompts):
        assert list(maps[k]) == list(prompt.words)
        alone, own, _ = painter.paint([prompt], [k + 1], SMALL)
        assert np.abs(alone[0].astype(int) - images[k]).max() <= 2
        for word, by_size in own[0].items():
            for size, values in by_size.items():
                torch.testing.assert_close(values, maps[k][word][size], atol=1e-4, rtol=0)
    assert load_stretches(str(family_model(kind)))[0].spans("a dog", [(2, 5)]) == painter.stretches[0].spans(
        "a dog", [(2, 5)]
    )


def test_each_stretch_of_a_word_weighs_the_same(family_model):
    painter = load_painter(str(family_model("sd3")))
    source = PromptSource(
        load_table("voc"), [Caption("a dog", "1")], painter.stretches, seed=0, alias_probability=0.0
    )
    prompt = source.prompt(0, 0)
    assert prompt.spans == ((2, 3, 4, 77 + 1),)  # letters of CLIP, and a word of T5
    _, (maps,), _ = painter.paint([prompt], [1], SMALL)
    parts = []
    for stretch in painter.stretches:
        of_stretch = type(prompt)(**{**vars(prompt), "spans": (stretch.own(prompt.spans[0]),)})
        parts.append(painter.paint([of_stretch], [1], SMALL)[1][0]["dog"][8, 8])
    torch.testing.assert_close(maps["dog"][8, 8], (parts[0] + parts[1]) / 2)


def test_stable_diffusion_3_without_t5_is_read_through_clip(family, tmp_path):
    pipe = copy.copy(family("sd3"))
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipe.save_pretrained(tmp_path / "small")
    assert [stretch.name for stretch in load_stretches(str(tmp_path / "small"))] == ["clip"]
    painter = load_painter(str(tmp_path / "small"))
    source = PromptSource(
        load_table("voc"), [Caption("a dog", "1")], painter.stretches, seed=0, alias_probability=0.0
    )
    prompt = source.prompt(0, 0)
    assert prompt.spans == ((2, 3, 4),)
    _, (maps,), _ = painter.paint([prompt], [1], SMALL)
    assert maps["dog"][8, 8].max() > 0


def test_a_word_that_clip_cuts_off_is_read_by_t5(family_model):
    painter = load_painter(str(family_model("sd3")))
    text = "a " * 90 + "dog"
    source = PromptSource(
        load_table("voc"), [Caption(text, "1")], painter.stretches, seed=0, alias_probability=0.0
    )
    assert source.prompt(0, 0).spans == ((77 + 90,),)
    source = PromptSource(
        load_table("voc"),
        [Caption("a " * 300 + "dog", "1")],
        painter.stretches,
        seed=0,
        alias_probability=0.0,
    )
    with pytest.raises(UserError, match="dog: its word lies beyond the model's 256 tokens"):
        source.prompt(0, 0)


@kinds
def test_a_build_with_a_family(family_model, kind, tmp_path):
    out = tmp_path / "data"
    options = {"num_images": 3, "shard_size": 3, "height": 128, "width": 128, "steps": 2, "workers": 1}
    directory = run(BuildConfig("voc", str(out), model=str(family_model(kind)), **options))
    (shard,) = plan(3, 3)
    rows = list(directory.rows(shard))
    assert len(rows) == 3
    assert all(row["prompt"] for row in rows)
    record = json.loads((out / "build.json").read_text())
    assert record["identity"]["steps"] == 2
    again = run(BuildConfig("voc", str(out), model=str(family_model(kind)), **options))
    assert list(again.rows(shard)) == rows


def test_the_published_steps_are_recorded(family_model, tmp_path):
    """Without a preset or a window of one's own; a later run with the same options goes on."""
    model, out = str(family_model("sd3")), tmp_path / "data"
    small = {"num_images": 1, "shard_size": 1, "height": 64, "width": 64, "steps": 2, "workers": 1}
    for _ in range(2):
        run(BuildConfig("voc", str(out), model=model, **small))
    identity = json.loads((out / "build.json").read_text())["identity"]
    assert identity["record_from"] == identity["record_to"] == 8 / 27
    run(BuildConfig("voc", str(tmp_path / "photo"), model=model, preset="photo", **small))
    identity = json.loads((tmp_path / "photo" / "build.json").read_text())["identity"]
    assert (identity["record_from"], identity["record_to"]) == (0.0, 1.0)


def test_scheduler_and_negative_prompt_belong_to_the_build(family_model, tmp_path):
    model, out = str(family_model("sd_turbo")), str(tmp_path / "data")
    small = {"num_images": 1, "shard_size": 1, "height": 64, "width": 64, "steps": 2, "workers": 1}
    chosen = {"scheduler": "DDIMScheduler", "negative_prompt": "a cat", "guidance_scale": 5.0}
    run(BuildConfig("voc", out, model=model, **small, **chosen))
    identity = json.loads((tmp_path / "data" / "build.json").read_text())["identity"]
    assert identity["negative_prompt"] == "a cat"
    assert identity["scheduler"]["class"] == "DDIMScheduler"
    run(BuildConfig("voc", out, model=model, **small | {"num_images": 2}, **chosen))  # it goes on
    for other in ({"scheduler": "EulerDiscreteScheduler"}, {"negative_prompt": "a dog"}):
        with pytest.raises(UserError, match=next(iter(other))):
            run(BuildConfig("voc", out, model=model, **small, **chosen | other))


def test_negative_prompts_change_images(family_model):
    for kind in ("flux", "qwen", "sd3"):
        painter = load_painter(str(family_model(kind)))
        source = PromptSource(
            load_table("voc"), [Caption("a dog", "1")], painter.stretches, seed=0, alias_probability=0.0
        )
        prompts = [source.prompt(0, 0)]
        plain, _, _ = painter.paint(prompts, [1], SMALL)
        other = Painting(**{**vars(SMALL), "negative_prompt": "cow cow cow"})
        assert not np.array_equal(painter.paint(prompts, [1], other)[0], plain)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("schnell", "raise --guidance-scale, which is 0 for this model, above 1"),
        ("sd_turbo", "raise --guidance-scale, which is 0 for this model, above 1"),
        ("lcm", "has no effect on this model, whose guidance takes none: leave it out"),
    ],
)
def test_a_negative_prompt_without_effect_is_refused(family_model, kind, message, tmp_path):
    config = BuildConfig("voc", str(tmp_path), model=str(family_model(kind)), negative_prompt="a cat")
    with pytest.raises(UserError, match=f"--negative-prompt .*{message}"):
        resolve(config).for_painter(load_painter(config.model))


def test_a_scheduler_that_does_not_fit_is_refused(family_model):
    for name in ("DDIMScheduler", "StableDiffusionPipeline", "nonsense"):
        with pytest.raises(
            UserError, match=rf"--scheduler {name} does not fit .*FlowMatchEulerDiscreteScheduler"
        ):
            load_painter(str(family_model("flux")), scheduler=name)


def test_linear_self_attention_cannot_be_recorded(family_model, tmp_path):
    small = {"num_images": 1, "shard_size": 1, "height": 128, "width": 128, "steps": 2, "workers": 1}
    needing = {"preset": "dataset-diffusion-like"}, {"store_maps": True, "store_self_attention": True}
    for number, options in enumerate(needing):
        with pytest.raises(UserError, match="the self-attention of family-sana cannot be recorded"):
            run(
                BuildConfig(
                    "voc", str(tmp_path / f"{number}"), model=str(family_model("sana")), **small, **options
                )
            )


def test_offloading_without_a_gpu_is_refused(family_model):
    with pytest.raises(UserError, match="--offload model is for a GPU, and there is none"):
        load_painter(str(family_model("flux")), device="cpu", offload="model")


def test_a_gated_model_says_where_to_ask(monkeypatch):
    def gated(*args, **kwargs):
        response = type("Response", (), {"headers": {}, "request": None, "status_code": 403})()
        try:
            raise GatedRepoError("403", response=response)
        except GatedRepoError as error:
            raise OSError("cannot be found") from error

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", gated)
    with pytest.raises(UserError) as error:
        load_painter("org/flux")
    assert str(error.value) == (
        "--model org/flux is gated: ask for access at https://huggingface.co/org/flux, and log in with"
        " `hf auth login`"
    )


def test_an_unknown_model_is_refused_in_one_line(family_model, tmp_path):
    folder = shutil.copytree(family_model("pixart"), tmp_path / "unknown")
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer"] = ["diffusers", "HunyuanDiT2DModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    for load in (load_painter, load_stretches):
        with pytest.raises(UserError, match=r"--model .*unknown cannot be loaded") as error:
            load(str(folder))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "pipeline"), [("sd3", StableDiffusion3Pipeline), ("flux", FluxPipeline)])
def test_loras_of_diffusers_scripts(family_model, kind, pipeline, tmp_path):
    """The DreamBooth scripts of diffusers write the LoRA of the transformer in this way."""
    pipe = pipeline.from_pretrained(family_model(kind), dtype=torch.float32)
    targets = ["attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0", "attn.add_k_proj"]
    pipe.transformer.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=targets))
    pipeline.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(pipe.transformer))
    model, lora = str(family_model(kind)), str(tmp_path / "pytorch_lora_weights.safetensors")
    source = PromptSource(
        load_table("voc"), [Caption("a dog", "1")], load_stretches(model), seed=0, alias_probability=0.0
    )
    painted = {}
    for scale in (0.0, 4.0):
        adapted = load_painter(model, lora=lora, lora_scale=scale)
        painted[scale] = adapted.paint([source.prompt(0, 0)], [1], SMALL)
    assert not np.array_equal(painted[0.0][0], painted[4.0][0])
    assert not torch.equal(painted[0.0][1][0]["dog"][8, 8], painted[4.0][1][0]["dog"][8, 8])


@pytest.mark.parametrize("kind", ["sd3", "sana", "kolors"])
def test_the_figure_of_tokens(family_model, kind, tmp_path, monkeypatch):
    painter = load_painter(str(family_model(kind)))
    monkeypatch.setattr(painter, "defaults", SMALL)
    token_sheet(painter, "a dog", tmp_path / "tokens.png")
    assert (tmp_path / "tokens.png").stat().st_size > 1000
    named = [token for stretch in painter.stretches for token in stretch.tokens("a dog")]
    joined = "".join(token for _, token in named).replace("</w>", "").replace("▁", "")
    assert "adog" in joined
    span = painter.stretches[0].spans("a dog", [(2, 5)])[0][0]
    tokens = dict(named)
    assert "".join(tokens[p] for p in span).replace("</w>", "").replace("▁", "") == "dog"

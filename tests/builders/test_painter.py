"""Loading models and painting with them."""

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

from attn2mask.builders import painter as module
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import digest
from attn2mask.builders.painter import EMBEDDED, Painting, load_painter
from attn2mask.builders.prompts import Prompt, PromptSource
from attn2mask.builders.provenance import LORA_RECORD, LORA_WEIGHTS
from attn2mask.builders.scores import BACKGROUND
from attn2mask.builders.stretches import token_spans
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words.captions import Caption

SMALL = Painting(steps=2, guidance_scale=3.0, height=64, width=64)


def prompt(word: str) -> Prompt:
    return Prompt(f"a {word}", f"a {word}", "", (1,), (word,), ((2,),))


PROMPTS = [prompt(word) for word in ("dog", "cat", "bus")]


@pytest.fixture(scope="module")
def painter(tiny_model):
    return load_painter(str(tiny_model("sd15")))


def test_images_do_not_depend_on_their_batch(painter):
    images, maps, faults = painter.paint(PROMPTS, [1, 2, 3], SMALL)
    assert images.shape == (3, 64, 64, 3)
    assert images.dtype == np.uint8
    assert faults == [None] * 3
    for k in range(3):
        alone, own_maps, _ = painter.paint(PROMPTS[k : k + 1], [k + 1], SMALL)
        assert np.abs(alone[0].astype(int) - images[k]).max() <= 2
        assert list(maps[k]) == [PROMPTS[k].words[0]]
        for size, expected in maps[k][PROMPTS[k].words[0]].items():
            torch.testing.assert_close(own_maps[0][PROMPTS[k].words[0]][size], expected, atol=1e-4, rtol=0)


def test_the_same_seed_paints_the_same_and_another_does_not(painter):
    (first, second, third) = (painter.paint(PROMPTS[:1], [seed], SMALL)[0] for seed in (2**62, 2**62, 5))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)


def test_background_words_are_recorded_on_request(painter):
    """Also if one has the spelling of a class word. Images do not change."""
    plain = Prompt("a dog on a street by a sea", "", "", (1,), ("dog",), ((2,),))
    placed = replace(plain, background=("sea", "dog"), background_spans=((8,), (5, 2)))
    images, (off, _), _ = painter.paint([placed, plain], [1, 2], SMALL)
    again, (on, without), _ = painter.paint([placed, plain], [1, 2], replace(SMALL, background=True))
    assert np.array_equal(images, again)
    assert list(off) == ["dog"]
    assert (list(on), list(without)) == (["dog", BACKGROUND], ["dog", BACKGROUND])
    assert without[BACKGROUND] == []
    # The words as class words have the same maps.
    words = replace(plain, words=("dog", "sea", "both"), spans=((2,), (8,), (5, 2)))
    _, (expected,), _ = painter.paint([words], [1], SMALL)
    for own, word in zip((on["dog"], *on[BACKGROUND]), expected, strict=True):
        assert list(own) == list(expected[word])
        for size, values in own.items():
            torch.testing.assert_close(values, expected[word][size], atol=1e-5, rtol=0)


def test_words_have_the_mean_of_their_stretches():
    size = (1, 2)
    clip, t5, behind = ({size: torch.tensor(values)} for values in ([0.2, 0.0], [0.4, 0.2], [0.8, 0.1]))
    recorded = {(False, "dog", "clip"): clip, (False, "dog", "t5"): t5, (True, "dog", "t5"): behind}
    merged = module._by_word(recorded, background=True)
    torch.testing.assert_close(merged["dog"][size], torch.tensor([0.3, 0.1]))
    (only,) = merged[BACKGROUND]
    assert torch.equal(only[size], behind[size])


@pytest.mark.parametrize(
    ("window", "steps", "expected"),
    [((0, 1), 4, (0, 3)), ((0.5, 0.5), 100, (50, 50)), ((0.5, 0.5), 1, (0, 0)), ((0.5, 1), 5, (2, 4))],
)
def test_windows_are_fractions_of_the_run(painter, monkeypatch, window, steps, expected):
    class Seen(Exception):
        pass

    def recorder(pipe, spans, steps):
        raise Seen(steps)

    monkeypatch.setattr(module, "AttentionRecorder", recorder)
    with pytest.raises(Seen) as seen:
        painter.paint(PROMPTS[:1], [1], replace(SMALL, steps=steps, window=window))
    assert seen.value.args == (expected,)


def test_defaults_are_the_models_own(painter, tiny_pipeline):
    assert painter.defaults == module.Painting(50, 7.5, 128, 128)
    assert module._defaults(tiny_pipeline("sdxl"), "embedded") == module.Painting(20, 3.0, 32 * 4, 32 * 4)


def test_two_text_encoders_have_two_tokenizers(tiny_model, painter):
    assert len(painter.tokenizers) == 1
    assert len(load_painter(str(tiny_model("sdxl"))).tokenizers) == 2


def test_what_the_model_cannot_make_is_refused(painter):
    painter.check(steps=50, height=96, width=8)
    with pytest.raises(UserError, match="multiples of 8 for this model, not 100 x 64"):
        painter.check(steps=1, height=100, width=64)
    with pytest.raises(UserError, match="--steps 1001: the model's scheduler has only 1000 steps"):
        painter.check(steps=1001, height=64, width=64)


def test_images_that_are_not_finite_or_black_are_reported(painter, monkeypatch):
    class Output:
        images = np.stack([np.full((64, 64, 3), np.nan), np.zeros((64, 64, 3)), np.full((64, 64, 3), 0.5)])

    def pipe(*args, **kwargs):
        return Output

    class NoRecorder:
        def __init__(self, *args, **kwargs):
            self.maps = [{}] * 3

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    pipe.scheduler = painter.pipe.scheduler
    monkeypatch.setattr(module, "AttentionRecorder", NoRecorder)
    broken = module.Painter(pipe, painter.defaults, {})
    broken.stretches = painter.stretches
    images, _, faults = broken.paint(PROMPTS, [1, 2, 3], SMALL)
    assert "NaN" in faults[0]
    assert "black" in faults[1]
    assert faults[2] is None
    assert images[2, 0, 0, 0] == 128


def test_too_little_memory_names_the_option(painter, monkeypatch):
    def out_of_memory(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", out_of_memory)
    with pytest.raises(
        UserError, match=r"batches of 3: use a smaller --batch-size .* may differ in the last bit"
    ):
        painter.paint(PROMPTS, [1, 2, 3], SMALL)


def test_a_lora_is_loaded_scaled_and_part_of_the_facts(tiny_model, painter, tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model("sd15"), dtype=torch.float32)
    pipe.unet.add_adapter(
        LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_k", "to_q"])
    )
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    plain = painter.paint(PROMPTS[:1], [1], SMALL)[0].astype(int)
    for scale, changes in ((0.0, False), (8.0, True)):
        adapted = load_painter(str(tiny_model("sd15")), lora=str(tmp_path), lora_scale=scale)
        assert (np.abs(adapted.paint(PROMPTS[:1], [1], SMALL)[0] - plain).max() > 0) == changes
        assert adapted.facts["lora_scale"] == scale
        assert adapted.facts["lora_version"] == digest(tmp_path)
    with pytest.raises(UserError, match=r"--lora .*missing.* cannot be loaded"):
        load_painter(str(tiny_model("sd15")), lora=str(tmp_path / "missing.safetensors"))


def lora_with(tiny_lora, folder, **record) -> str:
    """A copy of a LoRA, with a record of an adaptation beside it."""
    shutil.copytree(tiny_lora, folder)
    (folder / LORA_RECORD).write_text(json.dumps(record))
    return str(folder)


@pytest.mark.parametrize(
    ("with_caption", "prior", "added"),
    [(0, False, True), (1, False, True), (2, False, False), (4, True, True)],
)
def test_the_instance_prompt_of_a_lora(tiny_model, tiny_lora, tmp_path, caplog, with_caption, prior, added):
    """It is added if more than half of the images had no caption, or after prior preservation."""
    lora = lora_with(
        tiny_lora,
        tmp_path / "lora",
        options={"instance_prompt": " a photo in sks style ", "prior_preservation": prior},
        data={"images": 4, "with_caption": with_caption},
    )
    with caplog.at_level("INFO"):
        adapted = load_painter(str(tiny_model("sd15")), lora=lora)
    expected = "a photo in sks style" if added else None
    assert adapted.instance_prompt == adapted.facts.get("instance_prompt") == expected
    assert ("its instance prompt 'a photo in sks style' is added to all prompts" in caplog.text) == added
    assert "nothing is added" not in caplog.text
    assert load_painter(str(tiny_model("sd15")), lora=lora, lora_scale=0).instance_prompt is None


@pytest.mark.parametrize(
    "record", [None, {}, {"options": None}, {"options": {"rank": 4}, "data": {"images": 1}}]
)
def test_a_lora_without_a_recorded_instance_prompt_is_said(tiny_model, tiny_lora, tmp_path, caplog, record):
    lora = str(tiny_lora) if record is None else lora_with(tiny_lora, tmp_path / "lora", **record)
    adapted = load_painter(str(tiny_model("sd15")), lora=lora)
    assert adapted.instance_prompt is None
    assert (
        "has no training_config.json with an instance prompt: nothing is added to the prompts" in caplog.text
    )


@pytest.fixture
def several_vectors(tiny_pipeline):
    """`several_vectors(kind)`: a pipeline with "<robot>" as a textual inversion of three vectors."""

    def pipeline(kind: str):
        pipe = copy.deepcopy(tiny_pipeline(kind))
        vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
        for suffix in ("", "_2") if kind == "sdxl" else ("",):
            parts = {name: getattr(pipe, name + suffix) for name in ("tokenizer", "text_encoder")}
            pipe.load_textual_inversion({"<robot>": vectors}, token="<robot>", **parts)
        return pipe

    return pipeline


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_words_after_several_vectors_are_recorded_where_they_stand(several_vectors, kind):
    """The maps of a prompt with "<robot>" are those of the text into which the pipeline rewrites it."""
    pipe = several_vectors(kind)
    robot = module.Painter(pipe, Painting(2, 3.0, 64, 64), {})
    source = PromptSource(
        load_table("voc"),
        [Caption("a <robot> with a dog and a cat", "1")],
        robot.stretches,
        seed=0,
        alias_probability=0.0,
    )
    prompt = source.prompt(0, 0)
    assert prompt.text == "a <robot> with a dog and a cat"  # the pipeline itself rewrites it
    assert prompt.words == ("dog", "cat")
    read = []
    pipe.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: read.append((args or [kwargs["input_ids"]])[0]), with_kwargs=True
    )
    images, maps, _ = robot.paint([prompt], [1], robot.defaults)
    tokens = pipe.tokenizer.convert_ids_to_tokens(read[0][0])
    assert tokens[2:5] == ["<robot>", "<robot>_1", "<robot>_2"]
    assert [[tokens[place] for place in span] for span in prompt.spans] == [["dog</w>"], ["cat</w>"]]
    written_out = replace(prompt, text="a <robot> <robot>_1 <robot>_2 with a dog and a cat")
    pipe.maybe_convert_prompt = lambda text, tokenizer: text
    expected, expected_maps, _ = robot.paint([written_out], [1], robot.defaults)
    assert np.array_equal(images, expected)
    for word in prompt.words:
        for size, values in maps[0][word].items():
            assert torch.equal(values, expected_maps[0][word][size])


def test_a_saved_painter_keeps_several_vectors(several_vectors, tmp_path):
    several_vectors("sd15").save_pretrained(tmp_path / "robot")
    robot = load_painter(str(tmp_path / "robot"))
    text = "a <robot> and a dog"
    spans = token_spans(robot.tokenizers[0], text, [(16, 19)], robot.rewrite)
    assert spans == [(7,)]
    assert token_spans(robot.tokenizers[0], text, [(16, 19)]) == [(5,)]  # in the text before


def test_a_painter_with_perturbed_attention_guidance_is_refused(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("sd15"), tmp_path / "pag")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(
        json.dumps(index | {"_class_name": "StableDiffusionPAGPipeline"})
    )
    with pytest.raises(
        UserError, match=r"StableDiffusionPAGPipeline uses perturbed-attention guidance \(PAG\)"
    ):
        load_painter(str(folder))


def test_facts_tell_models_apart_and_nothing_else(tiny_model, painter, tmp_path):
    other = shutil.copytree(tiny_model("sd15"), tmp_path / "elsewhere" / "model-sd15")
    assert load_painter(str(other)).facts == painter.facts
    config = json.loads((other / "scheduler" / "scheduler_config.json").read_text())
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps({**config, "beta_end": 0.02}))
    assert load_painter(str(other)).facts["scheduler"] != painter.facts["scheduler"]
    assert load_painter(str(other)).facts["model_version"] != painter.facts["model_version"]


def test_weights_of_a_variant_are_loaded(tiny_pipeline, painter, tmp_path):
    folder = tmp_path / "half"
    tiny_pipeline("sd15").save_pretrained(folder, variant="fp16")
    assert list(folder.rglob("*.fp16.safetensors"))
    half = load_painter(str(folder))
    assert np.array_equal(half.paint(PROMPTS[:1], [1], SMALL)[0], painter.paint(PROMPTS[:1], [1], SMALL)[0])


def test_the_working_directory_is_recorded_by_its_name(tiny_model, painter, monkeypatch):
    monkeypatch.chdir(tiny_model("sd15"))
    assert load_painter(".").facts == painter.facts


def test_a_loha_is_refused_by_its_name(tiny_model, tmp_path):
    weights = {
        f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q.{part}": torch.ones(2, 2)
        for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha")
    }
    save_file(weights, tmp_path / LORA_WEIGHTS)
    with pytest.raises(UserError, match=r"cannot be loaded: .*LoHa and LoKr are not supported"):
        load_painter(str(tiny_model("sd15")), lora=str(tmp_path))


def test_what_does_not_load_is_said_in_one_line(tiny_model, tmp_path, monkeypatch):
    def failure(model: str, **options) -> str:
        with pytest.raises(UserError) as error:
            load_painter(model, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "no model './nowhere'" in failure("./nowhere")
    assert "no model 'nothing'" in failure("nothing")
    (tmp_path / "empty").mkdir()
    assert "no model_index.json" in failure(str(tmp_path / "empty"))
    assert "--revision is only for models of the Hub" in failure(str(tiny_model("sd15")), revision="main")
    broken = shutil.copytree(tiny_model("sd15"), tmp_path / "broken")
    shutil.rmtree(broken / "unet")
    assert "cannot be loaded" in failure(str(broken))
    monkeypatch.setattr(module, "EMBEDDED", tmp_path / "not installed")
    assert "embedded painter is not installed" in failure("embedded")


def test_a_model_that_cannot_be_fetched_names_the_embedded_one(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network\nmore")

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", offline)
    with pytest.raises(UserError, match=r"cannot be loaded: no network; --model embedded needs no network$"):
        load_painter("org/model")


def test_a_pipeline_without_cross_attention_is_refused(tiny_model, monkeypatch):
    def no_layout(pipe):
        raise ValueError("StableDiffusionPipeline has no cross-attention that can be read")

    monkeypatch.setattr(module, "layout_of", no_layout)
    with pytest.raises(UserError, match="no cross-attention that can be read"):
        load_painter(str(tiny_model("sd15")))


@pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded painter is not trained yet")
def test_the_embedded_painter_paints_as_it_was_trained_to():
    painter = load_painter()
    assert painter.defaults.steps == 20
    assert painter.defaults.guidance_scale == 3.0
    assert painter.paint(PROMPTS[:1], [1], replace(SMALL, height=painter.defaults.height, width=128))[2] == [
        None
    ]

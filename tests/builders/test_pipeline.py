"""`Attn2MaskPipeline`: the labels of a build for one text, and the attention to every word."""

import io
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image

from attn2mask import Attn2MaskPipeline, build_dataset
from attn2mask.builders.build import BuildConfig, resolve
from attn2mask.builders.errors import UserError
from attn2mask.builders.images import decode_png
from attn2mask.builders.painter import load_painter
from attn2mask.builders.pipeline import with_every_word
from attn2mask.builders.prompts import image_seed
from attn2mask.builders.recorder import AttentionRecorder
from attn2mask.builders.words.captions import Caption
from attn2mask.hub.cli import main


class Here:
    """A labeling pool that works in this process."""

    def submit(self, function, *arguments) -> Future:
        done: Future = Future()
        done.set_result(function(*arguments))
        return done


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return Attn2MaskPipeline.from_pretrained(str(tiny_model("sd15")), "voc", steps=2, preset="photo")


def test_a_row_is_that_of_a_build(pipe, tiny_model, tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("a dog on the street\n")
    config = BuildConfig(
        "voc",
        model=str(tiny_model("sd15")),
        steps=2,
        preset="photo",
        captions=str(captions),
        batch_size=1,
        alias_probability=0.0,
        no_balance=True,
    )
    painter = load_painter(config.model)
    synthesizer = resolve(config).for_painter(painter).synthesizer(painter, Here())
    (candidate,) = synthesizer.synthesize([(0, 0)])
    sample = synthesizer.sample(candidate, ())
    row = pipe("a dog on the street", seed=image_seed(0, 0, 0))
    assert {name: row.columns[name] for name in ("prompt", "scores", "peaks", "words", "seed")} == {
        name: sample.row[name] for name in ("prompt", "scores", "peaks", "words", "seed")
    }
    for name in ("image", "mask", "label", "reliability"):
        np.testing.assert_array_equal(
            np.asarray(getattr(row, name)), decode_png(sample.row[name]["bytes"]), err_msg=name
        )
    assert row.dropped == tuple(sample.dropped)


def test_the_attention_is_that_of_every_word(pipe):
    text = "A dog and a cat, a bus"
    row = pipe(text, seed=3)
    assert set(row.attention) == {"dog", "cat", "bus", "a", "and"}
    # An independent recording: the words of one token have the positions that the tokenizer gives them.
    ids = pipe.painter.tokenizers[0](text).input_ids
    tokens = pipe.painter.tokenizers[0].convert_ids_to_tokens(ids)
    spans = {"dog": (tokens.index("dog</w>"),), "a": tuple(k for k, t in enumerate(tokens) if t == "a</w>")}
    assert len(spans["a"]) == 3
    painting = pipe.inputs.painting()
    calls = len(pipe.painter.pipe.scheduler.timesteps) - 1
    window = tuple(int(part * calls + 0.5) for part in painting.window)
    with AttentionRecorder(pipe.painter.pipe, [spans], steps=window) as recorder:
        pipe.painter.pipe(
            [text],
            num_inference_steps=2,
            guidance_scale=painting.guidance_scale,
            height=128,
            width=128,
            generator=[torch.Generator("cpu").manual_seed(3)],
            output_type="np",
        )
    for word in spans:
        found, largest = row.attention[word], recorder.maps[0][word][row.attention[word].shape]
        assert found.dtype == np.float32
        assert 0 <= found.min() <= found.max() <= 1
        assert np.corrcoef(found.ravel(), largest.numpy().ravel())[0, 1] > 0.5


def test_the_seed_alone_decides(pipe):
    first, again, other = (np.asarray(pipe("a cat", seed=seed).image) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_each_step_is_told_and_changes_nothing(pipe):
    steps: list[tuple[int, int]] = []
    row = pipe("a cat", seed=1, on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]
    np.testing.assert_array_equal(np.asarray(row.image), np.asarray(pipe("a cat", seed=1).image))
    assert not any(module._forward_hooks for module in pipe.painter.pipe.unet.modules())


def test_a_text_without_classes_has_no_label(pipe):
    row = pipe("red street", seed=0)
    assert row.classes == row.words == ()
    assert set(row.attention) == {"red", "street"}
    assert (np.asarray(row.mask) == 255).all()
    assert not np.asarray(row.reliability).any()


def test_a_notebook_draws_the_row(pipe):
    row = pipe("a dog", seed=0)
    assert repr(row) == f"LabeledRow({row.columns['prompt']!r}, classes={row.classes}, size={row.image.size})"
    page = Image.open(io.BytesIO(row._repr_png_()))
    assert page.width > page.height > 100


def test_other_words_have_all_their_places(pipe):
    written = pipe._source.compose(Caption("a dog, a DOG and a red cat", "x"))
    every = with_every_word(written, pipe.painter.stretches)
    places = dict(zip(every.words, every.spans, strict=True))
    assert every.words[: len(written.words)] == written.words
    assert len(places["a"]) == 3
    assert len(places["red"]) == 1
    assert len({place for places_ in every.spans for place in places_}) == sum(map(len, every.spans))


def test_mistakes_are_told(pipe):
    with pytest.raises(UserError, match="the prompt is empty"):
        pipe("  ")
    with pytest.raises(UserError, match="there is no model 'nowhere'"):
        Attn2MaskPipeline.from_pretrained("nowhere")
    with pytest.raises(TypeError, match="stepz"):
        Attn2MaskPipeline.from_pretrained("embedded", stepz=3)
    with pytest.raises(UserError, match="overlay is an option of a dataset: leave it out"):
        Attn2MaskPipeline.from_pretrained("embedded", overlay=True)


def test_build_dataset_makes_what_the_command_makes(tiny_model, tmp_path):
    options = {"model": str(tiny_model("sd15")), "num_images": 2, "steps": 1, "preset": "photo", "workers": 1}
    rows = build_dataset("voc", str(tmp_path / "python"), **options)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    assert main(["build", "voc", "--out", str(tmp_path / "command"), *flags]) == 0
    written = load_dataset(str(tmp_path / "command"), split="train")
    assert rows.column_names == written.column_names
    assert rows["sample_id"][:] == written["sample_id"][:] == ["voc-0-00000000", "voc-0-00000001"]
    for one, other in zip(rows, written, strict=True):
        np.testing.assert_array_equal(np.asarray(one["mask"]), np.asarray(other["mask"]))
    with pytest.raises(UserError, match="dry_run makes no dataset"):
        build_dataset("voc", dry_run=True)

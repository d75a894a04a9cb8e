"""The recorder against an independent reference that keeps the full softmax of every head, layer and step."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPAGPipeline,
    UNet2DModel,
)
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from attn2mask.builders.label import faults, label_image
from attn2mask.builders.recorder import AttentionRecorder
from attn2mask.builders.rules import load_rules
from attn2mask.builders.scores import class_scores, quantize

KINDS = ["sd15", "sd2", "sdxl"]
# "cow" and "zebu" are spelt in several tokens, "cat" and "cow" stand twice.
PROMPTS = [
    "a photo of a dog and a cow",
    "a cat on the street with a cow, a cat and a cow",
    "a red bus",
    "zebu in a bus with a dog",
]
WORDS = [("dog", "cow"), ("cat", "cow", "street"), ("bus",), ("zebu", "bus", "dog")]


def spans_of(pipe, prompts=PROMPTS, words=WORDS) -> list[dict[str, tuple[int, ...]]]:
    """The positions of all occurrences of the words, found by comparing token ids."""
    spans = []
    for prompt, chosen in zip(prompts, words, strict=True):
        text = pipe.tokenizer(prompt)["input_ids"]
        spans.append({})
        for word in chosen:
            own = pipe.tokenizer(word)["input_ids"][1:-1]
            starts = [i for i in range(len(text)) if text[i : i + len(own)] == own]
            spans[-1][word] = tuple(start + i for start in starts for i in range(len(own)))
    return spans


def paint(pipe, prompts=PROMPTS, *, steps=2, guidance=5.0, output="latent", images_per_prompt=1, **options):
    count = len(prompts) * images_per_prompt
    return pipe(
        prompts,
        num_inference_steps=steps,
        guidance_scale=guidance,
        num_images_per_prompt=images_per_prompt,
        generator=[torch.Generator().manual_seed(seed) for seed in range(count)],
        output_type=output,
        **options,
    ).images


class FullSoftmax:
    """Paints with the stock processor, and keeps the probabilities (B, heads, h * w, tokens) beside it."""

    def __init__(self, store: list[torch.Tensor]):
        self.store = store

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        query = attn.head_to_batch_dim(attn.to_q(hidden_states)).float()
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states)).float()
        scores = torch.einsum("bqd,bkd->bqk", query, key) * query.shape[-1] ** -0.5
        self.store.append(torch.softmax(scores, -1).unflatten(0, (-1, attn.heads)))
        return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


@contextmanager
def full_softmax(pipe) -> Iterator[list[torch.Tensor]]:
    """Everything that the cross-attention of a run of a pipeline computes, in the order of the calls."""
    store: list[torch.Tensor] = []
    before = pipe.unet.attn_processors
    pipe.unet.set_attn_processor(
        {name: FullSoftmax(store) if "attn2" in name else own for name, own in before.items()}
    )
    yield store
    pipe.unet.set_attn_processor(dict(before))


def reference_maps(pipe, store, spans, sizes, guided, steps=None):
    """The mean spelt out: over heads, layers of a resolution, steps of the window, and positions."""
    layers = sum("attn2" in name for name in pipe.unet.attn_processors)
    first, last = steps or (0, len(store) // layers - 1)
    window = store[first * layers : (last + 1) * layers]
    offset = len(spans) if guided else 0
    maps = []
    for image, words in enumerate(spans):
        maps.append({})
        for word, positions in words.items():
            maps[-1][word] = {}
            for height, width in sizes:
                seen = [kept[offset + image] for kept in window if kept.shape[2] == height * width]
                values = [one[:, :, position].mean(0) for one in seen for position in positions]
                maps[-1][word][height, width] = torch.stack(values).mean(0).reshape(height, width)
    return maps


def levels(pipe, height, width):
    """The sizes of the pipeline's cross-attention maps for latents (height, width) that divide evenly."""
    shifts = (1, 2) if "XL" in type(pipe).__name__ else (0, 1, 2, 3)
    return [(height >> shift, width >> shift) for shift in shifts]


def assert_same(maps, expected, tolerance=1e-5):
    assert [list(words) for words in maps] == [list(words) for words in expected]
    for words, expected_words in zip(maps, expected, strict=True):
        for word, by_size in words.items():
            assert set(by_size) == set(expected_words[word])
            for size, values in by_size.items():
                assert values.shape == size
                assert values.dtype == torch.float32
                torch.testing.assert_close(values, expected_words[word][size], rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("batch", [1, 4])
def test_images_are_bit_identical(tiny_pipeline, kind, guidance, batch):
    pipe = tiny_pipeline(kind)
    plain = paint(pipe, PROMPTS[:batch], guidance=guidance, output="pt")
    with AttentionRecorder(pipe, spans_of(pipe)[:batch]):
        recorded = paint(pipe, PROMPTS[:batch], guidance=guidance, output="pt")
    assert torch.equal(plain, recorded)
    assert plain.std() > 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tiny_pipeline, dtype):
    pipe = copy.deepcopy(tiny_pipeline("sd15")).to(dtype)
    spans = spans_of(pipe)
    plain = paint(pipe, output="pt")
    with AttentionRecorder(pipe, spans) as recorder:
        recorded = paint(pipe, output="pt")
    assert torch.equal(plain, recorded)
    with full_softmax(pipe) as store:
        paint(pipe)
    assert_same(recorder.maps, reference_maps(pipe, store, spans, levels(pipe, 16, 16), True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_equals_the_reference(tiny_pipeline, kind, guidance):
    """Prompts of different classes, words of several tokens and occurrences, latents of 96 x 64."""
    pipe = tiny_pipeline(kind)
    spans = spans_of(pipe)[:2]
    assert len(spans[1]["cow"]) == 6
    size = {"height": 96 * 8, "width": 64 * 8}
    with AttentionRecorder(pipe, spans) as recorder:
        paint(pipe, PROMPTS[:2], steps=1, guidance=guidance, **size)
    with full_softmax(pipe) as store:
        paint(pipe, PROMPTS[:2], steps=1, guidance=guidance, **size)
    expected = reference_maps(pipe, store, spans, levels(pipe, 96, 64), guidance > 1)
    assert_same(recorder.maps, expected)
    # The maps are worth comparing: they differ from place to place, and from word to word.
    largest = levels(pipe, 96, 64)[0]
    dog, cow = recorder.maps[0]["dog"][largest], recorder.maps[0]["cow"][largest]
    assert dog.max() > 1.5 * dog.min()
    assert (dog - cow).abs().max() > 1e-3


def test_sizes_that_do_not_divide_evenly(tiny_pipeline):
    """Latents of 13 x 9: every level of the UNet rounds up."""
    pipe = tiny_pipeline("sd15")
    spans = spans_of(pipe)[:1]
    size = {"height": 13 * 8, "width": 9 * 8}
    with AttentionRecorder(pipe, spans) as recorder:
        paint(pipe, PROMPTS[:1], **size)
    with full_softmax(pipe) as store:
        paint(pipe, PROMPTS[:1], **size)
    sizes = [(13, 9), (7, 5), (4, 3), (2, 2)]
    assert_same(recorder.maps, reference_maps(pipe, store, spans, sizes, True))


@pytest.mark.parametrize("places", [3 * 256, 100, 0], ids=["three images", "parts of one", "place by place"])
def test_chunks_change_nothing(tiny_pipeline, monkeypatch, places):
    pipe = tiny_pipeline("sd15")
    spans = spans_of(pipe)
    with AttentionRecorder(pipe, spans) as whole:
        paint(pipe)
    monkeypatch.setattr("attn2mask.builders.recorder.CPU_CHUNK", 2 * 77 * places)
    with AttentionRecorder(pipe, spans) as chunked:
        paint(pipe)
    assert_same(chunked.maps, whole.maps, 1e-7)


def test_a_batch_of_four(tiny_pipeline):
    pipe = tiny_pipeline("sd2")
    spans = spans_of(pipe)
    with AttentionRecorder(pipe, spans) as recorder:
        paint(pipe)
    with full_softmax(pipe) as store:
        paint(pipe)
    assert_same(recorder.maps, reference_maps(pipe, store, spans, levels(pipe, 16, 16), True))


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_several_images_per_prompt(tiny_pipeline, guidance):
    pipe = tiny_pipeline("sd15")
    spans = [words for words in spans_of(pipe)[:2] for _ in range(2)]
    with AttentionRecorder(pipe, spans) as recorder:
        paint(pipe, PROMPTS[:2], guidance=guidance, images_per_prompt=2)
    with full_softmax(pipe) as store:
        paint(pipe, PROMPTS[:2], guidance=guidance, images_per_prompt=2)
    assert_same(recorder.maps, reference_maps(pipe, store, spans, levels(pipe, 16, 16), guidance > 1))


@pytest.mark.parametrize("window", [(0, 0), (1, 2), (3, 3), (2, 9)])
def test_window_of_steps(tiny_pipeline, window):
    pipe = tiny_pipeline("sd15")
    spans = spans_of(pipe)[:2]
    with AttentionRecorder(pipe, spans, steps=window) as recorder:
        paint(pipe, PROMPTS[:2], steps=4)
    with full_softmax(pipe) as store:
        paint(pipe, PROMPTS[:2], steps=4)
    assert_same(recorder.maps, reference_maps(pipe, store, spans, levels(pipe, 16, 16), True, window))


def test_all_tokens_sum_to_one(tiny_pipeline):
    """The token figure's way: every position is a word of its own."""
    pipe = tiny_pipeline("sd2")
    with AttentionRecorder(pipe, [{str(i): (i,) for i in range(77)}]) as recorder:
        paint(pipe, PROMPTS[:1])
    for size in levels(pipe, 16, 16):
        total = sum(by_size[size] for by_size in recorder.maps[0].values())
        torch.testing.assert_close(total, torch.ones(size))


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_self_attention_equals_the_reference(tiny_pipeline, guidance):
    """The probabilities of the layers of one size, from their own modules."""
    pipe, spans, size = tiny_pipeline("sd15"), spans_of(tiny_pipeline("sd15"))[:2], (12, 8)
    sides = {"height": 12 * 16, "width": 8 * 16}
    plain = paint(pipe, PROMPTS[:2], guidance=guidance, **sides)
    seen = []

    def choose(sizes):
        seen.append(sizes)
        return size

    with AttentionRecorder(pipe, spans, self_attention=choose) as recorder:
        recorded = paint(pipe, PROMPTS[:2], guidance=guidance, **sides)
    assert torch.equal(plain, recorded)
    assert seen == [[(24, 16), (12, 8), (6, 4), (3, 2)]]
    store = []

    def keep(layer, args, kwargs):
        values = args[0] if args else kwargs["hidden_states"]
        query, key = (
            part(values).unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in (layer.to_q, layer.to_k)
        )
        if query.shape[2] == size[0] * size[1]:
            logits = torch.einsum("bhqd,bhkd->bhqk", query, key) * query.shape[-1] ** -0.5
            store.append(logits.softmax(-1)[-2:].mean(1))

    names = [name for name in pipe.unet.attn_processors if "attn1" in name]
    layers = [pipe.unet.get_submodule(name.removesuffix(".processor")) for name in names]
    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    paint(pipe, PROMPTS[:2], guidance=guidance, **sides)
    for handle in handles:
        handle.remove()
    expected = torch.stack(store).mean(0)
    for image, by_size in enumerate(recorder.self_attention):
        torch.testing.assert_close(by_size[size], expected[image], rtol=0, atol=1e-6)
        torch.testing.assert_close(by_size[size].sum(1), torch.ones(96))
    with AttentionRecorder(pipe, spans) as without:
        paint(pipe, PROMPTS[:2], guidance=guidance, **sides)
    assert without.self_attention == [{}, {}]
    assert_same(recorder.maps, without.maps, 0)


def test_images_without_words(tiny_pipeline):
    pipe = tiny_pipeline("sd15")
    with AttentionRecorder(pipe, [{}, {"dog": (5,)}]) as recorder:
        paint(pipe, PROMPTS[:2])
    assert recorder.maps[0] == {}
    assert list(recorder.maps[1]) == ["dog"]


def test_lora(tiny_pipeline, tmp_path):
    """A LoRA that was loaded is seen, and its images are bit-identical too."""
    trained = copy.deepcopy(tiny_pipeline("sd15"))
    torch.manual_seed(0)
    trained.unet.add_adapter(
        LoraConfig(
            r=4, lora_alpha=16, init_lora_weights=False, target_modules=["to_k", "to_q", "to_v", "to_out.0"]
        )
    )
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(trained.unet))
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=weights)

    pipe = copy.deepcopy(tiny_pipeline("sd15"))
    spans = spans_of(pipe)
    bare = paint(pipe, output="pt")
    pipe.load_lora_weights(tmp_path)
    plain = paint(pipe, output="pt")
    with AttentionRecorder(pipe, spans) as recorder:
        recorded = paint(pipe, output="pt")
    assert torch.equal(plain, recorded)
    assert not torch.equal(bare, plain)
    with full_softmax(pipe) as store:
        paint(pipe)
    assert_same(recorder.maps, reference_maps(pipe, store, spans, levels(pipe, 16, 16), True))


def tensor_bytes(recorder) -> int:
    """Of all tensors in the recorder's own attributes, and those that its taps still hold."""
    pipelines = ("_timesteps", "_text")
    own = {name: value for name, value in vars(recorder).items() if name not in pipelines}
    holders = [own, *(tap.seen for tap in recorder._taps)]
    values = [value for holder in holders for value in holder.values()]
    values += [inner for value in values if isinstance(value, dict) for inner in value.values()]
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def test_memory_does_not_grow_with_steps(tiny_pipeline):
    pipe = tiny_pipeline("sd15")
    held = []
    for steps in (2, 20):
        with AttentionRecorder(pipe, spans_of(pipe)) as recorder:
            paint(pipe, steps=steps)
            held.append(tensor_bytes(recorder))
    # 4 images of at most 3 words, in float32: four resolutions, and the weights of 3 words.
    assert held == [4 * 4 * (3 * (256 + 64 + 16 + 4) + 3 * 77)] * 2


def hooks(pipe) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())


def test_the_model_is_left_as_it_was(tiny_pipeline):
    pipe = tiny_pipeline("sd15")
    before, hooks_before = dict(pipe.unet.attn_processors), hooks(pipe)
    fused = torch.nn.functional.scaled_dot_product_attention

    def fail(*args):
        raise KeyError("stop")

    for options in ({}, {"callback_on_step_end": fail}):
        recorder = AttentionRecorder(pipe, spans_of(pipe)[:1])
        try:
            with recorder:
                assert hooks(pipe) > hooks_before
                paint(pipe, PROMPTS[:1], **options)
        except KeyError:
            assert options
        after = pipe.unet.attn_processors
        assert all(after[name] is before[name] for name in before)
        assert hooks(pipe) == hooks_before
        assert torch.nn.functional.scaled_dot_product_attention is fused


def test_slicing_inside_the_context_is_noticed(tiny_pipeline):
    pipe = copy.deepcopy(tiny_pipeline("sd15"))
    before = dict(pipe.unet.attn_processors)

    def paint_sliced():
        pipe.enable_attention_slicing(1)
        paint(pipe, PROMPTS[:1])

    with (
        pytest.raises(RuntimeError, match=r"enable_attention_slicing") as caught,
        AttentionRecorder(pipe, spans_of(pipe)[:1]),
    ):
        paint_sliced()
    assert "\n" not in str(caught.value)
    assert all(pipe.unet.attn_processors[name] is before[name] for name in before if "attn2" in name)


def test_slicing_before_the_context_changes_nothing(tiny_pipeline):
    pipe = copy.deepcopy(tiny_pipeline("sd15"))
    with AttentionRecorder(pipe, spans_of(pipe)) as whole:
        paint(pipe)
    pipe.enable_attention_slicing(1)
    plain = paint(pipe)
    with AttentionRecorder(pipe, spans_of(pipe)) as sliced:
        recorded = paint(pipe)
    assert torch.equal(plain, recorded)
    assert_same(sliced.maps, whole.maps)


def test_fused_projections_are_recorded(tiny_pipeline):
    pipe = copy.deepcopy(tiny_pipeline("sd15"))
    spans = spans_of(pipe)
    with AttentionRecorder(pipe, spans) as apart:
        paint(pipe)
    pipe.fuse_qkv_projections()
    plain = paint(pipe)
    with AttentionRecorder(pipe, spans) as fused:
        recorded = paint(pipe)
    assert torch.equal(plain, recorded)
    assert_same(fused.maps, apart.maps)


PAG = {"sd15": StableDiffusionPAGPipeline, "sdxl": StableDiffusionXLPAGPipeline}


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("kind", PAG)
def test_perturbed_attention_guidance_is_refused(tiny_pipeline, kind, guidance):
    pipe = PAG[kind].from_pipe(copy.deepcopy(tiny_pipeline(kind)))
    pipe.set_progress_bar_config(disable=True)
    with (
        pytest.raises(ValueError, match=r"perturbed-attention guidance \(PAG\).*pag_scale=0"),
        AttentionRecorder(pipe, spans_of(pipe)[:2]),
    ):
        paint(pipe, PROMPTS[:2], guidance=guidance)


def test_a_pag_pipeline_without_pag_is_recorded(tiny_pipeline):
    pipe = StableDiffusionPAGPipeline.from_pipe(copy.deepcopy(tiny_pipeline("sd15")))
    pipe.set_progress_bar_config(disable=True)
    spans = spans_of(pipe)[:2]
    with AttentionRecorder(pipe, spans) as without:
        paint(pipe, PROMPTS[:2], pag_scale=0)
    with AttentionRecorder(tiny_pipeline("sd15"), spans) as plain:
        paint(tiny_pipeline("sd15"), PROMPTS[:2])
    assert_same(without.maps, plain.maps, 0)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("first", ["whole", "stopped early"])
def test_a_second_run_is_refused(tiny_pipeline, kind, first):
    pipe = tiny_pipeline(kind)

    def stop(pipe, step, *rest):
        pipe._interrupt = True
        return {}

    options = {"callback_on_step_end": stop} if first == "stopped early" else {}

    def paint_twice(recorder):
        paint(pipe, PROMPTS[:1], steps=3, **options)
        assert recorder._step == (0 if options else 2)
        paint(pipe, PROMPTS[:1], steps=3)

    with (
        pytest.raises(RuntimeError, match=r"a second time.*each run with a new AttentionRecorder"),
        AttentionRecorder(pipe, spans_of(pipe)[:1]) as recorder,
    ):
        paint_twice(recorder)


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # of diffusers and numpy
@pytest.mark.parametrize(
    "scheduler",
    [PNDMScheduler, HeunDiscreteScheduler, DPMSolverSinglestepScheduler, EulerAncestralDiscreteScheduler],
)
def test_one_run_of_any_scheduler_is_one_run(tiny_pipeline, scheduler):
    """Schedulers repeat timesteps, or need several passes for a step."""
    pipe = copy.copy(tiny_pipeline("sd15"))
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    spans = spans_of(pipe)[:1]
    with AttentionRecorder(pipe, spans) as recorder:
        paint(pipe, PROMPTS[:1], steps=4)
    assert recorder._step == len(pipe.scheduler.timesteps) - 1
    with full_softmax(pipe) as store:
        paint(pipe, PROMPTS[:1], steps=4)
    assert_same(recorder.maps, reference_maps(pipe, store, spans, levels(pipe, 16, 16), True))


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("kept", [2, 4], ids=["a half", "a quarter, which is the next level's number"])
def test_merged_tokens_are_refused(tiny_pipeline, kind, kept):
    """As tomesd does it, every `kept`-th position stands for its neighbors, too."""
    pipe = copy.deepcopy(tiny_pipeline(kind))
    name, layer = next(
        (name, module) for name, module in pipe.unet.named_modules() if name.endswith("blocks.0.attn2")
    )
    whole = layer.forward

    def merged(hidden_states, *args, **kwargs):
        return whole(hidden_states[:, ::kept], *args, **kwargs).repeat_interleave(kept, dim=1)

    layer.forward = merged
    paint(pipe, PROMPTS[:1])  # the pipeline itself does not notice
    side = levels(pipe, 16, 16)[0][0]
    positions = rf"{re.escape(name)} has {side * side // kept} positions on a grid of {side} x {side}"
    with (
        pytest.raises(RuntimeError, match=positions + r": tokens are merged \(tomesd and its like\)"),
        AttentionRecorder(pipe, spans_of(pipe)[:1]),
    ):
        paint(pipe, PROMPTS[:1])


def test_nothing_recorded_is_an_error(tiny_pipeline):
    pipe = tiny_pipeline("sd15")
    message = "nothing was recorded: the pipeline did not run"
    with pytest.raises(RuntimeError, match=message), AttentionRecorder(pipe, [{"dog": (5,)}]):
        pass
    with (
        pytest.raises(RuntimeError, match=message + ", or ended before step 5"),
        AttentionRecorder(pipe, [{"dog": (5,)}], steps=(5, 8)),
    ):
        paint(pipe, PROMPTS[:1])


def test_masked_tokens_are_left_out(tiny_pipeline):
    """A UNet by itself under an attention mask: here the batch alone tells that there is no guidance."""
    unet = tiny_pipeline("sd15").unet
    torch.manual_seed(0)
    mask = torch.ones(1, 77, dtype=torch.bool)
    mask[:, 10:] = False
    every = {str(position): (position,) for position in range(77)}
    with AttentionRecorder(SimpleNamespace(unet=unet), [every]) as recorder:
        unet(torch.randn(1, 4, 16, 16), 1, torch.randn(1, 77, 16), encoder_attention_mask=mask)
    maps = torch.stack([by_size[16, 16] for by_size in recorder.maps[0].values()])
    torch.testing.assert_close(maps[:10].sum(0), torch.ones(16, 16))
    assert not maps[10:].any()
    assert (maps[:10] > 0).all()


def test_pipelines_without_cross_attention():
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )
    for pipe in (DDPMPipeline(unet, DDPMScheduler()), object()):
        with pytest.raises(ValueError, match="no cross-attention that can be read"):
            AttentionRecorder(pipe, [{}])


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("entries", [1, 3, 4])
def test_wrong_number_of_spans(tiny_pipeline, guidance, entries):
    pipe = tiny_pipeline("sd15")
    with (
        pytest.raises(ValueError, match=f"paints 2 images, but spans has entries for {entries}"),
        AttentionRecorder(pipe, [{"dog": (5,)}] * entries),
    ):
        paint(pipe, PROMPTS[:2], guidance=guidance)


def test_positions_outside_the_text(tiny_pipeline):
    pipe = tiny_pipeline("sd15")
    for positions in ((), (-1,)):
        with pytest.raises(ValueError, match="'dog' has no valid token positions"):
            AttentionRecorder(pipe, [{"dog": positions}])
    with (
        pytest.raises(ValueError, match="'dog' has position 77, outside the text of 77 tokens"),
        AttentionRecorder(pipe, [{"dog": (5, 77)}]),
    ):
        paint(pipe, PROMPTS[:1])


@pytest.mark.parametrize("steps", [(2, 1), (-1, 3)])
def test_impossible_windows(tiny_pipeline, steps):
    with pytest.raises(ValueError, match="window of steps"):
        AttentionRecorder(tiny_pipeline("sd15"), [{"dog": (5,)}], steps=steps)


def test_overflow_reaches_the_gate(tiny_pipeline):
    """float16 overflows in one layer: the peak is not a number, and the gate says so."""
    pipe = copy.deepcopy(tiny_pipeline("sd15")).to(torch.float16)
    layer = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    layer.to_q.weight.data *= 6e4
    with AttentionRecorder(pipe, spans_of(pipe)[:1]) as recorder:
        paint(pipe, PROMPTS[:1])
    scores, peaks = class_scores(list(recorder.maps[0].values()), load_rules("embedded"), 16)
    assert peaks.isnan().all()
    assert not scores.any()
    image = torch.zeros(128, 128, 3, dtype=torch.uint8).numpy()
    labels = label_image(image, quantize(scores), load_rules("embedded"), background=True)
    reasons = faults(labels, peaks.tolist(), WORDS[0])
    assert list(reasons) == [0, 1]
    assert "is not finite" in reasons[0]

"""The recorder on every family of models: images that stay the same, and maps against the full softmax."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import apply_rotary_emb
from families import FAMILIES
from torch import nn

from attn2mask.builders import recorder as module
from attn2mask.builders.layouts import Flux, layout_of
from attn2mask.builders.recorder import AttentionRecorder

PROMPTS = [
    "a photo of a dog and a zebu",
    "a street with a zebu in it and a dog",
    "two cows with a dog, a zebu",
]
WORDS = ("dog", "zebu")
PLAIN = {"clean_caption": False, "use_resolution_binning": False}


def spans_of(pipe, prompts=PROMPTS) -> list[dict[tuple[str, str], tuple[int, ...]]]:
    """The positions of the words in each stretch of the text keys."""
    found = []
    for prompt in prompts:
        places = [(prompt.index(word), prompt.index(word) + len(word)) for word in WORDS]
        found.append(
            {
                (word, stretch.name): span
                for stretch in layout_of(pipe).stretches(pipe)
                for word, span in zip(WORDS, stretch.spans(prompt, places)[0], strict=True)
            }
        )
    return found


def paint(pipe, prompts=PROMPTS, guided=True, size=(128, 128), steps=2, output="latent", **options):
    name = type(pipe).__name__
    if name.startswith(("PixArt", "Sana")):
        options = {**PLAIN, **options}
    if name.startswith("QwenImage"):
        options |= {"negative_prompt": [" "] * len(prompts), "true_cfg_scale": 3.0 if guided else 1.0}
    elif name.startswith("Flux"):
        if guided == "true":
            options |= {"negative_prompt": ["cat"] * len(prompts), "true_cfg_scale": 3.0}
    else:
        unguided = 0.0 if name.startswith("ZImage") else 1.0
        options["guidance_scale"] = 3.0 if guided else unguided
    return pipe(
        list(prompts),
        num_inference_steps=steps,
        height=size[0],
        width=size[1],
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
        output_type=output,
        **options,
    ).images


# Images stay the same


def check_images(pipe, batch: int, guided: bool, size: tuple[int, int]) -> None:
    prompts = PROMPTS[:batch]
    plain = paint(pipe, prompts, guided, size)
    with AttentionRecorder(pipe, spans_of(pipe, prompts), layers="all") as recorder:
        recorded = paint(pipe, prompts, guided, size)
    assert torch.equal(plain, recorded)
    assert plain.std() > 0.01
    for maps in recorder.maps:
        assert all(0 < values.mean() < 1 for by_size in maps.values() for values in by_size.values())


@pytest.mark.parametrize("kind", FAMILIES)
def test_images_are_bit_identical(family, kind):
    check_images(family(kind), batch=3, guided=True, size=(128, 192))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(128, 128), (128, 192)])
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", FAMILIES)
def test_images_are_bit_identical_in_every_way(family, kind, batch, guided, size):
    check_images(family(kind), batch, guided, size)


# Maps against the full softmax


class FullSoftmax:
    """Paints with the layer's own processor, and keeps its probabilities (B, heads, queries, keys) beside it.

    It computes them from the layer's modules alone, in float32.
    """

    def __init__(self, own: Any, store: list[torch.Tensor], image_first: bool):
        self.own, self.store, self.image_first = own, store, image_first

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
        **others: Any,
    ) -> Any:
        def heads(values: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
            values = values.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return values if norm is None else norm(values)

        cross = encoder_hidden_states is not None and getattr(attn, "add_k_proj", None) is None
        query = heads(attn.to_q(hidden_states), attn.norm_q)
        key = heads(attn.to_k(encoder_hidden_states if cross else hidden_states), attn.norm_k)
        if encoder_hidden_states is not None and not cross:
            text_query = heads(attn.add_q_proj(encoder_hidden_states), attn.norm_added_q)
            text_key = heads(attn.add_k_proj(encoder_hidden_states), attn.norm_added_k)
            order = slice(None) if self.image_first else slice(None, None, -1)
            query = torch.cat([query, text_query][order], dim=2)
            key = torch.cat([key, text_key][order], dim=2)
        if image_rotary_emb is not None:
            query, key = (apply_rotary_emb(values, image_rotary_emb) for values in (query, key))
        logits = torch.einsum("bhqd,bhkd->bhqk", query, key) / query.shape[-1] ** 0.5
        if attention_mask is not None:
            logits = logits + attention_mask[:, None]
        self.store.append(logits.softmax(-1))
        options = {"attention_mask": attention_mask, "image_rotary_emb": image_rotary_emb, **others}
        given = {name: value for name, value in options.items() if value is not None}
        return self.own(attn, hidden_states, encoder_hidden_states, **given)


def reference(pipe, prompts, guided, size, over):
    """The maps of `spans_of` with every layer, by the full softmax of each."""
    layout, store = layout_of(pipe), []
    before = {name: layer.processor for name, layer in layout.layers.items()}
    image_first = not layout.text_first
    for layer in layout.layers.values():
        layer.set_processor(FullSoftmax(layer.processor, store, image_first))
    try:
        paint(pipe, prompts, guided, size)
    finally:
        for name, layer in layout.layers.items():
            layer.set_processor(before[name])
    places = (size[0] // 16) * (size[1] // 16)
    images = len(prompts)
    halves = store[0].shape[0] == 2 * images
    calls = [store[i : i + len(before)] for i in range(0, len(store), len(before))]
    if isinstance(layout, Flux) and guided == "true":
        calls = calls[::2]
    of_layers = []
    for attention in (layer for call in calls for layer in call):
        attention = attention[-images:] if halves else attention
        if layout.joint:
            image = slice(0, places) if image_first else slice(-places, None)
            text = slice(places, None) if image_first else slice(0, attention.shape[-1] - places)
            attention = attention[:, :, image, text]
            if over == "text":
                attention = attention / attention.sum(-1, keepdim=True)
        of_layers.append(attention.mean(1))
    mean = torch.stack(of_layers).mean(0)
    grid = (size[0] // 16, size[1] // 16)
    return [
        {key: {grid: mean[k][:, list(span)].mean(-1).reshape(grid)} for key, span in words.items()}
        for k, words in enumerate(spans_of(pipe, prompts))
    ]


@pytest.mark.parametrize(
    ("kind", "guided", "over"),
    [
        ("sd3", True, None),
        ("sd3", False, "text"),
        ("flux", True, None),
        ("flux", "true", "joint"),
        ("flux", True, "text"),
        ("pixart", True, None),
        ("pixart", False, "text"),
    ],
)
def test_equals_the_full_softmax(family, kind, guided, over):
    pipe, size = family(kind), (128, 192)
    with AttentionRecorder(pipe, spans_of(pipe), layers="all", over=over) as recorder:
        paint(pipe, PROMPTS, guided, size)
    expected = reference(pipe, PROMPTS, guided, size, over)
    for own, other in zip(recorder.maps, expected, strict=True):
        assert own.keys() == other.keys()
        for key in own:
            assert own[key].keys() == other[key].keys()
            for grid, values in own[key].items():
                torch.testing.assert_close(values, other[key][grid], rtol=0, atol=1e-5)
                assert values.max() > 1.02 * values.min()  # the maps are worth comparing


@pytest.mark.parametrize("kind", ["sd3", "flux", "pixart", "zimage", "qwen"])
def test_self_attention_of_the_image(family, kind):
    """Each position attends to the positions of the image alone, and the maps of the words stay the same."""
    pipe = family(kind)
    with AttentionRecorder(pipe, spans_of(pipe), layers="all") as without:
        paint(pipe)
    with AttentionRecorder(pipe, spans_of(pipe), layers="all", self_attention=max) as recorder:
        paint(pipe)
    for of_image in recorder.self_attention:
        torch.testing.assert_close(of_image[8, 8].sum(1), torch.ones(64))
        assert of_image[8, 8].std() > 1e-5
    for words, expected in zip(recorder.maps, without.maps, strict=True):
        assert all(torch.equal(words[word][8, 8], expected[word][8, 8]) for word in expected)


# The stretch of tokens


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_word_that_moves_moves_its_map(family, kind):
    pipe, maps = family(kind), []
    for prompt in ("dog and a cat", "a cat and a dog"):
        spans = spans_of_words(pipe, [prompt])
        with AttentionRecorder(pipe, spans, layers="all") as recorder:
            paint(pipe, [prompt])
        maps.append(recorder.maps[0])
    for key, by_size in maps[0].items():
        for size, values in by_size.items():
            assert not torch.allclose(values, maps[1][key][size], rtol=1e-3, atol=0)


def spans_of_words(pipe, prompts, words=("dog", "cat")):
    return [
        {
            (word, stretch.name): stretch.spans(prompt, [(prompt.index(word), prompt.index(word) + 3)])[0][0]
            for stretch in layout_of(pipe).stretches(pipe)
            for word in words
        }
        for prompt in prompts
    ]


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_span_is_where_the_text_encoder_reads_the_word(family, kind):
    """Another word of as many tokens at the same place changes the text at its span, and, in encoders that
    read from left to right, not before it.
    """
    pipe, texts = family(kind), []
    before, after = "a photo of a cow and a cat", "a photo of a bus and a cat"
    layout = layout_of(pipe)

    def see(denoiser, args, kwargs):
        text = layout.text(layout.arguments(args, kwargs))
        texts.append(text[0] if isinstance(text, list) else text[-1])

    hook = layout.denoiser.register_forward_pre_hook(see, with_kwargs=True)
    try:
        for prompt in (before, after):
            paint(pipe, [prompt], guided=False, steps=1)
    finally:
        hook.remove()
    changed = (texts[0] - texts[1]).abs().amax(dim=1) > 0
    for stretch in layout.stretches(pipe):
        (span,) = stretch.spans(before, [(13, 16)])[0]
        assert changed[list(span)].all()
        if "T5" not in type(stretch.tokenizers[0]).__name__:
            padding = stretch.length - len(stretch.tokenizers[0](before).input_ids) if stretch.padded else 0
            assert not changed[stretch.first + padding : span[0]].any()


def test_a_tokenizer_without_offsets_does_not_find_a_part_of_a_word(family):
    (stretch,) = layout_of(family("kolors")).stretches(family("kolors"))
    blank, part, word = stretch.spans("a cow", [(1, 2), (2, 3), (2, 5)])[0]
    assert blank is None
    assert part is None
    assert word == (255,)


@pytest.mark.parametrize("kind", FAMILIES)
def test_each_text_layer_is_seen_once_in_a_step(family, kind, monkeypatch):
    pipe, seen = family(kind), []
    receive = AttentionRecorder._receive
    monkeypatch.setattr(
        AttentionRecorder,
        "_receive",
        lambda self, name, attention: seen.append(name) or receive(self, name, attention),
    )
    with AttentionRecorder(pipe, spans_of(pipe)[:1], steps=(1, 1), layers="all"):
        paint(pipe, PROMPTS[:1])
    assert sorted(seen) == sorted(layout_of(pipe).layers)


# Layers


def test_layers_by_name(family):
    pipe = family("sd3")
    spans = spans_of(pipe)[:1]

    def maps(layers):
        with AttentionRecorder(pipe, spans, layers=layers) as recorder:
            paint(pipe, PROMPTS[:1])
        return recorder.maps[0]["dog", "t5"][8, 8]

    single = [maps([f"transformer_blocks.{k}."]) for k in range(3)]
    torch.testing.assert_close(maps("all"), torch.stack(single).mean(0))
    torch.testing.assert_close(
        maps(["transformer_blocks.0", "transformer_blocks.2"]), (single[0] + single[2]) / 2
    )
    torch.testing.assert_close(maps(None), maps("all"))  # it has no block 9
    with pytest.raises(ValueError, match=r"begins with 'up_blocks': the 3 layers are named from transformer"):
        AttentionRecorder(pipe, spans, layers=["up_blocks"])


def test_published_layers(family):
    pipe = copy.deepcopy(family("sd3"))
    blocks = pipe.transformer.transformer_blocks
    middle = [copy.deepcopy(blocks[1]) for _ in range(9)]
    pipe.transformer.transformer_blocks = nn.ModuleList([blocks[0], *middle, blocks[2]])
    assert list(AttentionRecorder(pipe, spans_of(pipe)).layers) == ["transformer_blocks.9.attn"]
    assert len(AttentionRecorder(pipe, spans_of(pipe), layers="all").layers) == 11


def test_skip_layer_guidance_is_left_out(family):
    """Its additional call has the prompts again, without the layers that it skips."""
    pipe = family("sd3")
    spans = spans_of(pipe)
    options = {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 1.0, "skip_layer_guidance_start": 0.0}
    plain = paint(pipe, **options)
    with AttentionRecorder(pipe, spans) as recorder:
        recorded = paint(pipe, **options)
    assert torch.equal(plain, recorded)
    assert recorder._step == 1
    with AttentionRecorder(pipe, spans, steps=(0, 0)) as without:
        paint(pipe)
    with AttentionRecorder(pipe, spans, steps=(0, 0)) as guided:
        paint(pipe, **options)
    for word in spans[0]:
        assert torch.equal(without.maps[0][word][8, 8], guided.maps[0][word][8, 8])


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_fused_projections_and_loras_are_seen(family, kind):
    pipe = copy.deepcopy(family(kind))
    spans = spans_of(pipe)
    with AttentionRecorder(pipe, spans) as apart:
        paint(pipe)
    if kind == "flux":  # diffusers leaves out the norms of SD3.5's fused projections
        pipe.transformer.fuse_qkv_projections()
        with AttentionRecorder(pipe, spans) as fused:
            paint(pipe)
        pipe.transformer.unfuse_qkv_projections()
        for word in spans[0]:
            torch.testing.assert_close(fused.maps[0][word][8, 8], apart.maps[0][word][8, 8])
    from peft import LoraConfig

    targets = ["to_q", "to_k", "add_k_proj"]
    pipe.transformer.add_adapter(
        LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, target_modules=targets)
    )
    with AttentionRecorder(pipe, spans, layers="all") as recorder:
        paint(pipe)
    expected = reference(pipe, PROMPTS, True, (128, 128), None)
    for word in spans[0]:
        torch.testing.assert_close(recorder.maps[0][word][8, 8], expected[0][word][8, 8], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["sd_turbo", "pixart", "sana", "sd3"])
def test_layers_at_once_equal_layers_in_chunks(family, kind, monkeypatch):
    """A GPU has room for all layers of a size at once; with less room, it takes some, or parts of one."""
    pipe = family(kind)
    found = []
    for chunk in (module.CPU_CHUNK, module.CHUNK, 2**16, 2**10):
        monkeypatch.setattr(module, "CPU_CHUNK", chunk)
        monkeypatch.setattr(module, "CHUNK", min(chunk, module.CHUNK) if found else module.CHUNK)
        with AttentionRecorder(pipe, spans_of(pipe), layers="all", over="text") as recorder:
            paint(pipe, size=(128, 192))
        found.append(recorder.maps)
    for other in found[1:]:
        for words, expected in zip(other, found[0], strict=True):
            for word, by_size in expected.items():
                for size, values in by_size.items():
                    torch.testing.assert_close(words[word][size], values, rtol=0, atol=1e-6)


class Int8(nn.Module):
    """A projection whose weights are 8-bit integers, as quantized models have them."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.scale = linear.weight.detach().abs().amax() / 127
        self.register_buffer("weight", (linear.weight.detach() / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(values, self.weight.float() * self.scale, self.bias)


@pytest.mark.parametrize("kind", ["sd3", "flux", "pixart"])
def test_quantized_weights_are_recorded_as_they_are_used(family, kind):
    pipe = copy.deepcopy(family(kind))
    for layer in layout_of(pipe).layers.values():
        layer.to_q, layer.to_k = Int8(layer.to_q), Int8(layer.to_k)
    plain = paint(pipe)
    with AttentionRecorder(pipe, spans_of(pipe), layers="all") as recorder:
        recorded = paint(pipe)
    assert torch.equal(plain, recorded)
    expected = reference(pipe, PROMPTS, True, (128, 128), None)
    for word, by_size in expected[0].items():
        torch.testing.assert_close(recorder.maps[0][word][8, 8], by_size[8, 8], rtol=0, atol=1e-5)


# Cost


def test_a_step_of_stable_diffusion_launches_at_most_40_kernels(monkeypatch):
    """The operators that compute, of the recorded run without those of the plain one."""
    monkeypatch.setattr(module, "CPU_CHUNK", module.CHUNK)
    torch.manual_seed(0)
    down, up = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=(down, down, down, "DownBlock2D"),
        up_block_types=("UpBlock2D", up, up, up),
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        layers_per_block=2,
        attention_head_dim=2,
        cross_attention_dim=16,
    ).to(torch.bfloat16)
    pipe = SimpleNamespace(unet=unet)
    assert len(layout_of(pipe).layers) == 16
    latents, text = torch.randn(2, 4, 16, 16), torch.randn(2, 77, 16)

    @torch.no_grad()
    def plain():
        unet(latents.bfloat16(), 1, text.bfloat16())

    def recorded():
        with AttentionRecorder(pipe, [{"dog": (3, 4), "cat": (9,)}]):
            plain()

    views = set(
        "empty empty_strided new_empty to lift_fresh expand as_strided slice narrow transpose t view reshape"
        " alias select flatten unflatten resolve_conj detach _to_copy softmax _unsafe_view unsqueeze".split()
    )

    def kernels(run) -> list[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            run()
        names = [event.name.removeprefix("aten::") for event in profile.events() if "aten::" in event.name]
        return [name for name in names if name not in views]

    plain()
    more = len(kernels(recorded)) - len(kernels(plain))
    assert 0 < more <= 40
    assert not {"item", "_local_scalar_dense", "nonzero"} & set(kernels(recorded))


# What cannot be recorded


def test_joint_attention_is_not_for_cross_attention(family):
    for kind in ("sd_turbo", "pixart", "sana"):
        pipe = family(kind)
        with pytest.raises(ValueError, match=r"over='joint' is for joint attention: .*cross-attention"):
            AttentionRecorder(pipe, spans_of(pipe), over="joint")


def test_an_unknown_kind_is_refused():
    class NewTransformer(nn.Module):
        pass

    pipe = SimpleNamespace(transformer=NewTransformer())
    with pytest.raises(
        ValueError, match=r"NewTransformer is of no known kind .*give AttentionRecorder a layout"
    ):
        AttentionRecorder(pipe, [{}])


def test_decoders_without_words_are_refused():
    class KandinskyV22Pipeline:
        pass

    with pytest.raises(ValueError, match="attends to the embedding of an image, not to words"):
        AttentionRecorder(KandinskyV22Pipeline(), [{}])


@pytest.mark.parametrize("kind", ["flux", "qwen"])
def test_a_backend_that_hides_attention_is_refused(family, kind, monkeypatch):
    pipe = family(kind)
    module = "qwenimage" if kind == "qwen" else kind
    monkeypatch.setattr(
        f"diffusers.models.transformers.transformer_{module}.dispatch_attention_fn",
        lambda query, *others, **options: torch.zeros_like(query),
    )
    message = r"cannot be seen: flash, sage and flex .*call reset_attention_backend\(\)"
    with pytest.raises(RuntimeError, match=message), AttentionRecorder(pipe, spans_of(pipe)):
        paint(pipe)


def test_a_compiled_model_is_refused(family):
    pipe = copy.deepcopy(family("sd_turbo"))
    pipe.unet.compile()
    recorder = AttentionRecorder(pipe, spans_of(pipe))
    with pytest.raises(ValueError, match=r"the model is compiled \(torch.compile\)"), recorder:
        pass
    pipe.unet = torch.compile(family("sd_turbo").unet)
    with pytest.raises(ValueError, match=r"the model is compiled \(torch.compile\)"):
        AttentionRecorder(pipe, [{}])

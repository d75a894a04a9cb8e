"""The recorder on models whose weights are elsewhere until they are needed, and in other data types."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading

from attn2mask.builders.layouts import layout_of
from attn2mask.builders.recorder import AttentionRecorder

PROMPT = "a photo of a dog and a cat"


def paint(pipe):
    name = type(pipe).__name__
    options = {"clean_caption": False, "use_resolution_binning": False} if name.startswith("PixArt") else {}
    return pipe(
        [PROMPT],
        num_inference_steps=2,
        height=128,
        width=128,
        generator=[torch.Generator().manual_seed(0)],
        output_type="latent",
        **options,
    ).images


def record(pipe):
    spans = {
        stretch.name: stretch.spans(PROMPT, [(13, 16)])[0][0] for stretch in layout_of(pipe).stretches(pipe)
    }
    with AttentionRecorder(pipe, [spans], layers="all") as recorder:
        images = paint(pipe)
    return images, recorder.maps[0]


def sequential(denoiser):
    cpu_offload(denoiser, torch.device("cpu"), offload_buffers=True)


def group(denoiser):
    cpu = torch.device("cpu")
    apply_group_offloading(denoiser, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


@pytest.mark.parametrize("offload", [sequential, group])
@pytest.mark.parametrize("kind", ["sd_turbo", "sd3", "flux"])
def test_offloaded_models_are_recorded(family, kind, offload):
    """The hooks of accelerate and diffusers, which bring the weights of each layer when it runs."""
    pipe = copy.deepcopy(family(kind))
    expected_images, expected = record(pipe)
    offload(layout_of(pipe).denoiser)
    images, maps = record(pipe)
    assert torch.equal(images, expected_images)
    for name, by_size in expected.items():
        for size, values in by_size.items():
            torch.testing.assert_close(maps[name][size], values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["sd_turbo", "sd3", "flux", "pixart", "zimage"])
def test_half_precision_is_recorded(family, kind, dtype):
    """Images are bit-identical, and the maps are those of float32 within the precision of the type."""
    full, exact = record(family(kind))
    pipe = copy.deepcopy(family(kind)).to(dtype)
    plain = paint(pipe)
    images, maps = record(pipe)
    assert torch.equal(plain, images)
    assert images.dtype == plain.dtype
    assert full.shape == images.shape
    for name, by_size in exact.items():
        for size, values in by_size.items():
            assert maps[name][size].dtype == torch.float32
            error = (maps[name][size] - values).abs().max() / values.max()
            assert error < (0.02 if dtype == torch.float16 else 0.15)

"""The logits of networks: image processors, windows, scales, mirrors, and the CRF at test time."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from segmenters import Segmenter, examples, processor
from torch import nn

from attn2mask.builders import images
from attn2mask.training import inference
from attn2mask.training.checkpoint import make_processor
from attn2mask.training.inference import Augmentation


def predict(networks, processor, image: np.ndarray, **augmentation) -> list[torch.Tensor]:
    """The logits (C, H, W) of each network and of the mean of two, at the size of the image."""
    for network in networks:
        network.eval()
    with torch.no_grad():
        pixels = inference.pixels_of(processor, image)
        found = inference.logits_of(networks, pixels, Augmentation(**augmentation))
    return [F.interpolate(logits, image.shape[:2], mode="bilinear")[0] for logits in found]


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("size", [None, (64, 48)])
def test_logits_have_the_size_of_the_image(size, stride):
    image = examples(1)[0].image
    networks = [Segmenter(0, stride=stride), Segmenter(1, stride=stride)]
    found = predict(networks, processor(size), image)
    *single, both = found
    torch.testing.assert_close(both, sum(single) / 2)
    for network, logits in zip(networks, single, strict=True):
        pixels = processor(size)(Image.fromarray(image), "pt")["pixel_values"]
        with torch.no_grad():
            expected = F.interpolate(network.eval()(pixels).logits, image.shape[:2], mode="bilinear")[0]
        assert logits.shape == (21, *image.shape[:2])
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected)


def test_windows_and_mirrors_do_not_change_what_depends_on_color_alone():
    image, network = np.random.default_rng(0).integers(0, 256, (75, 131, 3), np.uint8), Segmenter(0)
    (plain,) = predict([network], processor(), image)
    (through,) = predict([network], processor(), image, window=40, flip=True)
    torch.testing.assert_close(through, plain)
    sizes = network.calls[1:]
    assert set(sizes) == {(40, 40)}
    assert len(sizes) == 2 * 3 * 5  # mirrored or not; at least a third of each window overlaps the next
    (whole,) = predict([network], processor(), image, window=200)
    torch.testing.assert_close(whole, plain)
    assert network.calls[-1] == (75, 131)


def test_a_window_wider_than_the_image_is_high_slides_along_its_width():
    network = Segmenter(0)
    predict([network], processor(), np.zeros((40, 100, 3), np.uint8), window=64)
    assert network.calls == [(40, 64)] * 2


def test_a_narrow_image_is_not_enlarged_without_limit():
    """20,000 x 1 pixels, whose shorter side the image processor resizes to 32 pixels."""
    network = Segmenter(0)
    (logits,) = predict([network], make_processor(32), np.zeros((1, 20_000, 3), np.uint8))
    assert network.calls == [(32, inference.LONGEST)]
    assert logits.shape == (21, 1, 20_000)
    predict([network], make_processor(32), np.zeros((20_000, 1, 3), np.uint8))
    predict([network], make_processor(32), np.zeros((64, 128, 3), np.uint8))
    assert network.calls[1:] == [(inference.LONGEST, 32), (32, 64)]


@pytest.mark.parametrize(
    ("length", "window"), [(100, 100), (101, 100), (150, 100), (1024, 769), (2048, 769), (97, 33)]
)
def test_windows_cover_everything_and_overlap(length, window):
    for overlap in (0.0, inference.OVERLAP, 0.5):
        starts = inference.window_starts(length, window, overlap)
        assert starts[0] == 0
        assert starts[-1] == length - window
        steps = [b - a for a, b in itertools.pairwise(starts)]
        assert all(step == round(window * (1 - overlap)) for step in steps[:-1])
        assert all(0 < step <= round(window * (1 - overlap)) for step in steps[-1:])


def test_a_mirrored_view_is_mirrored_back():
    class Ramp(nn.Module):
        def forward(self, pixel_values):
            return SimpleNamespace(logits=torch.arange(40.0).expand(1, 2, 40, 40) * pixel_values.mean())

    (logits,) = predict([Ramp()], processor(), np.full((40, 40, 3), 255, np.uint8), flip=True)
    ramp = torch.arange(40.0)
    torch.testing.assert_close(logits, torch.maximum(ramp, ramp.flip(0)).expand(2, 40, 40))


def test_the_maximum_over_scales_is_that_of_the_mean_of_the_networks():
    image, networks = examples(1)[0].image, [Segmenter(0), Segmenter(1)]
    pixels = processor()(Image.fromarray(image), "pt")["pixel_values"]
    height, width = image.shape[:2]
    views = []
    for scale in (1.0, 1.5):
        size = (round(height * scale), round(width * scale))
        resized = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        views.append(
            [F.interpolate(net.layer(resized), (height, width), mode="bilinear")[0] for net in networks]
        )
    (a1, b1), (a2, b2) = ([each.detach() for each in view] for view in views)
    found = predict(networks, processor(), image, scales=(1.0, 1.5))
    expected = a1.maximum(a2), b1.maximum(b2), ((a1 + b1) / 2).maximum((a2 + b2) / 2)
    for logits, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, wanted)
    predict(networks[:1], processor(), image, scales=(0.1,))
    assert networks[0].calls[-1] == (32, 32)  # no network takes less


def test_the_crf_at_test_time_is_that_of_pydensecrf():
    """With the constants of BECO's code, whose widths do not grow with the image."""
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 4, 3)).repeat(20, 0).repeat(25, 1).astype(np.uint8)
    image = (image + rng.integers(0, 12, image.shape)).clip(0, 255).astype(np.uint8)
    logits = torch.from_numpy(rng.normal(0, 2, (1, 5, 3, 4))).float()
    logits = F.interpolate(logits, image.shape[:2], mode="bilinear")
    field = densecrf.DenseCRF2D(100, 60, 5)
    unary = -logits[0].softmax(0).clamp(1e-5, 1).log().reshape(5, -1).numpy()
    field.setUnaryEnergy(np.ascontiguousarray(unary))
    field.addPairwiseGaussian(sxy=1, compat=3)
    field.addPairwiseBilateral(sxy=67, srgb=3, rgbim=np.ascontiguousarray(image), compat=4)
    expected = np.array(field.inference(10)).reshape(5, 60, 100).argmax(0)
    found = inference.refined_ids(inference.LARGEST.probabilities(logits, image), image).numpy()
    assert (found != logits[0].argmax(0).numpy()).any()
    assert (found == expected).mean() > 0.999


def test_labels_of_many_classes_are_found_group_by_group():
    torch.manual_seed(0)
    logits = torch.randn(1, 150, 9, 11).round(decimals=1)
    whole = F.interpolate(logits, (33, 47), mode="bilinear")[0]
    labels = inference._ids(logits, (33, 47), at_once=64)
    assert labels.dtype == torch.int32
    assert (whole.gather(0, labels[None].long())[0] == whole.amax(0)).all()


@pytest.mark.parametrize("size", [(40, 31), (31, 40), (1, 999), (999, 1), (333, 3)])
def test_ids_of_large_images_are_made_in_stripes(size, monkeypatch):
    """They are those of the whole image, but for pixels where two logits are equal to rounding."""
    logits = torch.randn((1, 9, 7, 5), generator=torch.Generator().manual_seed(0))
    resized = torch.nn.functional.interpolate(logits, size, mode="bilinear")[0]
    monkeypatch.setattr(inference, "LARGE", 100)
    monkeypatch.setattr(inference, "STRIPE", 300)
    (ids,) = inference.LARGEST(logits, np.zeros((*size, 3), np.uint8))
    assert ids.dtype == torch.int32
    chosen = resized.gather(0, ids[None].long())[0]
    torch.testing.assert_close(chosen, resized.amax(0))


def test_large_images_are_reduced_before_a_network_sees_them(monkeypatch):
    monkeypatch.setattr(images, "LARGE", 50 * 100)
    network = Segmenter(0)
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, 100:] = 255
    ids = inference.segment([network], processor(), image)
    assert network.calls == [(50, 100)]
    assert ids.shape == (100, 200)
    expected = inference.segment([network], processor(), image[:40, 60:140])
    assert network.calls[1:] == [(40, 80)]
    assert ids[0, 0] == expected[0, 0] != expected[0, -1] == ids[-1, -1]

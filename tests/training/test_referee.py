"""The referee that ships judges drawn scenes well, and its interface takes plain arrays."""

import numpy as np
import torch

from attn2mask.training.held_out import referee_accuracy
from attn2mask.training.referee import CLASSES, load_referee, to_tensor


def test_images_become_tensors_in_minus_one_to_one():
    image = np.zeros((1, 2, 3, 3), np.uint8)
    image[0, 0, 1] = (255, 0, 51)
    tensor = to_tensor(image)
    assert tensor.shape == (1, 3, 2, 3)
    torch.testing.assert_close(tensor[0, :, 0, 1], torch.tensor([1.0, -1.0, -0.6]))


def test_a_mask_does_not_depend_on_the_batch():
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8)
    referee = load_referee()
    masks = referee.segment(images, batch_size=2)
    assert masks.shape == (3, 64, 96)
    assert masks.dtype == np.uint8
    assert masks.max() < CLASSES
    single = referee.segment(images[2:])
    assert (masks[2:] != single).mean() < 1e-3  # convolutions of other batches round differently


def test_the_referee_that_ships_knows_drawn_scenes():
    assert 0.6 < referee_accuracy(load_referee(), "objects", 40) <= 1

"""Random changes of images: against the same windows and mirrors, written out."""

import itertools

import pytest
import torch

from bise_prune.tuning.augmentation import AUGMENTATIONS, cropped, flipped


def images(n=40, height=16, width=24):
    return torch.arange(n * 2 * height * width, dtype=torch.float32).view(n, 2, height, width) + 1


def test_a_flip_mirrors_about_half_of_the_images_and_leaves_the_others():
    torch.manual_seed(0)
    before = images(200)
    after = flipped(before)
    mirrored = [torch.equal(new, old.flip(2)) for new, old in zip(after, before, strict=True)]
    same = [torch.equal(new, old) for new, old in zip(after, before, strict=True)]
    assert all(one != other for one, other in zip(mirrored, same, strict=True))
    assert 60 < sum(mirrored) < 140


def test_a_crop_is_a_window_of_the_image_with_an_edge_of_zeros():
    torch.manual_seed(0)
    before = images()
    after, places = cropped(before), set()
    padded = torch.zeros(len(before), 2, 16 + 4, 24 + 6)
    padded[:, :, 2:-2, 3:-3] = before
    for new, old in zip(after, padded, strict=True):
        places_of = itertools.product(range(5), range(7))
        windows = {(y, x) for y, x in places_of if torch.equal(new, old[:, y : y + 16, x : x + 24])}
        assert len(windows) == 1
        places |= windows
    assert len(places) > 15  # each image has its own


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmentation_keeps_shape_and_input(name):
    before = images()
    kept = before.clone()
    assert AUGMENTATIONS[name](before).shape == before.shape and torch.equal(before, kept)

"""Random changes of images that leave their class as it is, for the training of whole networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..config import Augment
from ..errors import ConfigError

Augmentation = Callable[[Tensor], Tensor]

_PADDING = 8  # a crop is moved by at most one pixel in so many


def flipped(images: Tensor) -> Tensor:
    """Mirror each image left to right with a chance of one half.

    Args:
        images: shape (N, channels, H, W).
    """
    return torch.where(torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5, images.flip(3), images)


def cropped(images: Tensor) -> Tensor:
    """Move each image by up to an eighth of its height and width; what comes in at the edges is 0.

    Args:
        images: shape (N, channels, H, W).
    """
    height, width = images.shape[2:]
    above, left = height // _PADDING, width // _PADDING
    padded = pad(images, (left, left, above, above))
    rows = torch.randint(2 * above + 1, (len(images), 1, 1, 1), device=images.device)
    columns = torch.randint(2 * left + 1, (len(images), 1, 1, 1), device=images.device)
    rows = rows + torch.arange(height, device=images.device)[:, None]
    columns = columns + torch.arange(width, device=images.device)
    samples = torch.arange(len(images), device=images.device)[:, None, None, None]
    channels = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return padded[samples, channels, rows, columns]


AUGMENTATIONS: Mapping[str, Augmentation] = {
    "flip": flipped,
    "crop": cropped,
    "crop-flip": lambda images: flipped(cropped(images)),
}


def augmentation(name: Augment, inputs: object) -> Augmentation | None:
    """The random change of images that a setting names; with "auto", crops of images and nothing else.

    Args:
        name: the setting; see :class:`bise_prune.FinetuneConfig`.
        inputs: inputs of some samples.

    Raises:
        ConfigError: the inputs are no images.
    """
    are_images = isinstance(inputs, Tensor) and inputs.ndim == 4
    if name == "none" or (name == "auto" and not are_images):
        return None
    if not are_images:
        raise ConfigError(f"finetune_augment '{name}' changes images, and the inputs are none: use auto or none")
    return AUGMENTATIONS["crop" if name == "auto" else name]

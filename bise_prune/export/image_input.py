"""A wrapper that lets a classifier take images as cameras and browsers give them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..tracing import logits_of


class AsImages(nn.Module):
    """A classifier of raw images: takes uint8 (N, H, W, C), normalises it, and returns probabilities (N, classes).

    Args:
        model: classifier of normalised images, float32 (N, C, H, W).
        mean: mean of each channel on the [0, 1] scale; empty for 0.
        std: standard deviation of each channel on the [0, 1] scale; empty for 1.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(list(mean) or [0.0]).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std) or [1.0]).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities (N, classes) of images (N, H, W, C), uint8."""
        pixels = image.permute(0, 3, 1, 2).float() / 255
        return logits_of(self.model((pixels - self.mean) / self.std)).softmax(1)

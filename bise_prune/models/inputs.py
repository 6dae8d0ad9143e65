"""What a network takes as its input, as its layers show it."""

from __future__ import annotations

from torch import nn

_COLOURS = 3


def input_channels(model: nn.Module) -> int:
    """Number of channels of the images that a network takes: that of its first 2d convolution, or 3 without one."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return _COLOURS if first is None else first.in_channels

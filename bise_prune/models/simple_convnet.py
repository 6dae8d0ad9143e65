"""SimpleConvNet, the network of the paper's BiasedMNIST experiments (Bahng et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import ConfigError

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


class SimpleConvNet(nn.Module):
    """Blocks of convolution, batch norm and activation, global average pooling, and a linear head.

    The paper's: four 7x7 blocks of 16, 32, 64 and 128 channels, stride 1, convolutions with additive bias; the code
    behind its tables ends in tanh instead of ReLU. 531,210 parameters for 3 input channels and 10 classes.

    Args:
        num_classes: C.
        in_channels: channels of the image.
        widths: channels per block.
        kernel_size: odd; padded so that stride 1 keeps the size.
        strides: per block; 1 everywhere if not given.
        last_activation: "relu" or "tanh", of the last block; the others are ReLU.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128),
        kernel_size: int = 7,
        strides: Sequence[int] | None = None,
        last_activation: str = "tanh",
    ) -> None:
        super().__init__()
        if last_activation not in _ACTIVATIONS:
            raise ConfigError(f"unknown last_activation '{last_activation}': choose one of {', '.join(_ACTIVATIONS)}")
        strides = strides or [1] * len(widths)
        blocks, previous = [], in_channels
        for i, (width, stride) in enumerate(zip(widths, strides, strict=True)):
            activation = _ACTIVATIONS[last_activation if i == len(widths) - 1 else "relu"]
            convolution = nn.Conv2d(previous, width, kernel_size, stride=stride, padding=kernel_size // 2)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(width), activation()))
            previous = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(previous, num_classes)

    def forward(self, input: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        return self.head(self.pool(self.blocks(input)).flatten(1))  # type: ignore[no-any-return]

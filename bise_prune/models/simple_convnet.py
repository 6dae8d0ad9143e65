"""SimpleConvNet, the network of the paper's BiasedMNIST experiments (Bahng et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import ConfigError

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


class SimpleConvNet(nn.Module):
    """Blocks of convolution, batch norm and activation, then global average pooling and a linear classifier head.

    The paper's network has four 7x7 blocks of 16, 32, 64 and 128 channels with stride 1, and convolutions with additive
    bias; in the code behind the paper's tables, the last activation is tanh instead of ReLU. It has 531,210 parameters
    for 3 input channels and 10 classes.

    Args:
        num_classes: number of classes C.
        in_channels: number of channels of the image.
        widths: number of channels of each block.
        kernel_size: side of the kernels, odd; padding keeps the size at stride 1.
        strides: stride of each block; None = 1 everywhere.
        last_activation: activation of the last block, "relu" or "tanh"; the other blocks have ReLU.

    Raises:
        ConfigError: ``last_activation`` is unknown.
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
        """Compute logits (N, num_classes) from images (N, in_channels, H, W)."""
        return self.head(self.pool(self.blocks(input)).flatten(1))  # type: ignore[no-any-return]

"""ResNet-20 for 32x32 images (He et al., 2016, Sec. 4.2) that begins as one with shortcuts of option A."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from bise_prune.errors import DataError

_SHORTCUT = "shortcut.weight"


class _Block(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if width != width_in:  # option A: every other pixel, and channels of zeros on both sides
            self.shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False)
            padding = (width - width_in) // 2
            rows = torch.cat([torch.zeros(padding, width_in), torch.eye(width_in), torch.zeros(padding, width_in)])
            with torch.no_grad():
                self.shortcut.weight.copy_(rows[:, :, None, None])

    def forward(self, input: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(input)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(input))


class ResNet20(nn.Module):
    """Three stages of three blocks, 16, 32 and 64 channels.

    Where a stage begins, the shortcut is a 1x1 convolution that starts as option A's copy of the channels: the same
    function, in a form that pruning tools can follow.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(_Block(a, b, 1 if a == b else 2), _Block(b, b, 1), _Block(b, b, 1))
            for a, b in itertools.pairwise(widths)
        )
        self.linear = nn.Linear(widths[-1], num_classes)

    @classmethod
    def pretrained(cls, path: Path) -> ResNet20:
        """With the weights of a ResNet-20 with option A in a safetensors file."""
        if not path.is_file():
            raise DataError(f"no weights of ResNet-20 at {path}")
        network = cls()
        missing, unexpected = network.load_state_dict(load_file(path), strict=False)
        missing = [name for name in missing if not name.endswith((_SHORTCUT, "num_batches_tracked"))]
        if missing or unexpected:
            raise DataError(f"{path} holds no ResNet-20: {', '.join([*missing, *unexpected][:3])}")
        return network

    def forward(self, input: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, 3, 32, 32)."""
        hidden = F.relu(self.bn1(self.conv1(input)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        return self.linear(F.adaptive_avg_pool2d(hidden, 1).flatten(1))

"""Small networks of the zoo that no library builds at this size; named ``zoo_networks:FACTORY`` as architectures."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VGG
from torchvision.models.vgg import make_layers


class CifarResNet(nn.Module):
    """The CIFAR ResNet of He et al. (2016) with 6n + 2 layers, whose shortcuts are padded with zeros (option A)."""

    def __init__(self, num_classes: int = 10, *, blocks: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _layer(16, 16, blocks, 1)
        self.layer2 = _layer(16, 32, blocks, 2)
        self.layer3 = _layer(32, 64, blocks, 2)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, input: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(input)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class _Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs

    def forward(self, input: Tensor) -> Tensor:
        """The block's output, before it is read by the next block."""
        x = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(input)))))
        shortcut = input
        if self.more:
            pad = (0, 0, 0, 0, self.more // 2, self.more // 2)
            shortcut = F.pad(input[:, :, :: self.stride, :: self.stride], pad)
        return F.relu(x + shortcut)


def _layer(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    """Blocks of one resolution."""
    first = _Block(inputs, outputs, stride)
    return nn.Sequential(first, *(_Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def small_vgg(num_classes: int = 10) -> nn.Module:
    """A VGG with batch norm and eight convolutions, whose classifier is one linear layer on averaged features."""
    features = make_layers([32, 32, "M", 64, 64, "M", 128, 128, "M", 256, 256], batch_norm=True)
    network = VGG(features, num_classes=num_classes, init_weights=False)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(256, num_classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            torch.nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return network

"""Tiny networks and data that the tests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bise_prune import MaskSet, gate_sites
from bise_prune.data import BatchLoader, BiasedDataset
from bise_prune.models import build_model
from bise_prune.models.mlp import MLP
from bise_prune.models.simple_convnet import SimpleConvNet


class Block(nn.Module):
    """A residual block whose one ReLU module runs twice, in place."""

    def __init__(self, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.shortcut is None else self.shortcut(x)
        return self.relu(out)


class TinyResNet(nn.Module):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(Block(6, 6), Block(6, 6), Block(6, 10, 2), Block(10, 10))
        self.head = nn.Linear(10, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Functional(nn.Module):
    """Activations as functions, a flatten with several entries per channel, and no activation modules."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.b = nn.Conv2d(5, 4, 3, stride=2, padding=1)
        self.c = nn.Linear(4 * 16, 9)
        self.head = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.silu(self.norm(self.a(x))), 1)
        x = torch.flatten(torch.relu(self.b(x)), 1)
        return self.head(self.c(x).tanh())


class Separable(nn.Module):
    """Depthwise convolution and squeeze-and-excite, with a residual add around them."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.Hardswish())
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.project = nn.Sequential(nn.Conv2d(8, 3, 1), nn.BatchNorm2d(3))
        self.last = nn.Sequential(nn.Conv2d(3, 7, 1), nn.GELU())
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.depthwise(self.expand(x))
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(h, 1)))))
        h = x + self.project(h * scale)
        return self.head(self.last(h).mean((2, 3)))


class Concatenating(nn.Module):
    """Two branches joined by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.LeakyReLU())
        self.join = nn.Sequential(nn.Conv2d(10, 5, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.join(torch.cat([self.left(x), self.right(x)], 1)).mean((2, 3)))


class TokenMixer(nn.Module):
    """A transformer's feed-forward block: channels last, LayerNorm on the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 8)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2).reshape(len(x), -1, 12))
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1))


class Net(nn.Module):
    """Layers and a function of them and the inputs: a network with one awkward thing."""

    def __init__(self, forward: Callable[..., object], **layers: object) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: Tensor) -> object:
        return self.run(self, *inputs)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "simple_convnet": lambda: SimpleConvNet(3, widths=(4, 6, 8), kernel_size=3),
    "mlp": lambda: MLP(3, in_features=3 * 64, hidden=(12, 10, 8)),
    "resnet": TinyResNet,
    "functional": Functional,
    "separable": Separable,
    "concatenating": Concatenating,
    "token_mixer": TokenMixer,
}


def network(name: str, seed: int = 0) -> nn.Module:
    """A tiny network in eval mode whose batch norms do something."""
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    randomise(model, seed)
    return model.eval()


def torchvision_network(name: str, num_classes: int = 7, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model(name, num_classes)
    randomise(model, seed)
    return model.eval()


def randomise(model: nn.Module, seed: int) -> None:
    """Random statistics and affine parameters: the default zeros hide every error with constants."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(generator=generator)


def images(n: int = 2, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def random_masks(model: nn.Module, inputs: Tensor, placement: str, seed: int = 0) -> MaskSet:
    generator = torch.Generator().manual_seed(seed)
    sites = gate_sites(model, inputs, placement)
    return MaskSet({site.name: torch.randn(site.num_channels, generator=generator) for site in sites})


def biased_data(n: int = 120, classes: int = 3, rho: float = 0.8, seed: int = 0, biases: int = 1) -> BiasedDataset:
    """Random images whose mean shifts with the label and, more strongly, with the bias."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(n) % classes
    columns = []
    for _ in range(biases):
        other = (target + torch.randint(1, classes, (n,), generator=generator)) % classes
        columns.append(torch.where(torch.rand(n, generator=generator) < rho, target, other))
    bias = torch.stack(columns, 1)
    inputs = torch.randn(n, 3, 8, 8, generator=generator)
    inputs[:, 0] += target[:, None, None]
    inputs[:, 1] += 2 * bias[:, 0, None, None]
    return BiasedDataset(inputs, target, bias)


def biased_loader(batch_size: int = 20, **options: int | float) -> BatchLoader:
    return BatchLoader(biased_data(**options), batch_size)


SHORT = dict(anneal_every=2, min_temperature=0.2, head_epochs=3)


def share_masks(model, inputs, share, placement="paper", seed=0):
    generator = torch.Generator().manual_seed(seed)
    sites = gate_sites(model, inputs, placement)
    return MaskSet({site.name: torch.rand(site.num_channels, generator=generator) - share for site in sites})


def same_masks(first, second):
    return all(torch.equal(first.logits[name], second.logits[name]) for name in first.logits)


def batches_of(size, sample):
    """Those batches of a search's balanced sample that have one size."""
    return sample._replace(
        parts=[rows for rows in sample.parts if len(rows) == size],
        numbers=[rows for rows in sample.numbers if len(rows) == size],
    )


def in_double(data):
    return BiasedDataset(data.inputs.double(), data.target, data.bias)


def slow(*values):
    """Parameters of a test that are left to the slow run."""
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in values]

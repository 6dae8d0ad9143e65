"""Networks drawn from a seed: residual streams, with norms over groups, over all channels, and means over channels."""

import random

import torch
import torch.nn.functional as F
from torch import nn

NORMS = ["none", "batch", "group", "group", "layer", "layer", "root mean square", "by hand", "response", "direction"]


class Norm(nn.Module):
    """A norm of one kind, of tensors (N, channels, height, width)."""

    def __init__(self, draw, width):
        super().__init__()
        self.kind, self.eps = draw.choice(NORMS), draw.choice([1e-5, 0.1])
        self.gain, self.shift = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))
        groups = draw.choice([n for n in (2, 3, 4, 6) if width % n == 0])
        self.inner = {
            "batch": nn.BatchNorm2d(width),
            "group": nn.GroupNorm(groups, width, affine=draw.random() < 0.7),
        }.get(self.kind)
        if self.kind == "layer":
            self.inner = nn.LayerNorm(width, elementwise_affine=draw.random() < 0.7)
        if self.kind == "root mean square":
            self.inner = nn.RMSNorm(width, eps=draw.choice([None, 0.1]))
        self.is_literal, self.groups, self.width = draw.random() < 0.3, groups, width

    def forward(self, x):
        last = x.movedim(1, -1)
        if self.kind == "group" and self.is_literal:
            return F.group_norm(x, self.groups, self.gain, self.shift)
        if self.kind == "layer" and self.is_literal:
            return F.layer_norm(last, (self.width,), self.gain, self.shift).movedim(-1, 1)
        if self.kind in ("layer", "root mean square"):
            return self.inner(last).movedim(-1, 1)
        if self.kind == "by hand":
            y = last * torch.rsqrt(last.pow(2).mean(-1, keepdim=True) + self.eps)
            return (self.gain * y).movedim(-1, 1)
        if self.kind == "response":
            size = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
            y = x * (size / (size.mean(1, keepdim=True) + self.eps))
            return torch.addcmul(self.shift.view(1, -1, 1, 1), self.gain.view(1, -1, 1, 1), y) + x
        if self.kind == "direction":
            return F.normalize(x, dim=1)
        return x if self.inner is None else self.inner(x)


class Block(nn.Module):
    """A residual block."""

    def __init__(self, draw, width):
        super().__init__()
        inner = draw.choice([6, 12])
        self.before, self.inside, self.behind = Norm(draw, width), Norm(draw, inner), Norm(draw, width)
        self.first = nn.Conv2d(width, inner, draw.choice([1, 3]), padding="same")
        self.second = nn.Conv2d(inner, width, 1)
        self.act = draw.choice([torch.relu, F.silu, F.gelu, torch.sigmoid])
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width) if draw.random() < 0.3 else nn.Identity()
        self.norm_first = draw.random() < 0.5
        self.scale = nn.Parameter(torch.rand(width, 1, 1)) if draw.random() < 0.3 else 1.0
        self.is_residual = draw.random() < 0.8

    def forward(self, x):
        y = self.before(self.depthwise(x))
        y = self.act(self.inside(self.first(y))) if self.norm_first else self.inside(self.act(self.first(y)))
        y = self.second(y) * self.scale
        return self.behind(x + y) if self.is_residual else self.behind(y)


class NormedNetwork(nn.Module):
    """A network drawn from a seed, on images (N, 3, height, width), or on words (N, up to 9) of 11."""

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        width = draw.choice([12, 24])
        self.reads = draw.choice(["images", "images", "words"])
        self.stem = nn.Embedding(11, width) if self.reads == "words" else nn.Conv2d(3, width, 3, padding=1)
        self.places = nn.Parameter(torch.randn(1, width, 1, 1)) if draw.random() < 0.4 else None
        self.blocks = nn.Sequential(*(Block(draw, width) for _ in range(draw.randint(1, 3))))
        self.last = nn.LayerNorm(width) if draw.random() < 0.5 else nn.Identity()
        self.gates_by_mean = draw.random() < 0.2
        self.head = nn.Linear(width, 3)
        for parameter in self.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, 0.3, 0.5)

    def forward(self, x):
        x = self.stem(x).transpose(1, 2)[..., None] if self.reads == "words" else self.stem(x)
        x = x if self.places is None else x + self.places
        x = self.blocks(x)
        x = x * torch.sigmoid(x.mean(1, keepdim=True)) if self.gates_by_mean else x
        return self.head(self.last(x.mean((2, 3))))

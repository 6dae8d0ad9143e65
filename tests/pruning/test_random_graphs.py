"""The slim network equals the masked one on random graphs."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from awkward import masks_for
from cases import randomise, slow
from torch import nn

from bise_prune import apply_masks, fuse_batchnorm, prune
from bise_prune.errors import PruningError

ACTIVATIONS = [torch.relu, F.silu, F.gelu, torch.tanh, F.hardswish, torch.sigmoid, F.softplus, F.leaky_relu]


class RandomGraph(nn.Module):
    """A network drawn from a seed: a list of steps, each reading values made before."""

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        self.layers = nn.ModuleList()
        self.steps = []
        widths = [3]
        shared = {}
        for _ in range(draw.randint(4, 11)):
            kind = draw.choice(
                ["conv"] * 4 + ["norm", "act", "act", "act", "add", "add", "cat", "mul", "depthwise", "grouped"]
                + ["shuffle", "chunk", "excite", "shared", "scale", "prelu", "transposed", "group_norm", "last", "pad"]
            )  # fmt: skip
            source = len(widths) - 1 if draw.random() < 0.7 else draw.randrange(len(widths))
            width = widths[source]
            step = None
            if kind == "conv":
                out, kernel = draw.choice([4, 6, 8]), draw.choice([1, 3])
                mode = draw.choice(["zeros", "zeros", "reflect", "circular"])
                pad = kernel // 2
                layer = nn.Conv2d(width, out, kernel, padding=pad, padding_mode=mode, bias=draw.random() < 0.5)
                step = ("layer", source, self._add(layer), out)
            elif kind == "transposed":
                out = draw.choice([4, 6])
                step = ("layer", source, self._add(nn.ConvTranspose2d(width, out, 3, padding=1)), out)
            elif kind == "depthwise":
                step = ("layer", source, self._add(nn.Conv2d(width, width, 3, padding=1, groups=width)), width)
            elif kind == "grouped" and width % 2 == 0:
                step = (
                    "layer",
                    source,
                    self._add(nn.Conv2d(width, 2 * draw.choice([2, 3]), 3, padding=1, groups=2)),
                    None,
                )
            elif kind == "norm":
                step = ("layer", source, self._add(nn.BatchNorm2d(width)), width)
            elif kind == "group_norm":
                step = ("layer", source, self._add(nn.GroupNorm(1, width)), width)
            elif kind == "prelu":
                step = ("layer", source, self._add(nn.PReLU(draw.choice([1, width]))), width)
            elif kind == "act":
                step = ("act", source, draw.randrange(len(ACTIVATIONS)), width)
            elif kind in ("add", "mul"):
                others = [i for i, w in enumerate(widths) if w == width and i != source]
                if others:
                    step = (kind, source, draw.choice(others), width)
            elif kind == "cat":
                other = draw.randrange(len(widths))
                if width + widths[other] <= 20:
                    step = ("cat", source, other, width + widths[other])
            elif kind == "shuffle" and width % 2 == 0:
                step = ("shuffle", source, 0, width)
            elif kind == "chunk" and width % 2 == 0:
                step = ("chunk", source, draw.randrange(2), width // 2)
            elif kind == "last":
                step = ("last", source, self._add(nn.Linear(width, 6)), 6)
            elif kind == "pad":
                step = ("pad", source, 0, width)
            elif kind == "excite":
                squeeze = self._add(nn.Linear(width, 4))
                step = ("excite", source, (squeeze, self._add(nn.Linear(4, width))), width)
            elif kind == "scale":
                self.register_parameter(f"scale{len(widths)}", nn.Parameter(torch.randn(width, 1, 1)))
                step = ("scale", source, len(widths), width)
            elif kind == "shared":
                if width not in shared:
                    shared[width] = self._add(nn.Conv2d(width, width, 3, padding=1))
                step = ("layer", source, shared[width], width)
            if step is None:
                continue
            if step[3] is None:
                step = (*step[:3], self.layers[step[2]].out_channels)
            self.steps.append(step)
            widths.append(step[3])
        self.flat = draw.choice([None, None, None, "channels first", "channels last"])
        self.head = nn.Linear(widths[-1] * (36 if self.flat else 1), 3)

    def _add(self, layer):
        self.layers.append(layer)
        return len(self.layers) - 1

    def forward(self, x):
        values = [x]
        for kind, source, extra, _ in self.steps:
            h = values[source]
            if kind == "layer":
                h = self.layers[extra](h)
            elif kind == "act":
                h = ACTIVATIONS[extra](h)
            elif kind == "add":
                h = h + values[extra]
            elif kind == "mul":
                h = h * values[extra]
            elif kind == "cat":
                h = torch.cat([h, values[extra]], 1)
            elif kind == "shuffle":
                b, c, height, width = h.shape
                h = h.view(b, 2, c // 2, height, width).transpose(1, 2).reshape(b, c, height, width)
            elif kind == "chunk":
                h = h.chunk(2, dim=1)[extra]
            elif kind == "last":
                h = self.layers[extra](h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            elif kind == "pad":
                h = F.pad(h, (1, 0, 0, 1))[:, :, :6, :6]
            elif kind == "excite":
                gate = torch.sigmoid(self.layers[extra[1]](F.relu(self.layers[extra[0]](h.mean((2, 3))))))
                h = h * gate[:, :, None, None]
            elif kind == "scale":
                h = h * getattr(self, f"scale{extra}")
            values.append(h)
        h = values[-1]
        if self.flat == "channels last":
            h = h.permute(0, 2, 3, 1)
        return self.head(h.flatten(1) if self.flat else h.mean((2, 3)))


def drawn(seed):
    torch.manual_seed(seed)
    model = RandomGraph(seed)
    randomise(model, seed)
    return model.eval().double()


def check(seed, joins, share):
    model = drawn(seed)
    inputs = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    try:
        masks = masks_for(model, inputs, "paper", seed, share)
    except Exception as error:
        return str(error)
    try:
        result = prune(model, masks, inputs, joins=joins)
    except PruningError as error:
        assert "a dead network" in str(error)
        return "dead"
    masked = apply_masks(model, masks, inputs)
    other = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        for batch in (inputs, other):
            expected = masked(batch)
            error = (expected - result.model(batch)).abs().max() / expected.abs().max().clamp(min=1)
            assert error < 1e-10, f"seed {seed}"
            fused = fuse_batchnorm(copy.deepcopy(result.model), inputs)
            assert (expected - fused(batch)).abs().max() / expected.abs().max().clamp(min=1) < 1e-10
    params = sum(parameter.numel() for parameter in result.model.parameters())
    assert params == result.plan.params[1]
    return "exact"


@pytest.mark.parametrize("joins", ["intersection", "expand"])
@pytest.mark.parametrize("start", [0, 10, *slow(20, 30, 40, 50)])
def test_random_graphs_are_pruned_exactly(start, joins):
    outcomes = [check(seed, joins, share) for seed in range(start, start + 10) for share in (0.3, 0.7)]
    assert outcomes.count("exact") >= 8, outcomes

"""Activations that are written out have one gate, on what they return, and closed channels are removed exactly."""

import math

import pytest
import torch
from awkward import masks_for
from torch import nn
from torch.nn import functional as F

from bise_prune import apply_masks, gate_sites, prune

WRITTEN = {
    "quick GELU": lambda x: x * torch.sigmoid(1.702 * x),
    "SiLU": lambda x: x * torch.sigmoid(x),
    "SiLU, the other way round": lambda x: x.sigmoid().mul(x),
    "GELU by erf": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "GELU by tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3)))),
    "Mish": lambda x: x * torch.tanh(F.softplus(x)),
    "Mish by logarithm": lambda x: x * torch.tanh(torch.log1p(torch.exp(x))),
    "hard swish": lambda x: x * F.relu6(x + 3) / 6,
    "ReLU by maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "ReLU by clamp": lambda x: x.clamp(min=0),
    "ReLU6 by clamp": lambda x: torch.clamp(x, 0, 6),
    "leaky ReLU by where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "leaky ReLU by max": lambda x: torch.max(x, 0.2 * x),
    "ELU by where": lambda x: torch.where(x >= 0, x, torch.exp(x) - 1),
    "softsign": lambda x: x / (1 + x.abs()),
    "SiLU by division": lambda x: x / (1 + torch.exp(-x)),
    "leaky ReLU by the method": lambda x: x.where(x > 0, 0.1 * x),
    "leaky ReLU by a negated condition": lambda x: torch.where(~(x > 0), 0.1 * x, x),
    "ReLU by a mask": lambda x: (x > 0).to(x.dtype) * x,
    "ReLU6 by clip": lambda x: torch.clip(x, 0, 6),
    "ELU by expm1": lambda x: torch.where(x > 0, x, torch.expm1(x)),
    "hard step": lambda x: x * (x > 0),
    "squared ReLU": lambda x: F.relu(x) ** 2,
}


class Chain(nn.Module):
    """Two layers with the same activation between convolutions."""

    def __init__(self, act):
        super().__init__()
        self.act = act
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.act(self.b(self.act(self.a(x)))).mean((2, 3)))


@pytest.mark.parametrize("placement", ["tied", "paper"])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_written_out_activation_is_gated_as_a_whole(name, placement):
    torch.manual_seed(0)
    model, x = Chain(WRITTEN[name]).eval().double(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    sites = gate_sites(model, x, placement)
    assert {site.name: site.num_channels for site in sites} == {"a": 8, "b": 6}
    masks = masks_for(model, x, placement, 1, 0.5)
    result = prune(model, masks, x, tolerance=1e-12)
    kept = {name: int(mask.sum()) for name, mask in masks.keep.items()}
    slim = getattr(result.model, "model", result.model)
    assert (slim.a.out_channels, slim.b.in_channels, slim.b.out_channels) == (kept["a"], kept["a"], kept["b"])
    expected = WRITTEN[name](model.a(x)) * masks.keep["a"].view(1, -1, 1, 1)
    expected = WRITTEN[name](model.b(expected)) * masks.keep["b"].view(1, -1, 1, 1)
    with torch.no_grad():
        assert torch.allclose(apply_masks(model, masks, x)(x), model.head(expected.mean((2, 3))), rtol=0, atol=1e-12)


class Unit(nn.Module):
    """A gated linear unit in some form."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.first, self.second = nn.Linear(5, 8), nn.Linear(5, 8)
        self.both, self.out, self.head = nn.Linear(5, 16), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        if self.form == "function":
            h = F.glu(self.both(x))
        elif self.form == "chunks":
            first, second = self.both(x).chunk(2, -1)
            h = first * second.sigmoid()
        elif self.form == "layers":
            h = self.first(x) * torch.sigmoid(self.second(x))
        else:
            h = F.silu(self.first(x)) * self.second(x)
        return self.head(F.relu(self.out(h)))


@pytest.mark.parametrize("form", ["function", "chunks", "layers", "SwiGLU"])
def test_both_halves_of_a_gated_unit_are_removed(form):
    torch.manual_seed(0)
    model, x = Unit(form).eval().double(), torch.randn(4, 5, dtype=torch.float64)
    sites = gate_sites(model, x, "tied")
    assert [site.num_channels for site in sites] == [8, 6]
    masks = masks_for(model, x, "tied", 1, 0.5)
    result = prune(model, masks, x, tolerance=1e-12)
    kept = int(masks.keep[sites[0].name].sum())
    slim = getattr(result.model, "model", result.model)
    assert slim.out.in_features == kept
    if form in ("function", "chunks"):
        assert slim.both.out_features == 2 * kept
    else:
        assert slim.first.out_features == slim.second.out_features == kept


def test_a_square_in_a_norm_is_no_activation():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = self.a(x)
            h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
            return self.head(F.relu(h))

    assert [site.calls[0].function for site in gate_sites(Normed(), torch.randn(3, 5), "paper")] == ["relu"]


class Excited(nn.Module):
    """Squeeze-and-excite, whose scale has the shape of what it scales where that is a single place."""

    def __init__(self):
        super().__init__()
        self.a, self.squeeze, self.excite = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        h = F.silu(self.a(x))
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(h, 1)))))
        return self.head((h * scale).mean((2, 3)))


def test_a_scale_of_one_place_is_no_gated_unit():
    places = [[site.name for site in gate_sites(Excited(), torch.randn(2, 3, side, side))] for side in (3, 9)]
    assert places == [["a", "squeeze"]] * 2

"""Closed channels are left out of both directions."""

import pytest
import torch
from cases import SHORT, biased_data, in_double, network
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bise_prune import SearchConfig, search
from bise_prune.data import BatchLoader
from bise_prune.mask_search.speed import skipped_channels as closed


@pytest.mark.parametrize("layer, shape", [
    (nn.Conv2d(9, 7, 3, stride=2, padding=1, dilation=2), (4, 9, 11, 11)),
    (nn.Conv2d(9, 7, (3, 1), padding=(1, 0), bias=False), (4, 9, 6, 5)),
    (nn.Conv1d(9, 7, 5), (4, 9, 12)),
    (nn.Conv3d(9, 7, 3, stride=(1, 2, 1)), (2, 9, 5, 6, 5)),
    (nn.Linear(9, 7), (4, 9)),
    (nn.Linear(9, 7, bias=False), (2, 3, 9)),
])  # fmt: skip
def test_closed_channels_are_left_out_of_both_directions(layer, shape, monkeypatch):
    monkeypatch.setattr(closed, "_LEAST_MACS", 0)
    layer = layer.double().requires_grad_(False)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dim = 1 if isinstance(layer, nn.modules.conv._ConvNd) else -1
    x.index_fill_(dim, torch.tensor([0, 4, 8]), 0.0)
    x[0].zero_()  # a sample that says nothing of the channels
    out = torch.tensor([1.0, 0, 1, 1, 0, 0, 1], dtype=torch.float64)
    weight = torch.randn(layer(x).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight = weight * out.view([-1 if d == dim % weight.ndim else 1 for d in range(weight.ndim)])
    plain, spared = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = layer(plain)
    shapes = []
    with _Counted(shapes), _Sparing():
        found = layer(spared)
        (found * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert torch.allclose(spared.grad, plain.grad, rtol=0, atol=1e-12)
    assert any(6 in shape for shape in shapes) and any(4 in shape for shape in shapes)  # open inputs, open outputs


class _Sparing(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = closed.without_closed_channels(func, args, kwargs or {})
        return func(*args, **(kwargs or {})) if found is None else found


class _Counted(TorchDispatchMode):
    """Notes the shapes of weights that convolutions and products really read."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes = shapes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in ("convolution", "mm", "linear")):
            self.shapes += [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]
        return func(*args, **(kwargs or {}))


def test_a_layer_whose_channels_are_all_closed_is_computed_none_the_less(monkeypatch):
    monkeypatch.setattr(closed, "_LEAST_MACS", 0)
    layer = nn.Conv2d(4, 5, 3, padding=1).requires_grad_(False)
    x = torch.zeros(2, 4, 6, 6, requires_grad=True)
    with _Sparing():
        found = layer(x)
        (found * 0).sum().backward()
    assert torch.equal(found, layer(x)) and torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("name", ["simple_convnet", "resnet", "mlp"])
def test_a_search_that_spares_closed_channels_finds_the_same(name, monkeypatch):
    model = network(name).double()
    loader = BatchLoader(in_double(biased_data(n=60)), 20, shuffle=True)
    plain = search(model, loader, SearchConfig(**SHORT))
    monkeypatch.setattr(closed, "_LEAST_MACS", 0)
    loader = BatchLoader(in_double(biased_data(n=60)), 20, shuffle=True)
    spared = search(model, loader, SearchConfig(**SHORT))
    assert plain.last.num_closed
    for site, logits in plain.last.logits.items():
        assert torch.allclose(spared.last.logits[site], logits, rtol=0, atol=1e-9)

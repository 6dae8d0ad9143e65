"""Batch-norm fusion: fold each norm into the convolution or linear layer that alone feeds it."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from ..tracing import Inputs, trace_channels

_Module = TypeVar("_Module", bound=nn.Module)
_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def fuse_batchnorm(model: _Module, example_inputs: Inputs) -> _Module:
    """A copy of ``model`` in which batch norms are folded into the layers before them, computed in float64.

    W' = W gamma / sqrt(var + eps), b' = (b - mean) gamma / sqrt(var + eps) + beta.

    A norm is folded only if the data flow shows that it reads the output of one layer, which nothing else reads, and
    that both run once; the others stay. Folded norms become ``nn.Identity``.

    Args:
        model: any network; never changed.
        example_inputs: its input(s), batch first.
    """
    trace = trace_channels(model, example_inputs)
    fused = copy.deepcopy(model).eval()
    for layer_name, consumers in trace.consumers.items():
        norm_name = consumers[0].removeprefix("batch_norm:")
        if len(consumers) != 1 or norm_name == consumers[0]:
            continue
        layer, norm = fused.get_submodule(layer_name), fused.get_submodule(norm_name)
        once = trace.calls[layer_name] == 1 and trace.calls.get(norm_name) == 1
        if once and isinstance(layer, _FOLDABLE) and isinstance(norm, nn.modules.batchnorm._BatchNorm):
            _fold(layer, norm)
            fused.set_submodule(norm_name, nn.Identity())
    return fused


def _fold(layer: nn.Module, norm: nn.modules.batchnorm._BatchNorm) -> None:
    assert norm.running_mean is not None and norm.running_var is not None  # by them the trace told the norm's name
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -norm.running_mean.double() * scale
        if isinstance(bias, nn.Parameter):
            shift = shift + bias.double() * scale
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        folded = weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))
        layer.weight = nn.Parameter(folded.to(weight.dtype), requires_grad=weight.requires_grad)
        layer.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)

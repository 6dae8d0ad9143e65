"""Batch-norm fusion: fold each batch norm into the convolution or linear layer before it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from ..channels.edited_model import RewiredModel
from ..tracing import Inputs, Trace, trace

_Module = TypeVar("_Module", bound=nn.Module)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *_TRANSPOSED)


def fuse_batchnorm(model: _Module, example_inputs: Inputs) -> _Module:
    """Return a copy of ``model`` with batch norms folded into the layers before them, computed in float64.

    W' = W gamma / sqrt(var + eps), b' = (b - mean) gamma / sqrt(var + eps) + beta.

    A batch norm is folded only if it reads the output of one convolution or linear layer, nothing else reads that
    output, and both run once; the others stay. Folded batch norms become ``nn.Identity``. The copy is in eval mode.

    Args:
        model: any network; never changed.
        example_inputs: its input(s), batch first.
    """
    record = trace(model, example_inputs)
    fused = copy.deepcopy(model).eval()
    gone = []
    for layer_name, norm_name, count in _foldable(record):
        layer, norm = fused.get_submodule(layer_name), fused.get_submodule(norm_name)
        # A subclass of a batch norm may do more than normalise, e.g. apply an activation: no identity can replace it.
        plain = isinstance(norm, _NORMS) and type(norm) in _NORMS and norm.running_mean is not None
        if isinstance(layer, _FOLDABLE) and isinstance(norm, _NORMS) and plain:
            _fold(layer, norm)
            fused.set_submodule(norm_name, nn.Identity())
            gone.append(count)
    return _renumbered(fused, gone) if isinstance(fused, RewiredModel) else fused  # type: ignore[return-value]


def _foldable(record: Trace) -> Iterable[tuple[str, str, int]]:
    """Yield layer name, batch norm name and call count for each batch norm that alone reads the output of a layer."""
    for call in record.calls:
        operand = call.operands[0] if call.operands else None
        if call.function != "batch_norm" or call.kind != "channelwise" or call.layer is None or operand is None:
            continue
        value = record.values[operand]
        source = record.calls[value.call] if value.call is not None else None
        if source is None or source.layer is None or value.readers != [call.index] or operand in record.outputs:
            continue
        layer = source.layer
        if source.weights is None or source.weights.weight.name != f"{layer}.weight" or source.weights.weight.steps:
            continue
        own = {f"{name}.{leaf}" for name in (layer, call.layer) for leaf in ("weight", "bias", "running_mean")}
        if len(record.calls_of(layer)) == len(record.calls_of(call.layer)) == 1 and not own & record.rigid:
            yield layer, call.layer, call.count


def _fold(layer: nn.Module, norm: nn.modules.batchnorm._BatchNorm) -> None:
    """Fold a batch norm into the weights and the additive bias of a layer, in place."""
    assert norm.running_mean is not None and norm.running_var is not None
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
        wide = weight.double()
        if isinstance(layer, _TRANSPOSED):  # (inputs, outputs per group, ...)
            groups = wide.unflatten(0, (layer.groups, -1))
            folded = (groups * scale.view(layer.groups, 1, -1, *[1] * (weight.ndim - 2))).flatten(0, 1)
        else:
            folded = wide * scale.view(-1, *[1] * (weight.ndim - 1))
        layer.weight = nn.Parameter(folded.to(weight.dtype), requires_grad=weight.requires_grad)
        layer.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)


def _renumbered(model: RewiredModel, gone: list[int]) -> RewiredModel:
    """Return the network with its edits renumbered, since folded batch norms are no longer called."""
    edits = []
    for edit in model.edits:
        before = sum(count < edit.count for count in gone) if edit.function == "batch_norm" else 0
        edits.append(replace(edit, count=edit.count - before))
    dtype = next(model.model.parameters()).dtype
    totals = {name: total - (len(gone) if name == "batch_norm" else 0) for name, total in model.totals.items()}
    rewired = RewiredModel(model.model, edits, totals, model.as_exported)
    rewired.rewirings.to(dtype)
    return rewired

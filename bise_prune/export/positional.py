"""Prepares models and inputs for exporters: positional inputs, float32, on the CPU, and two samples."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..tracing import ByPosition, Inputs
from .denormals import flush_denormals


def positional(model: nn.Module, example_inputs: Inputs, function: str) -> tuple[ByPosition, tuple[Tensor, ...]]:
    """A copy of the model that takes positional inputs, whatever its signature, and its example inputs in that order.

    Args:
        model: network in any mode; it is not changed. The copy is in float32, in eval mode and on the CPU.
        example_inputs: a tensor, a tuple of tensors or a mapping to tensors.
        function: name of the calling function, for the error message.

    Raises:
        ConfigError: the inputs are not tensors.
    """
    names = list(example_inputs) if isinstance(example_inputs, Mapping) else None
    values = example_inputs.values() if isinstance(example_inputs, Mapping) else example_inputs
    inputs = (values,) if isinstance(values, Tensor) else tuple(values)
    if not all(isinstance(value, Tensor) for value in inputs):
        raise ConfigError(f"{function} takes a tensor, a tuple of tensors or a mapping to tensors as example_inputs")
    module = copy.deepcopy(model).cpu().float().eval()
    flush_denormals(module)
    return ByPosition(module, names), inputs


def dynamic_shapes(model: ByPosition, samples: tuple[Tensor, ...], length: Any) -> tuple[tuple[dict[int, Any], ...]]:
    """The dimensions that may vary: the batch size, and the length of token sequences."""
    batch = torch.export.Dim("batch")
    is_text = model.names is not None and all(not s.is_floating_point() and s.ndim == 2 for s in samples)
    return (tuple({0: batch, 1: length} if is_text else {0: batch} for _ in samples),)


def sample_of(value: Tensor) -> Tensor:
    """Two samples of a tensor, since exporters fix a batch dimension of one; floating-point numbers become float32."""
    rows = value.detach().cpu()[[0, -1] if len(value) > 1 else [0, 0]]
    return rows.float() if rows.is_floating_point() else rows

"""The one shape of a batch: named fields ``input``, ``target`` and ``bias``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import DataError


class Batch(NamedTuple):
    """One batch.

    Attributes:
        input: model input, batch first.
        target: class labels y, shape (N,), int64.
        bias: bias labels b, shape (N, K), int64: one column per bias.
    """

    input: Tensor
    target: Tensor
    bias: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        return Batch(*(field.to(device, non_blocking=True) for field in self))


class Loader(Protocol):
    """What searches and evaluations iterate over, once per epoch."""

    def __iter__(self) -> Iterator[Any]:
        """Batches with named fields."""
        ...


def as_batch(batch: Any) -> Batch:
    """Read a dict or named tuple with fields ``input``, ``target`` and ``bias`` (shape (N,) or (N, K)).

    Raises:
        DataError: a field is missing, or the lengths differ.
    """
    fields = []
    for name in Batch._fields:
        value = batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)
        if not isinstance(value, Tensor):
            raise DataError(
                f"a batch has no tensor field '{name}': loaders must yield a dict or a named tuple with "
                f"{', '.join(Batch._fields)}, got {type(batch).__name__}"
            )
        fields.append(value)
    inputs, target, bias = fields
    bias = bias[:, None] if bias.ndim == 1 else bias
    if not len(inputs) == len(target) == len(bias) or target.ndim != 1 or bias.ndim != 2:
        raise DataError(
            f"fields of a batch differ: input {tuple(inputs.shape)}, target {tuple(target.shape)}, "
            f"bias {tuple(bias.shape)}; expected N inputs, target (N,) and bias (N,) or (N, K)"
        )
    return Batch(inputs, target.long(), bias.long())

"""The format of a batch: the named fields ``input``, ``target`` and ``bias``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import DataError

Input = Tensor | dict[str, Tensor]


class Batch(NamedTuple):
    """One batch of N samples.

    Attributes:
        input: model input, with the samples in the first dimension; a mapping is passed to the network as keyword
            arguments.
        target: class labels y, shape (N,), int64.
        bias: bias labels b, shape (N, K), int64: one column per bias; K = 0 if bias labels are not known.
    """

    input: Input
    target: Tensor
    bias: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Copy the batch to a device."""
        moved = input_map(self.input, lambda tensor: tensor.to(device, non_blocking=True))
        return Batch(moved, self.target.to(device, non_blocking=True), self.bias.to(device, non_blocking=True))


def input_map(inputs: Input, change: Callable[[Tensor], Tensor]) -> Input:
    """Apply a function to each tensor of a model input, which is a tensor or a mapping of tensors."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    return {name: change(tensor) for name, tensor in inputs.items()}


def input_length(inputs: Input) -> int:
    """Number of samples in a model input."""
    return len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values())))


class Loader(Protocol):
    """Anything that yields the batches of a data set, once per epoch, for searches and evaluations."""

    def __iter__(self) -> Iterator[Any]:
        """Iterate over batches with named fields, see :func:`as_batch`."""
        ...


def as_batch(batch: Any) -> Batch:
    """Convert a mapping or named tuple with the fields ``input``, ``target`` and ``bias`` to a :class:`Batch`.

    Args:
        batch: ``input`` is a tensor or a mapping of tensors, ``target`` has shape (N,) and ``bias`` (N,) or (N, K).

    Raises:
        DataError: a field is missing, or shapes or lengths do not fit.
    """
    fields: list[Any] = []
    for name in Batch._fields:
        value: Any = batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)
        named = name == "input" and isinstance(value, Mapping) and value
        if not isinstance(value, Tensor) and not (named and all(isinstance(t, Tensor) for t in value.values())):
            raise DataError(
                f"a batch has no tensor field '{name}': loaders must yield a dict or a named tuple with "
                f"{', '.join(Batch._fields)}, got {type(batch).__name__}"
            )
        fields.append(value)
    inputs, target, bias = fields
    bias = bias[:, None] if bias.ndim == 1 else bias
    tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs.values())
    are_batched = all(tensor.ndim for tensor in tensors) and target.ndim == 1 and bias.ndim == 2
    if not are_batched or {len(tensor) for tensor in (*tensors, bias)} != {len(target)}:
        shapes = tuple(inputs.shape) if isinstance(inputs, Tensor) else {k: tuple(v.shape) for k, v in inputs.items()}
        raise DataError(
            f"fields of a batch differ: input {shapes}, target {tuple(target.shape)}, "
            f"bias {tuple(bias.shape)}; expected N inputs, target (N,) and bias (N,) or (N, K)"
        )
    return Batch(inputs if isinstance(inputs, Tensor) else dict(inputs), target.long(), bias.long())

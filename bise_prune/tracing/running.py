"""Calling models with any kind of input and reading the tensors of any kind of output."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .functions import tensors_in

UNREPEATABLE = (
    "the network gives other logits for the same inputs when it runs again, in eval mode: take what is random, such as "
    "dropout with training=True, or what counts its calls out of its forward pass"
)
Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]


def run(model: nn.Module, inputs: Inputs) -> Any:
    """Return the output of ``model`` for a tensor, a tuple of positional or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


class ByPosition(nn.Module):
    """A model that takes its arguments by position and returns only the logits, as exporters need it.

    Args:
        model: the model.
        names: names of its keyword arguments, in order; None for a model that is called with positional arguments.
    """

    def __init__(self, model: nn.Module, names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the logits of the model."""
        if self.names is None:
            return logits_of(self.model(*inputs))
        return logits_of(self.model(**dict(zip(self.names, inputs, strict=True))))


def logits_of(output: Any) -> Tensor:
    """Return the logits in a model's output: the tensor itself, its ``logits``, or the first item of a tuple.

    Raises:
        ModelError: the output holds no such tensor.
    """
    if isinstance(output, Mapping):
        output = output.get("logits")
    else:
        output = getattr(output, "logits", output)
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ModelError(f"the model's output holds no logits: got {type(output).__name__}, expected a tensor")
    return output


def output_tensors(output: Any) -> list[Tensor]:
    """Return all tensors in a model's output, the logits first."""
    logits = logits_of(output)
    if not isinstance(output, (Tensor, Mapping, list, tuple)):
        names = [f.name for f in dataclasses.fields(output)] if dataclasses.is_dataclass(output) else vars(output)
        output = [getattr(output, name) for name in names]
    return [logits, *(tensor for tensor in tensors_in([output]) if tensor is not logits)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context manager that puts a model into eval mode, and restores modes and buffers afterwards.

    Observers of quantisation-aware training, for example, change their buffers in eval mode as well.
    """
    training = [module for module in model.modules() if module.training]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not buffer.is_meta]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)

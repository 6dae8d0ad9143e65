"""The classifier head C and its input, the bottleneck z, of a network f = C o E in the paper's terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..tracing import Call, FunctionMode, Trace

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUNCTIONS = {nn.functional.linear, torch.conv1d, torch.conv2d, torch.conv3d}


@dataclass(frozen=True)
class Readout:
    """How the logits are read from the bottleneck: C in the paper's f = C o E.

    Attributes:
        layers: names of the linear or convolutional layers whose output channels are the logits: one, or several whose
            outputs are averaged.
        is_plain: whether the logits are what a single linear layer returns, without pooling, a scale or a softmax.
        is_softmax: whether the network returns probabilities instead of logits.
    """

    layers: tuple[str, ...]
    is_plain: bool
    is_softmax: bool

    def logits(self, output: Tensor) -> Tensor:
        """The logits (N, C) of what the network returns: the logarithm of probabilities, otherwise the same."""
        return output.clamp(min=torch.finfo(output.dtype).tiny).log() if self.is_softmax else output


def readout_of(model: nn.Module, record: Trace) -> Readout:
    """Find how a network reads its logits.

    Args:
        model: the network.
        record: its trace.

    Raises:
        ModelError: the logits are not the channels of linear or convolutional layers that are called once.
    """
    heads = record.heads
    if not heads or not all(_is_own_layer(call, model, record) for call in heads):
        raise ModelError(
            "the network does not end in a linear or convolutional layer called once, so it has no bottleneck to read "
            "the bias from; wrap it so that its last operation is an nn.Linear"
        )
    names = tuple(call.layer for call in heads if call.layer is not None)
    is_alone = len(names) == 1 and isinstance(model.get_submodule(names[0]), nn.Linear)
    return Readout(names, is_alone and heads[0].outputs[0] == record.logits, record.has_softmax)


def _is_own_layer(call: Call, model: nn.Module, record: Trace) -> bool:
    """Whether a call is the only one of a module of a known kind, with the module's own weight as it is."""
    if call.layer is None or call.weights is None or call.weights.weight.steps:
        return False
    owner, _, leaf = call.weights.weight.name.rpartition(".")
    is_own = (owner, leaf) == (call.layer, "weight") and isinstance(model.get_submodule(owner), _LAYERS)
    return is_own and len(record.calls_of(call.layer)) == 1


def head_name(model: nn.Module, record: Trace) -> str:
    """Return the name of the linear layer that returns the logits.

    Args:
        model: the network.
        record: its trace.

    Raises:
        ModelError: the network does not end in a linear layer, or calls that layer more than once.
    """
    readout = readout_of(model, record)
    if not readout.is_plain:
        raise ModelError(
            "the network does not end in a linear layer, but does more with its outputs; wrap it so that its last "
            "operation is an nn.Linear"
        )
    return readout.layers[0]


class CapturedInputs(FunctionMode):
    """Mode that collects the inputs of layers; for the classifier head this is the bottleneck (the paper's z).

    Args:
        model: the network, with or without gates.
        layers: names of linear or convolutional layers in it.

    Attributes:
        inputs: the input of each call of the layers while the mode was active, in order.
    """

    def __init__(self, model: nn.Module, *layers: str) -> None:
        super().__init__()
        self.weights = [model.get_submodule(layer).weight for layer in layers]
        self.inputs: list[Tensor] = []
        self._is_spatial: list[bool] = []

    def outcome(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Collect the input if the call is one of the layers, and return the result of the call."""
        if func in _FUNCTIONS:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            if any(weight is own for own in self.weights):
                self.inputs.append(args[0] if args else kwargs["input"])
                self._is_spatial.append(func is not nn.functional.linear)
        return self.passed_on(func, args, kwargs)

    def taken(self) -> Tensor:
        """The bottleneck features of one forward pass, shape (N, d), which are then forgotten.

        Places of a convolution and tokens of a linear layer are averaged; the inputs of several heads stand side by
        side.
        """
        parts = []
        for found, is_spatial in zip(self.inputs, self._is_spatial, strict=True):
            if is_spatial:
                parts.append(found.flatten(2).mean(2))
            else:
                parts.append(found.flatten(1, -2).mean(1) if found.ndim > 2 else found)
        self.inputs.clear()
        self._is_spatial.clear()
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

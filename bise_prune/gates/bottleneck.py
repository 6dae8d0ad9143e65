"""The classifier head C and its input, the bottleneck z, of a network f = C o E in the paper's terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError
from ..tracing import FunctionMode, Trace


def head_name(model: nn.Module, record: Trace) -> str:
    """Return the name of the classifier head, C in the paper's f = C o E: the linear layer that returns the logits.

    Args:
        model: the network.
        record: its trace.

    Raises:
        ModelError: the network does not end in a linear layer, or calls that layer more than once.
    """
    head = record.head
    layer = head.layer if head is not None and head.outputs[0] == record.logits else None
    if layer is None or not isinstance(model.get_submodule(layer), nn.Linear) or len(record.calls_of(layer)) != 1:
        raise ModelError(
            "the network does not end in a linear layer called once, so it has no bottleneck to read the bias from; "
            "wrap it so that its last operation is an nn.Linear"
        )
    return layer


class CapturedInputs(FunctionMode):
    """Mode that collects the inputs of a linear layer; for the classifier head this is the bottleneck (the paper's z).

    Args:
        model: the network, with or without gates.
        layer: name of an ``nn.Linear`` in it.

    Attributes:
        inputs: the input of each call of the layer while the mode was active, in order.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.weight = model.get_submodule(layer).weight
        self.inputs: list[Tensor] = []

    def outcome(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Collect the input if the call is one of the layer, and return the result of the call."""
        if func is nn.functional.linear and (args[1] if len(args) > 1 else kwargs["weight"]) is self.weight:
            self.inputs.append(args[0] if args else kwargs["input"])
        return self.passed_on(func, args, kwargs)

"""The classifier's head and the features that it reads: the paper's f = C o E and z."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..errors import ModelError
from ..tracing import FunctionMode, Trace


def head_name(model: nn.Module, record: Trace) -> str:
    """The classifier C of the paper's f = C o E: the linear layer whose output is the model's.

    Raises:
        ModelError: there is none, or it is called more than once.
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
    """While active, collects what a linear layer reads: with the head's name, the bottleneck (the paper's z).

    Args:
        model: the network, bare or gated.
        layer: name of an ``nn.Linear`` in it.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.weight = model.get_submodule(layer).weight
        self.inputs: list[Tensor] = []

    def outcome(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call returns."""
        if func is nn.functional.linear and (args[1] if len(args) > 1 else kwargs["weight"]) is self.weight:
            self.inputs.append(args[0] if args else kwargs["input"])
        return self.passed_on(func, args, kwargs)

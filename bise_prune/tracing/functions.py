"""Names for torch functions, and the tensors among their arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Functions whose output may carry a gate (Eq. 2 gates "the outputs of the nonlinearities").
NONLINEARITIES = frozenset({
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "tanh",
    "softsign", "hardtanh", "softplus", "sigmoid", "hardsigmoid", "logsigmoid",
})  # fmt: skip
SCALES = frozenset({"sigmoid", "hardsigmoid"})  # no gate where they only scale another tensor (squeeze-and-excite)

_CANONICAL = {
    "iadd": "add", "radd": "add", "imul": "mul", "rmul": "mul", "multiply": "mul", "isub": "sub", "subtract": "sub",
    "itruediv": "div", "truediv": "div", "true_divide": "div", "divide": "div", "concat": "cat", "concatenate": "cat",
    "view_as": "view", "reshape_as": "reshape", "native_channel_shuffle": "channel_shuffle",
}  # fmt: skip


def function_name(function: Callable[..., Any]) -> str:
    """The canonical name of a torch function: "add" for ``torch.add``, ``Tensor.add_`` and ``+=`` alike."""
    name = getattr(function, "__name__", str(function)).strip("_")
    return _CANONICAL.get(name, name)


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments, in order, those in lists, tuples and dicts included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from tensors_in(value.values())
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def replace_tensors(value: Any, replacement: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """``value`` with every instance of ``kind`` in it replaced, in order."""
    if isinstance(value, kind):
        return replacement(value)
    if isinstance(value, list):
        return [replace_tensors(part, replacement, kind) for part in value]
    if isinstance(value, tuple):
        parts = [replace_tensors(part, replacement, kind) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, dict):
        return {key: replace_tensors(part, replacement, kind) for key, part in value.items()}
    return value


class FunctionMode(TorchFunctionMode):
    """Sees the torch functions that are called while it is active, and decides what they return.

    Modes that are entered one within the other are dispatched to one by one, and the outer ones see what the inner ones
    compute. A mode *behind* another one is not entered: it gets what that one passes on, and nothing else.
    """

    behind: FunctionMode | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self.outcome(func, args, dict(kwargs or {}))

    def outcome(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call returns."""
        raise NotImplementedError

    def passed_on(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the mode behind makes of a call, or the function itself."""
        return func(*args, **kwargs) if self.behind is None else self.behind.outcome(func, args, kwargs)


class CallCounter(FunctionMode):
    """Sees each torch function with its key: its name, and how many counted calls of that name came before."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def outcome(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call returns."""
        name = function_name(func)
        if name == "iter":
            return iter(self.outcome(torch.unbind, args, kwargs))
        key = name, self.counts[name]
        # In training mode, batch norms count their batches in integers: that is no call of the network.
        counted = any(tensor.is_floating_point() and tensor.ndim for tensor in tensors_in([*args, *kwargs.values()]))
        self.counts[name] += counted
        return self.called(key, counted, func, args, kwargs)

    def called(
        self,
        key: tuple[str, int],
        counted: bool,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """What the call returns; a key belongs to the counted call that has it."""
        raise NotImplementedError

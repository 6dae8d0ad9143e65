"""Canonical names of torch functions, tensors among arguments, and modes that intercept function calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .stepwise import in_steps

# Functions whose output may be gated (Eq. 2 gates "the outputs of the nonlinearities").
NONLINEARITIES = frozenset({
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "tanh",
    "softsign", "hardtanh", "softplus", "sigmoid", "hardsigmoid", "logsigmoid",
})  # fmt: skip
# Functions of truth values.
LOGICAL = frozenset({"invert", "and", "or", "xor", "logical_not", "logical_and", "logical_or", "logical_xor"})
# Functions that look at the sign or order of entries, or round them.
COMPARISONS = frozenset({"gt", "lt", "ge", "le", "eq", "ne", "where", "sign", "floor", "ceil", "round", "trunc"})
SCALES = frozenset({"sigmoid", "hardsigmoid"})  # not gated where they only scale another tensor (squeeze-and-excite)

_CANONICAL = {
    "iadd": "add", "radd": "add", "imul": "mul", "rmul": "mul", "multiply": "mul", "isub": "sub", "subtract": "sub",
    "itruediv": "div", "truediv": "div", "true_divide": "div", "divide": "div", "concat": "cat", "concatenate": "cat",
    "clip": "clamp", "view_as": "view", "reshape_as": "reshape", "native_channel_shuffle": "channel_shuffle",
}  # fmt: skip


_FLIPS = {vars(torch._C.TensorBase)["T"].__get__}  # properties that are functions
_MATRIX_FLIPS = {vars(torch._C.TensorBase)["mT"].__get__}


def function_name(function: Callable[..., Any]) -> str:
    """Return the canonical name of a torch function: "add" for ``torch.add``, ``Tensor.add_`` and ``+=`` alike."""
    name = getattr(function, "__name__", str(function)).strip("_")
    return _CANONICAL.get(name, name)


def is_in_place(function: Callable[..., Any]) -> bool:
    """Whether a torch function changes its first operand, such as ``Tensor.add_``."""
    name = getattr(function, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among ``values`` in order, including those inside lists, tuples and mappings."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from tensors_in(value.values())
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def replace_tensors(value: Any, replacement: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """Return ``value`` with every instance of ``kind`` in it replaced, in order; lists, tuples and dicts are copied.

    Args:
        value: any value; lists, tuples, named tuples and dicts are searched at every depth.
        replacement: function that takes an instance of ``kind`` and returns what replaces it.
        kind: type whose instances are replaced.
    """
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


class Slot(NamedTuple):
    """Placeholder for the ``position``-th tensor among the arguments of a call."""

    position: int


def slot_filled(given: Sequence[Tensor], slot: Slot) -> Tensor:
    """Return the tensor that stands for a slot, of those for all slots of a call."""
    return given[slot.position]


class FunctionMode(TorchFunctionMode):
    """A mode that intercepts every torch function called while it is active, and decides what the call returns.

    When one mode is entered inside another, each is called in turn, and the outer mode also sees the functions that the
    inner mode calls. A mode set as ``behind`` is not entered: it only receives the calls that this mode passes on.

    Attributes:
        behind: the mode that receives the calls passed on; None to run the function itself.
    """

    behind: FunctionMode | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self.outcome(func, args, dict(kwargs or {}))

    def outcome(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the result of a call; subclasses override this method."""
        raise NotImplementedError

    def passed_on(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the result of the mode ``behind`` for a call, or of the function itself if there is no such mode."""
        return func(*args, **kwargs) if self.behind is None else self.behind.outcome(func, args, kwargs)


def _tell_torch(exporting: bool) -> None:
    """Set what ``torch.compiler.is_exporting`` and ``is_compiling`` return, as torch's own exporter does."""
    compiler: Any = torch.compiler
    compiler._is_compiling_flag = compiler._is_exporting_flag = exporting


class CallCounter(FunctionMode):
    """A mode that numbers the calls of each torch function, so that another forward pass can find the same call.

    The key of a call is the name of its function and the number of counted calls of that name before it. A call is
    counted if a floating-point tensor with at least one dimension is among its arguments.

    Args:
        as_exported: whether code that asks torch if it is being exported is told so while this mode is active. It then
            takes the path that exporters see, which does not depend on the values of tensors.
    """

    def __init__(self, as_exported: bool = False) -> None:
        super().__init__()
        self.as_exported = as_exported
        self.counts: Counter[str] = Counter()
        self.depth = 0  # number of calls in progress that are taken in steps
        self.tells: list[bool] = []  # for each time that this mode is entered and not left, whether it told torch

    def __enter__(self) -> Self:
        self.tells.append(self.as_exported and not torch.compiler.is_compiling())
        if self.tells[-1]:
            _tell_torch(True)
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        if self.tells.pop():
            _tell_torch(False)

    def outcome(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Determine the key of a call, count it, and return the result of :meth:`called`."""
        if (steps := in_steps(func, args, kwargs)) is not None:
            self.depth += 1
            try:
                with self:
                    return steps()
            finally:
                self.depth -= 1
        name = function_name(func)
        if name == "iter":
            return iter(self.outcome(torch.unbind, args, kwargs))
        if func in _FLIPS:
            return self.outcome(Tensor.permute, (args[0], tuple(reversed(range(args[0].ndim)))), {})
        if func in _MATRIX_FLIPS:
            return self.outcome(Tensor.transpose, (args[0], -2, -1), {})
        key = name, self.counts[name]
        # Batch norms in training mode count batches in an integer tensor, which is no part of the computation.
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
        """Return the result of a call; subclasses override this method.

        Args:
            key: name of the function, and number of counted calls of that name before this call.
            counted: whether this call is counted; one that is not has the key of the next counted call.
            func: the torch function.
            args: its positional arguments.
            kwargs: its keyword arguments.
        """
        raise NotImplementedError

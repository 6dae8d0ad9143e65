"""One forward pass, watched: which functions run, and which channels each of their results is made of.

The pass runs the model as it is (no rewriting, no symbolic values) under a :class:`TorchFunctionMode`, which sees every
torch function called from Python, from modules and from plain code alike. The record is a graph of :class:`Call` and
:class:`Value`. A value's channels are the entries along the dimensions in which its entries differ in origin; functions
that only move data are run a second time on the channels' numbers, so that one rule serves reshape, shuffle, concat and
the like. A function without a rule is *opaque*: it reads everything, and nothing is known of what it returns.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import ModelError

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]

# What a call does with channels: "mixing" computes each output channel from all input channels of its group
# (convolution, linear layer), "channelwise" and "elementwise" from the same channel of each operand, the latter entry
# by entry; "movement" copies entries; "opaque" is not understood.
Kind = Literal["mixing", "channelwise", "elementwise", "movement", "opaque"]

# Functions whose output may carry a gate (Eq. 2 gates "the outputs of the nonlinearities").
NONLINEARITIES = frozenset({
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "tanh",
    "softsign", "hardtanh", "softplus", "sigmoid", "hardsigmoid", "logsigmoid",
})  # fmt: skip
SCALES = frozenset({"sigmoid", "hardsigmoid"})  # no gate where they only scale another tensor (squeeze-and-excite)

_ELEMENTWISE = (NONLINEARITIES - {"prelu"}) | {
    "add", "sub", "rsub", "mul", "div", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "square", "pow", "erf",
    "sin", "cos", "clamp", "clamp_min", "clamp_max", "reciprocal", "threshold", "hardshrink", "softshrink",
    "to", "float", "double", "half", "bfloat16", "type", "dropout", "alpha_dropout",
    "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d",
}  # fmt: skip
_CHANNELWISE = {
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "interpolate", "upsample",
}  # fmt: skip
_REDUCTIONS = {"mean", "sum", "amax", "amin"}
_MOVEMENTS = {
    "reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t", "movedim",
    "moveaxis", "swapaxes", "swapdims", "chunk", "split", "tensor_split", "split_with_sizes", "unbind", "getitem",
    "narrow", "select", "expand", "expand_as", "repeat", "roll", "flip", "cat", "stack", "channel_shuffle",
    "repeat_interleave", "contiguous", "clone", "detach",
}  # fmt: skip
# What Python may ask of a tensor without reading its entries.
_METADATA = {
    "size", "dim", "ndimension", "numel", "nelement", "len", "stride", "storage_offset", "element_size", "data_ptr",
    "is_floating_point", "is_complex", "is_signed", "is_contiguous", "is_same_size", "is_shared", "is_pinned",
    "get_device", "type", "dense_dim", "sparse_dim", "requires_grad", "register_hook", "is_inference", "is_conj",
    "is_neg", "has_names", "reduce_ex", "deepcopy", "hash", "result_type", "can_cast",
}  # fmt: skip
_PROPERTIES = {
    value.__get__
    for value in vars(torch._C.TensorBase).values()
    if hasattr(value, "__get__") and hasattr(value, "__set__")
}
_SHAPE: Any = vars(torch._C.TensorBase)["shape"]
_CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
_TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}
_SAME_SHAPE_NORMS = {"layer_norm", "group_norm", "rms_norm", "local_response_norm"}
_CANONICAL = {
    "iadd": "add", "radd": "add", "imul": "mul", "rmul": "mul", "multiply": "mul", "isub": "sub", "subtract": "sub",
    "itruediv": "div", "truediv": "div", "true_divide": "div", "divide": "div", "concat": "cat", "concatenate": "cat",
    "view_as": "view", "reshape_as": "reshape", "native_channel_shuffle": "channel_shuffle",
}  # fmt: skip


# Why a call is opaque where that is nothing to tell of: it follows from another one, or has no channels.
CONSEQUENCE, INTEGERS = "a tensor of unknown channels", "works on integers"


class Slot(NamedTuple):
    """Stands for the ``position``-th tensor among a call's arguments."""

    position: int


@dataclass
class Value:
    """A tensor of the forward pass.

    Attributes:
        index: position in :attr:`Trace.values`.
        shape: its shape.
        compact: its shape with 1 where all entries along a dimension belong to one channel; None = unknown.
        layer: the layer that produces these channels, if it is one; for a parameter the module that owns it.
        parameter: full name, if this is a parameter or buffer read by a function other than its layer's own.
        full: whether its extent beside the channels is the data's own; False behind a global pooling.
        measured: whether Python asked for its size.
        call: index of the call that returns it; None for inputs and parameters.
        readers: indices of the calls that read it, in order, with repetition.
    """

    index: int
    shape: tuple[int, ...]
    compact: tuple[int, ...] | None = None
    layer: str | None = None
    parameter: str | None = None
    full: bool = True
    measured: bool = False
    call: int | None = None
    readers: list[int] = field(default_factory=list)

    @property
    def num_channels(self) -> int:
        """Channels that can be told apart; 1 where nothing is known."""
        return math.prod(self.compact) if self.compact is not None else 1

    @property
    def dim(self) -> int | None:
        """The channel dimension, if there is exactly one."""
        if self.compact is None:
            return None
        dims = [dim for dim, size in enumerate(self.compact) if size > 1]
        return dims[0] if len(dims) == 1 else None


@dataclass
class Call:
    """A torch function that returned a tensor.

    Attributes:
        index: position in :attr:`Trace.calls`.
        function: canonical name, e.g. "add" for ``+=``.
        count: how many calls of that name came before.
        kind: what it does with channels.
        run: the function itself, with ``args`` and ``kwargs``, in which :class:`Slot` stands for tensors.
        operands: indices of the values read, in the order of the tensors among the arguments; None = a weight.
        outputs: indices of the values returned.
        maps: (operand position, output position) -> for each output channel the operand channel it is made of; -1 none.
        layer: the module that owns the weights, if the call has any and that module alone owns them.
        groups: of a mixing call; transposed convolutions have ``transposed``.
        whole: whether a mixing call reads a tensor whose channels are not its inputs, so that it needs all of them.
        padded: whether the borders of a constant input would differ from its inside.
        module: the innermost module that was running.
        macs: multiply-accumulates of a convolution or linear layer, for the whole example batch.
        why: for an opaque call, what is not understood.
    """

    index: int
    function: str
    count: int
    kind: Kind
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operands: tuple[int | None, ...]
    outputs: tuple[int, ...] = ()
    maps: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    layer: str | None = None
    groups: int = 1
    transposed: bool = False
    padded: bool = False
    whole: bool = False
    module: str = ""
    macs: int = 0
    why: str = ""
    _identities: dict[tuple[int, int], bool] = field(default_factory=dict)

    def keeps(self, operand: int, output: int = 0) -> bool:
        """Whether an output has the channels of an operand, one to one and in order."""
        key = (operand, output)
        if key not in self._identities:
            mapping = self.maps.get(key)
            same = mapping is not None and torch.equal(mapping, torch.arange(len(mapping)))
            self._identities[key] = same
        return self._identities[key]

    @property
    def key(self) -> tuple[str, int]:
        """By which a running forward pass finds the call."""
        return self.function, self.count

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


@dataclass(frozen=True)
class Nonlinearity:
    """A nonlinearity of the forward pass, the ``index``-th; ``layer`` produces its channels, if one layer does."""

    index: int
    function: str
    dim: int
    num_channels: int
    layer: str | None
    call: int


@dataclass
class Trace:
    """The record of one forward pass.

    Attributes:
        calls: in order of execution.
        values: every tensor, in order of appearance.
        nonlinearities: in order of execution.
        inputs: values that the model is given.
        outputs: values that the model returns.
        logits: the value of the logits; None where they are not made by a function (a model that returns its input).
        unused: modules with weights of which none was read (auxiliary heads); not those within another such module.
        totals: function name -> counted calls, those on constants included.
        rigid: parameter name -> why its shape must stay: a function reads it that is not its layer's own.
    """

    calls: list[Call] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    nonlinearities: list[Nonlinearity] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    logits: int | None = None
    totals: dict[str, int] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    rigid: dict[str, str] = field(default_factory=dict)

    @property
    def scales(self) -> set[int]:
        """Indices of sigmoids that only scale another tensor (squeeze-and-excite)."""
        found = set()
        for n in self.nonlinearities:
            (output,) = self.calls[n.call].outputs
            readers = [self.calls[reader] for reader in self.values[output].readers]
            if n.function in SCALES and readers and all(_multiplies(reader) for reader in readers):
                found.add(n.index)
        return found

    @property
    def frozen(self) -> set[str]:
        """Layers whose weights must stay as they are, since a function reads them that is not the layer's own."""
        return {name.rpartition(".")[0] for name in self.rigid}

    @property
    def first_fork(self) -> int | None:
        """The call that first read the first value which two calls read; None in a plain chain."""
        forks = [value.readers[0] for value in self.values if not value.parameter and len(value.readers) > 1]
        return min(forks, default=None)

    def gated_call(self, index: int, kind: str = "nonlinearity") -> Call:
        """The ``index``-th call of a kind: of nonlinearities, or of a function by its name."""
        if kind == "nonlinearity":
            return next(self.calls[n.call] for n in self.nonlinearities if n.index == index)
        return next(call for call in self.calls if call.key == (kind, index))

    def calls_of(self, layer: str) -> list[Call]:
        """The calls that use a module's own weights, in order."""
        return self.calls_by_layer.get(layer, [])

    @cached_property
    def calls_by_layer(self) -> dict[str, list[Call]]:
        """Module name -> the calls that use its own weights, in order; once the pass is over."""
        table: dict[str, list[Call]] = {}
        for call in self.calls:
            if call.layer is not None:
                table.setdefault(call.layer, []).append(call)
        return table

    @property
    def head(self) -> Call | None:
        """The mixing call whose channels are the logits, if there is one: the classifier."""
        value = self.logits
        while value is not None and (index := self.values[value].call) is not None:
            call = self.calls[index]
            if call.kind == "mixing":
                return call
            tensors = [operand for operand in call.operands if operand is not None]
            same = call.kind != "opaque" and len(tensors) == 1
            if not (same and call.keeps(0) and self.values[tensors[0]].num_channels == len(call.maps[0, 0])):
                return None
            value = tensors[0]
        return None


def _multiplies(call: Call) -> bool:
    return call.function == "mul" and call.kind == "elementwise" and len(set(call.operands)) == 2


def run(model: nn.Module, inputs: Inputs) -> Any:
    """Call ``model`` with a tensor, a tuple of positional or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


class ByPosition(nn.Module):
    """A model that takes its keyword arguments by position, and returns its logits alone.

    Args:
        model: the model.
        names: of its keyword arguments, in order; None for a model that takes positional ones anyway.
    """

    def __init__(self, model: nn.Module, names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits."""
        if self.names is None:
            return logits_of(self.model(*inputs))
        return logits_of(self.model(**dict(zip(self.names, inputs, strict=True))))


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output: a tensor, an object or mapping with ``logits``, or the first of a tuple.

    Raises:
        ModelError: there are none.
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
    """Every tensor that a model returns, the logits first."""
    logits = logits_of(output)
    if not isinstance(output, (Tensor, Mapping, list, tuple)):
        names = [f.name for f in dataclasses.fields(output)] if dataclasses.is_dataclass(output) else vars(output)
        output = [getattr(output, name) for name in names]
    return [logits, *(tensor for tensor in tensors_in([output]) if tensor is not logits)]


def trace(model: nn.Module, example_inputs: Inputs) -> Trace:
    """Watch one forward pass of ``model`` in eval mode; the model is not changed.

    Args:
        model: any network that runs in Python.
        example_inputs: its input(s), batch first.
    """
    tracer = _Tracer(model)
    with evaluating(model), torch.no_grad():
        inputs = tracer.enter(example_inputs)
        with tracer, _noting_modules(model, tracer.modules):
            output = run(model, inputs)
    tracer.leave(output)
    tracer.trace.unused = _unused(model, tracer.users)
    return tracer.trace


def _unused(model: nn.Module, used: Iterable[str]) -> list[str]:
    busy = {name[:i] for name in used for i, letter in enumerate(name) if letter == "."}
    idle: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other in idle)
        if name and name not in busy and not inside and next(module.parameters(), None) is not None:
            idle.append(name)
    return idle


@contextmanager
def _noting_modules(model: nn.Module, path: list[str]) -> Iterator[None]:
    """Keep the names of the modules that are running, the innermost last, in ``path``."""
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: path.append(name)))
        handles.append(module.register_forward_hook(lambda *_: _drop_last(path), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _drop_last(path: list[str]) -> None:
    path.pop()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; each module's own mode comes back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def function_name(function: Callable[..., Any]) -> str:
    """The canonical name of a torch function: "add" for ``torch.add``, ``Tensor.add_`` and ``+=`` alike."""
    name = getattr(function, "__name__", str(function)).strip("_")
    return _CANONICAL.get(name, name)


def is_counted(tensors: Iterable[Tensor]) -> bool:
    """Whether a call takes part in counting: in training mode, batch norms count their batches in integers."""
    return any(tensor.is_floating_point() and tensor.ndim for tensor in tensors)


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


def _opaque(call: Call, why: str) -> None:
    call.kind, call.why, call.layer, call.maps = "opaque", why, None, {}


class _Tracer(TorchFunctionMode):
    """Applies the rules; ``trace`` is the result."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.trace = Trace()
        self.token = object()  # marks of an earlier trace may still be on tensors that the model keeps
        self.counts: Counter[str] = Counter()
        self.nonlinearities = 0
        self.modules: list[str] = []
        self.users: dict[str, set[int]] = {}  # parameter name -> calls that read it
        self.owner: dict[int, tuple[str, str] | None] = {}
        for name, module in model.named_modules():
            for leaf, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                # A tensor that several modules share belongs to none: their layers are not followed.
                self.owner[id(tensor)] = None if id(tensor) in self.owner else (name, leaf)

    def enter(self, inputs: Inputs) -> Any:
        def enter_one(tensor: Tensor) -> Tensor:
            fresh = tensor.detach().clone()
            value = self._value(fresh)
            self.trace.inputs.append(value.index)
            if fresh.is_floating_point() and fresh.ndim >= 2:  # never thinned, so that any numbering would do
                value.compact = _only(value.shape, 2 if fresh.ndim == 3 else 1)
            return fresh

        return replace_tensors(dict(inputs) if isinstance(inputs, Mapping) else inputs, enter_one)

    def leave(self, output: Any) -> None:
        marks = [self._mark(tensor) for tensor in output_tensors(output)]
        self.trace.outputs = [value for value in dict.fromkeys(marks) if value is not None]
        self.trace.logits = self._mark(logits_of(output))
        self.trace.totals = dict(self.counts)
        own: dict[int, set[str]] = {}
        for call in self.trace.calls:
            if call.layer is not None:
                own[call.index] = {call.layer}
        for constant in self.trace.values:
            if constant.parameter is not None:
                own.setdefault(constant.readers[0], set()).add(constant.parameter)
        for name, users in self.users.items():
            for index in users:
                if not {name, name.rpartition(".")[0]} & own.get(index, set()):
                    what = self.trace.calls[index].function if index >= 0 else "a function of weights alone"
                    self.trace.rigid.setdefault(name, f"'{name}' is read by {what}")
        for call in self.trace.calls:
            call.whole |= call.kind == "mixing" and call.layer in self.trace.frozen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = function_name(func)
        if name == "iter":
            return iter(self.__torch_function__(torch.unbind, types, args))
        self.nonlinearities += name in NONLINEARITIES  # those of constants (position tables) count, too
        tensors = list(tensors_in([*args, *kwargs.values()]))
        count = self.counts[name]
        self.counts[name] += is_counted(tensors)
        operands = tuple(self._operand(tensor) for tensor in tensors)
        shapes = [tuple(tensor.shape) for tensor in tensors]
        output = func(*args, **kwargs)
        results = list(tensors_in([output]))
        if name == "setitem" and tensors:  # changes its first argument in place and returns nothing
            results = tensors[:1]
        traced = any(operand is not None for operand in operands)
        if not results and (name in _METADATA or func in _PROPERTIES):
            if name == "size" or func == _SHAPE.__get__:
                for operand in operands:
                    if operand is not None:
                        self.trace.values[operand].measured = True
            return output
        for tensor in tensors:
            if (owner := self.owner.get(id(tensor))) is not None:
                self.users.setdefault(f"{owner[0]}.{owner[1]}", set()).add(len(self.trace.calls) if traced else -1)
        if not traced:
            return output
        positions = iter(range(len(tensors)))
        slots = replace_tensors((args, kwargs), lambda _: Slot(next(positions)))
        call = Call(len(self.trace.calls), name, count, "opaque", func, slots[0], slots[1], operands)
        self.trace.calls.append(call)
        for operand in operands:
            if operand is not None:
                self.trace.values[operand].readers.append(call.index)
        values = [self._value(result, call) for result in results]
        pools = name in _REDUCTIONS or ("adaptive" in name and all(size in (1, None) for size in _pooled_to(call)))
        for value in values:
            read = [self.trace.values[operand].full for operand in operands if operand is not None]
            value.full = (any(read) and not pools) or name in ("interpolate", "upsample")
        call.outputs = tuple(value.index for value in values)
        if not values:
            _opaque(call, f"{name} hands it to Python")
        else:
            self._apply_rule(call, tensors, shapes, values)
        if name in NONLINEARITIES and values:
            self._at_nonlinearity(call, values[0])
        call.module = self.modules[-1] if self.modules else ""
        if call.kind == "opaque" and call.module:
            call.why = f"in '{call.module}', {call.why}"
        return output

    # -- values ------------------------------------------------------------------------------------

    def _value(self, tensor: Tensor, call: Call | None = None) -> Value:
        value = Value(len(self.trace.values), tuple(tensor.shape), call=call.index if call else None)
        self.trace.values.append(value)
        tensor._bise_value = (self.token, value.index)  # type: ignore[attr-defined]
        return value

    def _operand(self, tensor: Tensor) -> int | None:
        """The value that a tensor is; None for weights, and for tensors that no traced value went into."""
        return None if id(tensor) in self.owner else self._mark(tensor)

    def _mark(self, tensor: Tensor) -> int | None:
        token, index = getattr(tensor, "_bise_value", (None, None))
        return index if token is self.token else None

    def _constant(self, tensor: Tensor, call: Call, position: int, compact: tuple[int, ...] | None) -> Value:
        """A value for a parameter, buffer or foreign tensor that a call computes with."""
        owner = self.owner.get(id(tensor))
        value = Value(len(self.trace.values), tuple(tensor.shape), compact, full=False, readers=[call.index])
        if owner is not None:
            value.layer, value.parameter = owner[0], f"{owner[0]}.{owner[1]}"
        self.trace.values.append(value)
        call.operands = tuple(value.index if k == position else o for k, o in enumerate(call.operands))
        return value

    # -- rules -------------------------------------------------------------------------------------

    def _apply_rule(
        self, call: Call, tensors: list[Tensor], shapes: list[tuple[int, ...]], outputs: list[Value]
    ) -> None:
        name, first = call.function, self._read(call, 0)
        if not any(tensor.is_floating_point() for tensor in tensors):
            _opaque(call, f"{name} {INTEGERS}")
        elif name in _CONVOLUTIONS or name in _TRANSPOSED or name == "linear":
            self._mixing(call, tensors, shapes, outputs[0])
        elif name == "batch_norm" or name == "instance_norm":
            self._normalise(call, tensors, first, outputs[0])
        elif name == "prelu":
            self._prelu(call, tensors, first, outputs[0])
        elif name in _ELEMENTWISE:
            self._elementwise(call, tensors, shapes, outputs[0])
        elif name in _MOVEMENTS:
            self._movement(call, tensors, shapes, outputs)
        elif name in _CHANNELWISE or name in _REDUCTIONS or name == "pad":
            self._channelwise(call, first, outputs[0])
        else:
            _opaque(call, f"{name} is not understood")
            same = name in _SAME_SHAPE_NORMS or name in ("setitem", "normalize", "softmax")
            if same and first is not None and first.compact is not None:
                outputs[0].compact, outputs[0].layer = first.compact, first.layer
                if name in _SAME_SHAPE_NORMS:
                    call.why = f"{name} computes with all its channels at once"

    def _read(self, call: Call, position: int) -> Value | None:
        operand = call.operands[position] if len(call.operands) > position else None
        return self.trace.values[operand] if operand is not None else None

    def _mixing(self, call: Call, tensors: list[Tensor], shapes: list[tuple[int, ...]], output: Value) -> None:
        inputs, spatial = self._read(call, 0), _CONVOLUTIONS.get(call.function, _TRANSPOSED.get(call.function, 0))
        dim = 1 if spatial else len(shapes[0]) - 1
        call.transposed = call.function in _TRANSPOSED
        slot = call.argument(1, "weight")
        if isinstance(slot, Slot):
            place = shapes[0] if call.transposed else output.shape
            call.macs = math.prod(place) // place[dim] * tensors[slot.position].numel()
        if spatial and len(shapes[0]) != spatial + 2:
            _opaque(call, "it runs on an unbatched input")
            return
        output.compact = tuple(size if d == dim else 1 for d, size in enumerate(output.shape))
        layer = self._owned(call, tensors, ("weight", "bias"), (1, 2))
        if layer is None:
            _opaque(call, f"the weights of {call.function} are no module's own parameters")
            return
        call.whole = inputs is None or inputs.compact != _only(shapes[0], dim)
        call.layer, output.layer, call.kind = layer, layer, "mixing"
        if spatial:
            call.groups = call.argument(6, "groups", 1)
            padding = call.argument(4, "padding", 0)
            call.padded = bool(padding == "same" or (padding != "valid" and any(_as_tuple(padding))))
            if call.transposed:
                call.padded = True  # overlapping kernels: the sum of weights differs from place to place
        if call.groups > 1 and call.groups == shapes[0][1] == output.shape[1] and inputs is not None and not call.whole:
            call.kind = "channelwise"
            call.maps[0, 0] = torch.arange(inputs.num_channels)

    def _owned(
        self, call: Call, tensors: list[Tensor], names: tuple[str, ...], positions: tuple[int, ...]
    ) -> str | None:
        """The module whose own parameters, under the same names, a call computes with; None if there is none."""
        found = set()
        for name, position in zip(names, positions, strict=True):
            slot = call.argument(position, name)
            if isinstance(slot, Slot):
                owner = self.owner.get(id(tensors[slot.position]))
                found.add(owner[0] if owner is not None and owner[1] == name else None)
        (layer,) = found if len(found) == 1 else (None,)
        return layer

    def _normalise(self, call: Call, tensors: list[Tensor], first: Value | None, output: Value) -> None:
        names = ("running_mean", "running_var", "weight", "bias")
        if not any(isinstance(call.argument(p, n), Slot) for p, n in enumerate(names, 1)):
            call.layer = None
        else:
            call.layer = self._owned(call, tensors, names, (1, 2, 3, 4))
            if call.layer is None:
                _opaque(call, "the parameters of a batch norm are no module's own")
                return
        if first is None or first.compact is None or first.compact != _only(first.shape, 1):
            if first is not None:
                output.compact, output.layer = first.compact, first.layer
            _opaque(call, "it normalises another dimension than the channels'")
            return
        self._same_channels(call, first, output)

    def _same_channels(self, call: Call, first: Value, output: Value) -> None:
        call.kind = "channelwise"
        output.compact, output.layer = first.compact, first.layer
        call.maps[0, 0] = torch.arange(first.num_channels)

    def _prelu(self, call: Call, tensors: list[Tensor], first: Value | None, output: Value) -> None:
        slot = call.argument(1, "weight")
        owner = self.owner.get(id(tensors[slot.position])) if isinstance(slot, Slot) else None
        if first is None or first.compact is None or owner is None:
            _opaque(call, "the slopes of prelu are no module's own parameters")
            return
        if tensors[slot.position].numel() > 1 and first.compact != _only(first.shape, 1):
            _opaque(call, "prelu's slopes lie along another dimension than the channels")
            return
        call.layer = owner[0]
        self._same_channels(call, first, output)

    def _channelwise(self, call: Call, first: Value | None, output: Value) -> None:
        name = call.function
        if first is None or first.compact is None:
            _opaque(call, f"{name} reads {CONSEQUENCE}")
            return
        compact = list(first.compact)
        if name in _REDUCTIONS:
            dims = call.argument(1, "dim")
            given = [] if dims is None else [dim % len(compact) for dim in _as_tuple(dims)]
            if not given or any(compact[dim] > 1 for dim in given):
                _opaque(call, f"{name} runs over the channels")
                return
            if len(output.shape) < len(first.shape):
                compact = [size for dim, size in enumerate(compact) if dim not in given]
            call.padded = name == "sum"  # a constant times the number of places
        elif name == "pad":
            amounts, mode = call.argument(1, "pad"), call.argument(2, "mode", "constant")
            touched = [len(compact) - 1 - i // 2 for i, amount in enumerate(amounts) if amount]
            if mode == "constant" and call.argument(3, "value"):
                _opaque(call, "pad surrounds the channels with a value other than zero")
                return
            if any(compact[dim] > 1 for dim in touched):
                self._pad_channels(call, first, output)
                return
            call.padded = mode == "constant"
        elif any(size > 1 for size in compact[2:]) or len(compact) != len(output.shape):
            _opaque(call, f"{name} runs over the channels")
            return
        elif "avg_pool" in name and "adaptive" not in name:
            call.padded = any(_as_tuple(call.argument(3, "padding", 0))) or bool(call.argument(6, "divisor_override"))
        output.compact, output.layer, call.kind = tuple(compact), first.layer, "channelwise"
        call.maps[0, 0] = torch.arange(first.num_channels)

    def _pad_channels(self, call: Call, first: Value, output: Value) -> None:
        """Channels of zeros before and after, as in the shortcuts of CIFAR's ResNets."""
        beside = [[size for d, size in enumerate(value.shape) if d != first.dim] for value in (first, output)]
        if first.dim is None or call.argument(2, "mode", "constant") != "constant" or beside[0] != beside[1]:
            _opaque(call, "pad adds channels in a way that is not understood")
            return
        numbers = torch.arange(1, first.num_channels + 1).view(first.compact or ()).expand(first.shape)
        ids = _compressed(nn.functional.pad(numbers, call.argument(1, "pad")))
        output.compact, call.kind = tuple(ids.shape), "movement"
        call.maps[0, 0] = ids.reshape(-1) - 1

    def _elementwise(self, call: Call, tensors: list[Tensor], shapes: list[tuple[int, ...]], output: Value) -> None:
        known = [(k, value) for k in range(len(tensors)) if (value := self._read(call, k)) is not None]
        structured = [value for _, value in known if value.compact is not None]
        ndim = len(output.shape)
        if not structured or any(len(shape) > ndim for shape in shapes):
            _opaque(call, f"{call.function} reads {CONSEQUENCE}")
            return
        compacts = [_aligned(value.compact or (), ndim) for value in structured]
        compact = tuple(max(sizes) for sizes in zip(*compacts, strict=True))
        numbers = {}
        for k, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
            value, aligned = self._read(call, k), _aligned(shape, ndim)
            if value is None:  # a parameter, a buffer or a tensor made on the spot
                part = tuple(size if compact[d] > 1 else 1 for d, size in enumerate(aligned))
                own = part[ndim - len(shape) :]
                if any(size > 1 for size in part) and self.owner.get(id(tensor)) is None:
                    output.compact, output.layer = compact, structured[0].layer
                    _opaque(call, f"{call.function} reads a tensor made on the spot")
                    return
                value = self._constant(tensor, call, k, own)
            elif value.compact is None:
                if any(aligned[d] > 1 for d in range(ndim) if compact[d] > 1):
                    output.compact, output.layer = compact, structured[0].layer
                    _opaque(call, f"{call.function} reads {CONSEQUENCE}")
                    return
                value.compact = (1,) * len(shape)
            numbers[k] = torch.arange(value.num_channels).view(_aligned(value.compact or (), ndim))
        for _, value in known:
            theirs = _aligned(value.compact or (), ndim)
            if any(
                mine > 1 and size == 1 and _aligned(value.shape, ndim)[d] > 1
                for d, (size, mine) in enumerate(zip(theirs, compact, strict=True))
            ):
                output.compact, output.layer = compact, structured[0].layer
                _opaque(call, f"{call.function} joins tensors whose channels lie along different dimensions")
                return
        output.compact, call.kind = compact, "elementwise"
        layers = [value.layer for value in structured if value.num_channels == output.num_channels]
        output.layer = layers[0] if layers else None
        for k, ids in numbers.items():
            call.maps[k, 0] = ids.expand(compact).reshape(-1)

    def _movement(self, call: Call, tensors: list[Tensor], shapes: list[tuple[int, ...]], outputs: list[Value]) -> None:
        places: list[Tensor] = []
        sources: list[tuple[int, int, Value] | None] = []
        start = 0
        for k, tensor in enumerate(tensors):
            value = self._read(call, k)
            if value is None and not tensor.is_floating_point():
                sources.append(None)  # an index
                places.append(tensor)
                continue
            if value is None:
                value = self._constant(tensor, call, k, tuple(shapes[k]))
            if value.compact is None:
                _opaque(call, f"{call.function} moves {CONSEQUENCE}")
                return
            ids = torch.arange(value.num_channels).view(value.compact) + start
            places.append(ids.expand(shapes[k]))
            sources.append((k, start, value))
            start += value.num_channels
        if call.function in ("cat", "stack") and not self._lies_along(call, sources, outputs[0]):
            return
        args, kwargs = replace_tensors((call.args, call.kwargs), lambda slot: places[slot.position], Slot)
        try:
            result = call.run(*args, **kwargs)
        except RuntimeError:  # a view of numbers that lie in memory otherwise than the data did
            args, kwargs = replace_tensors((args, kwargs), Tensor.contiguous)
            result = call.run(*args, **kwargs)
        moved = list(tensors_in([result]))
        call.kind = "movement"
        for o, (ids, output) in enumerate(zip(moved, outputs, strict=True)):
            ids = _compressed(ids)
            output.compact = tuple(ids.shape)
            flat = ids.reshape(-1)
            for k, first, value in filter(None, sources):
                inside = (flat >= first) & (flat < first + value.num_channels)
                call.maps[k, o] = torch.where(inside, flat - first, -1)
            whole = [value for _, _, value in filter(None, sources)]
            if len(whole) == 1 and output.num_channels == whole[0].num_channels:
                output.layer = whole[0].layer

    def _lies_along(self, call: Call, sources: list[Any], output: Value) -> bool:
        """Whether a concatenation runs along the channels; along another dimension it joins like an addition."""
        values = [value for _, _, value in filter(None, sources)]
        ndim = len(output.shape)
        dim = call.argument(1, "dim", 0) % ndim
        compacts = [value.compact for value in values]
        if call.function == "stack":
            compacts = [(*compact[:dim], 1, *compact[dim:]) for compact in compacts]
        others = [tuple(size for d, size in enumerate(compact) if d != dim) for compact in compacts]
        if all(size == 1 for other in others for size in other):
            return True
        if len(set(compacts)) == 1 and compacts[0][dim] == 1:  # e.g. a class token before the patches
            output.compact, output.layer, call.kind = compacts[0], None, "elementwise"
            for k, _, value in filter(None, sources):
                call.maps[k, 0] = torch.arange(value.num_channels)
            return False
        _opaque(call, f"{call.function} joins tensors whose channels lie along different dimensions")
        return False

    def _at_nonlinearity(self, call: Call, output: Value) -> None:
        if output.dim is None:
            # Unknown channels: first for images and vectors, last for token sequences.
            ndim = len(output.shape)
            dim = ndim - 1 if ndim == 3 else min(1, ndim - 1)
            if output.compact is None or output.num_channels > 1:
                why = f"{call.function} reads {CONSEQUENCE}"
                _opaque(call, why)
                output.compact = _only(output.shape, dim)
        else:
            dim = output.dim
        index, size = self.nonlinearities - 1, output.shape[dim]
        layer = output.layer if output.num_channels == size else None
        self.trace.nonlinearities.append(Nonlinearity(index, call.function, dim, size, layer, call.index))


def _pooled_to(call: Call) -> tuple[Any, ...]:
    return _as_tuple(call.argument(1, "output_size"))


def _only(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return tuple(size if d == dim else 1 for d, size in enumerate(shape))


def _aligned(sizes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    return (1,) * (ndim - len(sizes)) + tuple(sizes)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _compressed(ids: Tensor) -> Tensor:
    """Entry numbers with every dimension of one channel cut to size 1."""
    for dim in range(ids.ndim):
        first = ids.narrow(dim, 0, 1)
        if ids.shape[dim] == 1 or ids.stride(dim) == 0 or bool((ids == first).all()):
            ids = first
    return ids

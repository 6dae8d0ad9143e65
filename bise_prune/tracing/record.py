"""The data structures of a trace: a graph of function calls and the tensors between them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from .functions import SCALES
from .origins import Fold, Origin, Weights
from .reasons import Reason

_VIEWS = (
    "view",
    "reshape",
    "transpose",
    "permute",
    "unsqueeze",
    "squeeze",
    "flatten",
    "unflatten",
    "expand",
    "expand_as",
)
_SOFTMAXES = ("softmax", "log_softmax")
# What a call does with channels. "mixing": each output channel is computed from all input channels of its convolution
# group (convolution, linear layer). "channelwise": from the same channel of its operand (pooling, batch norm).
# "elementwise": entry by entry, from the same channel of each operand. "movement": entries are only copied.
# "normalising": from the same channel, with statistics over all channels of its group (layer norm, group norm).
# "reducing": one channel is computed from all of its operand (mean over channels). "opaque": not understood.
Kind = Literal["mixing", "channelwise", "elementwise", "movement", "normalising", "reducing", "opaque"]


@dataclass
class Value:
    """A tensor of the traced forward pass.

    Attributes:
        index: position in :attr:`Trace.values`.
        shape: shape of the tensor.
        compact: its shape with size 1 for each dimension along which all entries belong to one channel; None = unknown.
        layer: name of the layer that produces these channels, if it is a single one; for a parameter the module that
            owns it.
        parameter: full name, if this is a parameter or buffer that is read by a function other than its layer's own.
        origin: where this comes from, if it is made of parameters alone during the pass.
        foreign: whether this is a constant with several channels that is made during the pass.
        full: whether the tensor has the spatial or sequence size of the data; False behind a global pooling and for
            parameters.
        measured: whether Python code asked for the size of the tensor.
        call: index of the call that returns the tensor; None for inputs, parameters and other constants.
        readers: indices of the calls that read the tensor, in order; a call that reads it twice occurs twice.
    """

    index: int
    shape: tuple[int, ...]
    compact: tuple[int, ...] | None = None
    layer: str | None = None
    parameter: str | None = None
    origin: Origin | None = None
    foreign: bool = False
    full: bool = True
    measured: bool = False
    call: int | None = None
    readers: list[int] = field(default_factory=list)

    @property
    def is_constant(self) -> bool:
        """Whether this is a parameter, or made of parameters alone."""
        return self.call is None and (self.parameter is not None or self.origin is not None)

    @property
    def num_channels(self) -> int:
        """Number of distinguishable channels; 1 if the channels are unknown."""
        return math.prod(self.compact) if self.compact is not None else 1

    @property
    def dim(self) -> int | None:
        """The channel dimension if there is exactly one, otherwise None."""
        if self.compact is None:
            return None
        dims = [dim for dim, size in enumerate(self.compact) if size > 1]
        return dims[0] if len(dims) == 1 else None


@dataclass
class Call:
    """A call of a torch function in the traced forward pass.

    Attributes:
        index: position in :attr:`Trace.calls`.
        function: canonical name of the function, e.g. "add" for ``+=``.
        count: number of counted calls of that name before this call.
        kind: what the call does with channels; see ``Kind``.
        run: the function itself, to be called with ``args`` and ``kwargs``.
        args: positional arguments, with a :class:`Slot` in place of each tensor.
        kwargs: keyword arguments, with a :class:`Slot` in place of each tensor.
        operands: indices of the values that the call reads, in the order of the tensors among its arguments; None = the
            weight of a layer, or another tensor that does not depend on the model's input.
        shapes: shapes of all tensors among the arguments, in order.
        outputs: indices of the values that the call returns.
        maps: (operand position, output position) -> for each output channel the operand channel that it is made of,
            int64; -1 = none.
        layer: name of the layer whose weights the call computes with, if it has any and no other module shares them:
            the module that owns the weight, or the weight's own full name where that module has several layers in it.
        groups: number of groups of channels of a convolution (``Conv2d.groups``) or of a norm; 1 for other calls.
        transposed: whether the weight has its input channels first: of a transposed convolution, or of a product with
            a matrix (input channels, output channels).
        padded: whether a constant other than zero is treated as live behind the call: zero padding and overlapping
            kernels make it differ from place to place, a sum multiplies it by the number of places.
        whole: whether a mixing call needs its operand at full width, because the operand's channels are not the inputs
            of the layer or because the weights must keep their shape.
        weights: for a convolution or linear layer, where its weight and its additive bias come from.
        module: name of the innermost module that was running.
        counted: whether another forward pass can find the call by its key, so that it can be edited.
        macs: multiply-accumulates of a convolution, a linear layer or a product of tensors, for the whole example
            batch.
        why: for an opaque call, the reason why it is not followed.
    """

    index: int
    function: str
    count: int
    kind: Kind
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operands: tuple[int | None, ...]
    shapes: tuple[tuple[int, ...], ...] = ()
    outputs: tuple[int, ...] = ()
    maps: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    layer: str | None = None
    groups: int = 1
    transposed: bool = False
    padded: bool = False
    whole: bool = False
    weights: Weights | None = None
    module: str = ""
    counted: bool = True
    macs: int = 0
    why: Reason | None = None
    _identities: dict[tuple[int, int], bool] = field(default_factory=dict)

    def keeps(self, operand: int, output: int = 0) -> bool:
        """Whether the channels of an output are those of an operand, one to one and in the same order."""
        key = (operand, output)
        if key not in self._identities:
            mapping = self.maps.get(key)
            same = mapping is not None and torch.equal(mapping, torch.arange(len(mapping)))
            self._identities[key] = same
        return self._identities[key]

    @property
    def key(self) -> tuple[str, int]:
        """Function name and count, by which another forward pass finds this call."""
        return self.function, self.count

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument that was given by position or by name, or ``default`` if it was not given."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


@dataclass(frozen=True)
class Nonlinearity:
    """A call of a nonlinearity in the traced forward pass, or the last call of one that is written out.

    Attributes:
        index: number of calls of nonlinearities before it, including those on constants.
        function: canonical name of the function.
        dim: the channel dimension of its output.
        num_channels: size of that dimension.
        layer: name of the layer that produces these channels, if it is a single one.
        call: position in :attr:`Trace.calls`.
        source: index of the value that it is a function of; None if that is not known.
    """

    index: int
    function: str
    dim: int
    num_channels: int
    layer: str | None
    call: int
    source: int | None = None


@dataclass(frozen=True)
class Side:
    """The queries, keys, values or results of attention, and the tensor of one channel dimension that holds them.

    Attributes:
        value: index of the tensor with its heads apart, as attention reads or returns it.
        whole: index of the tensor with one channel dimension.
        channels: channel of ``whole`` for each head and each channel of a head, int64 of shape (heads, width). Heads
            may share channels (grouped-query and multi-query attention).
        path: (index of a call, position of its output) between the two tensors, in order of execution.
        last: the last entry of ``path`` that moves data; the calls behind it only scale.
        order: the dimensions of ``value``, as positions among the dimensions of ``whole`` but its channels, then the
            heads, then the channels of a head.
        repeats: (index of a call, position of its output) of what repeats heads further on.
    """

    value: int
    whole: int
    channels: Tensor
    path: tuple[tuple[int, int], ...]
    last: tuple[int, int]
    order: tuple[int, ...]
    repeats: tuple[tuple[int, int], ...] = ()

    @property
    def own(self) -> Tensor:
        """The number of each channel, from 0, in the order of the heads that have it, int64 of shape (heads, width)."""
        found: dict[int, int] = {}
        numbers = [found.setdefault(channel, len(found)) for channel in self.channels.flatten().tolist()]
        return torch.tensor(numbers).view(self.channels.shape)


@dataclass(frozen=True)
class Attention:
    """One attention in a trace.

    Attributes:
        products: indices of the products: one of fused attention, or that of the scores and that of the results.
        inner: indices of all calls from the tensors with one channel dimension up to the merged results.
        queries: where the queries come from; None if they are not followed, so that all heads stay.
        keys: where the keys come from; None where ``queries`` is.
        values: where the values come from.
        results: where the results go to.
        width: number of channels of a query in a head.
        cuts_pairs: whether channels of queries and keys can be left out; no, if norms or rotary positions read all of a
            head.
        beside: (index of a call, position of a tensor) -> dimension of the heads, of tensors with one entry a head
            that are no queries, keys or values, such as biases of positions.
        external: indices of all other tensors that are read, such as masks.
        counts_heads: whether code names the number of heads between the products, so that all of them stay.
    """

    products: tuple[int, ...]
    inner: frozenset[int]
    queries: Side | None
    keys: Side | None
    values: Side
    results: Side
    width: int
    cuts_pairs: bool
    beside: dict[tuple[int, int], int]
    external: frozenset[int]
    counts_heads: bool = False

    @property
    def num_heads(self) -> int:
        """Number of heads."""
        return len(self.results.channels)

    @property
    def sources(self) -> tuple[Side, ...]:
        """The followed ones of queries, keys and values."""
        return tuple(side for side in (self.queries, self.keys, self.values) if side is not None)

    @property
    def end(self) -> int:
        """Index of the call that returns the merged results."""
        return self.results.path[-1][0]


@dataclass
class Trace:
    """One forward pass, recorded as a graph of function calls.

    Attributes:
        calls: all calls, in order of execution.
        values: all tensors, in order of appearance.
        nonlinearities: all calls of nonlinearities, in order of execution.
        inputs: indices of the values that the model is given.
        outputs: indices of the values that the model returns.
        logits: index of the value of the logits; None if the pass did not compute them.
        totals: function name -> number of counted calls, including those on constants.
        unused: names of modules with weights of which none was read (such as a second classifier head used in training
            only); modules inside another unused module are left out.
        rigid: names of parameters and buffers whose shape must stay, because a function other than their layer's own
            reads them.
        attentions: the attentions whose values and results are followed, in order of execution.
        folds: layer -> how the slim network reads its weights, for layers whose weights the pass makes of parameters.
        as_exported: whether the network ran as exporters see it; see :func:`bise_prune.tracing.trace`.
    """

    calls: list[Call] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    nonlinearities: list[Nonlinearity] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    logits: int | None = None
    totals: dict[str, int] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    rigid: set[str] = field(default_factory=set)
    attentions: list[Attention] = field(default_factory=list)
    folds: dict[str, Fold] = field(default_factory=dict)
    as_exported: bool = False

    @property
    def scales(self) -> set[int]:
        """Indices of the calls of sigmoids that only scale another tensor (squeeze-and-excite)."""
        found = set()
        for n in self.nonlinearities:
            (output,) = self.calls[n.call].outputs
            readers = self._readers_behind_views(output)
            if n.function in SCALES and readers and all(_multiplies(reader) for reader in readers):
                found.add(n.call)
        return found

    def _readers_behind_views(self, value: int) -> list[Call]:
        """The calls that read a tensor, or read it in another shape."""
        found = []
        for reader in self.values[value].readers:
            call = self.calls[reader]
            is_view = call.function in _VIEWS and len(call.outputs) == 1
            found += self._readers_behind_views(call.outputs[0]) if is_view else [call]
        return found

    @property
    def useful(self) -> set[int]:
        """Indices of the calls that an output of the model depends on."""
        wanted, useful = set(self.outputs), set[int]()
        for call in reversed(self.calls):
            if wanted & set(call.outputs):
                useful.add(call.index)
                wanted |= {operand for operand in call.operands if operand is not None}
        return useful

    @property
    def frozen(self) -> set[str]:
        """Names of layers whose weights must keep their shape, because another function reads them as well."""
        return {name.rpartition(".")[0] for name in self.rigid} | {
            layer
            for layer, calls in self.calls_by_layer.items()
            for call in calls
            if call.weights is not None and any(origin.name in self.rigid for origin in call.weights.origins)
        }

    @property
    def first_fork(self) -> int | None:
        """Index of the first call that reads a value which is read more than once; None in a network without forks."""
        forks = [value.readers[0] for value in self.values if not value.parameter and len(value.readers) > 1]
        return min(forks, default=None)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what is computed, without the values of tensors; read it only when the trace is complete."""
        lines = [
            (call.function, call.kind, call.layer, call.operands, call.outputs, _plain(call.args), _plain(call.kwargs))
            for call in self.calls
        ]
        return hashlib.sha256(repr((lines, self.inputs, self.outputs)).encode()).hexdigest()

    @cached_property
    def call_of(self) -> dict[tuple[str, int], Call]:
        """Key -> the counted call with that key; read it only when the trace is complete."""
        # A call that is not counted has the key of the next counted call, which replaces it in this table.
        return {call.key: call for call in self.calls}

    @cached_property
    def attention_of(self) -> dict[int, Attention]:
        """Index of each call inside an attention -> that attention; read it only when the trace is complete."""
        return {index: attention for attention in self.attentions for index in attention.inner}

    def origins_of(self, layer: str) -> list[Origin]:
        """Return where weights and additive biases of a layer come from, call by call."""
        return [o for call in self.calls_of(layer) if call.weights is not None for o in call.weights.origins]

    def calls_of(self, layer: str) -> list[Call]:
        """Return the calls that use a module's own weights, in order of execution."""
        return self.calls_by_layer.get(layer, [])

    @cached_property
    def calls_by_layer(self) -> dict[str, list[Call]]:
        """Module name -> the calls that use its own weights, in order; read it only when the trace is complete."""
        table: dict[str, list[Call]] = {}
        for call in self.calls:
            if call.layer is not None:
                table.setdefault(call.layer, []).append(call)
        return table

    @cached_property
    def heads(self) -> list[Call]:
        """The calls of the classifier heads, whose output channels are the logits, in order; [] if there is none.

        Between them and the logits may stand what keeps the channels apart, such as pooling, a scale, a softmax over
        the classes or the mean of two heads. Read it only when the trace is complete.
        """
        found = self._heads_of(self.logits)
        return sorted({call.index: call for call in found or ()}.values(), key=lambda call: call.index)

    @property
    def has_softmax(self) -> bool:
        """Whether the logits are probabilities: a softmax stands between the heads and them."""
        value, functions = self.logits, set()
        while (
            value is not None and (index := self.values[value].call) is not None and self.calls[index].kind != "mixing"
        ):
            functions.add(self.calls[index].function)
            value = next((operand for operand in self.calls[index].operands if operand is not None), None)
        return "softmax" in functions

    def _heads_of(self, value: int | None) -> list[Call] | None:
        """The calls whose output channels are those of a value; None if that is not known."""
        if value is None or (index := self.values[value].call) is None:
            return None
        call = self.calls[index]
        if call.kind == "mixing":
            return [call]
        if call.function in _SOFTMAXES and call.operands:
            return self._heads_of(call.operands[0])
        found: list[Call] = []
        for k, operand in enumerate(call.operands):
            if operand is None or (self.values[operand].call is None and operand not in self.inputs):
                continue  # a constant
            if (k, 0) not in call.maps and call.kind == "movement":
                continue  # an index
            same = call.kind not in ("normalising", "opaque") and call.keeps(k)
            heads = self._heads_of(operand) if same and self._is_as_wide(operand, call, k) else None
            if heads is None:
                return None
            found += heads
        return found or None

    def _is_as_wide(self, operand: int, call: Call, k: int) -> bool:
        """Whether a call reads all channels of an operand one by one."""
        return self.values[operand].num_channels == len(call.maps[k, 0])


def _plain(value: Any) -> Any:
    """Arguments of a call, in which what is no plain value is replaced by the name of its type."""
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in sorted(value.items())}
    is_plain = value is None or isinstance(value, (bool, int, float, str, torch.dtype))
    return value if is_plain else type(value).__name__


def _multiplies(call: Call) -> bool:
    """Whether a call multiplies two different tensors."""
    return call.function == "mul" and call.kind in ("elementwise", "opaque") and len(set(call.operands)) == 2

"""One forward pass, watched: where nonlinearities are, which layer each channel comes from, which channels are zero.

The pass runs the model as it is (no rewriting, no symbolic values) under a :class:`TorchFunctionMode`, which sees every
torch function called from Python, from modules and from plain code alike. Each tensor carries a :class:`ChannelTag`;
one rule per function says what becomes of it. A function without a rule loses the tag and is remembered by name, so
that the layers whose channels it read are never thinned: what is not understood is left alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import ModelError

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]

# Functions whose output may carry a gate (Eq. 2 gates "the outputs of the nonlinearities"), by whether f(0) = 0.
NONLINEARITIES = {
    "relu": True, "relu6": True, "leaky_relu": True, "prelu": True, "rrelu": True, "elu": True, "selu": True,
    "celu": True, "gelu": True, "silu": True, "mish": True, "hardswish": True, "tanh": True, "softsign": True,
    "hardtanh": False, "softplus": False, "sigmoid": False, "hardsigmoid": False, "logsigmoid": False,
}  # fmt: skip

# Functions that act on each channel alone and send a zero channel to a zero channel.
_CHANNELWISE = {
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "interpolate",
    "contiguous", "clone", "detach", "to", "float", "double", "half", "type_as", "neg", "abs", "pad",
}  # fmt: skip
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
_SCALES = {"sigmoid", "hardsigmoid"}


@dataclass(frozen=True)
class ChannelTag:
    """What is known of a tensor's channels.

    Attributes:
        dim: the channel dimension.
        zero: bool tensor, True where the channel is zero for every input.
        segments: (layer, channels) in order; a layer None stands for channels of unknown origin.
        sources: every layer whose output channels flow into these.
        repeat: consecutive entries along ``dim`` per channel (after a flatten).
        raw: the layer, if this is its very output.
        nonlinearity: index of the nonlinearity, if this is its very output.
    """

    dim: int
    zero: Tensor
    segments: tuple[tuple[str | None, int], ...]
    sources: frozenset[str]
    repeat: int = 1
    raw: str | None = None
    nonlinearity: int | None = None

    @property
    def layer(self) -> str | None:
        """The one layer these channels come from, if it is one."""
        return self.segments[0][0] if len(self.segments) == 1 and self.repeat == 1 else None


@dataclass(frozen=True)
class Nonlinearity:
    """A nonlinearity of the forward pass; ``segments`` says which layers its channels come from."""

    index: int
    function: str
    dim: int
    num_channels: int
    segments: tuple[tuple[str | None, int], ...]
    step: int

    @property
    def layer(self) -> str | None:
        """The one layer whose channels these are, if it is one."""
        return self.segments[0][0] if len(self.segments) == 1 else None


@dataclass
class ChannelTrace:
    """The record of one forward pass.

    Attributes:
        nonlinearities: in order of execution.
        scales: indices of sigmoids that only scale another tensor (squeeze-and-excite).
        first_fork: step at which the first tensor that two functions read was first read; None in a plain chain.
        zero_inputs: layer -> bool tensor over its inputs, True where every call reads zero.
        reads: layer -> tags of its inputs, one per call; None where nothing is known.
        consumers: layer -> functions that read its very output; a batch norm as ``"batch_norm:name"``.
        calls: layer -> number of calls.
        escaped: layer -> function without a rule that read its channels ("the model's output" for the last).
        head: the layer whose very output is the model's, if any, and the step of its call.
    """

    nonlinearities: list[Nonlinearity] = field(default_factory=list)
    scales: set[int] = field(default_factory=set)
    first_fork: int | None = None
    zero_inputs: dict[str, Tensor] = field(default_factory=dict)
    reads: dict[str, list[ChannelTag | None]] = field(default_factory=dict)
    consumers: dict[str, list[str]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    escaped: dict[str, str] = field(default_factory=dict)
    head: str | None = None
    steps: dict[str, int] = field(default_factory=dict)


def run(model: nn.Module, inputs: Inputs) -> Any:
    """Call ``model`` with a tensor, a tuple of positional or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


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


def trace_channels(
    model: nn.Module, example_inputs: Inputs, closed: Mapping[int, Tensor] | None = None
) -> ChannelTrace:
    """Watch one forward pass of a copy of ``model`` in eval mode.

    Args:
        model: any network that runs in Python; never changed.
        example_inputs: its input(s), batch first.
        closed: nonlinearity index -> bool tensor over its channels, True where a gate closes the channel.
    """
    model, example_inputs = copy.deepcopy((model, example_inputs))  # tensors are marked on their way
    model.eval()
    tracer = _Tracer(model, closed or {})
    with torch.no_grad(), tracer:
        output = run(model, example_inputs)
    tracer.finish(logits_of(output))
    return tracer.trace


def is_nonlinearity(function: Callable[..., Any]) -> bool:
    """Whether outputs of a torch function may carry a gate."""
    return _name(function) in NONLINEARITIES


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", str(function)).strip("_")


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _tag(value: Any) -> ChannelTag | None:
    return getattr(value, "_bise_tag", None)


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


class _Tracer(TorchFunctionMode):
    """Applies the rules; ``trace`` is the result."""

    def __init__(self, model: nn.Module, closed: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.trace = ChannelTrace()
        self.closed = closed
        self.step = 0
        self.owner: dict[int, str | None] = {}
        for name, module in model.named_modules():
            for value in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                # A tensor that several modules share belongs to none: their layers are not followed.
                self.owner[id(value)] = None if id(value) in self.owner else name

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tags = [tag for tensor in _tensors([*args, *kwargs.values()]) if (tag := _tag(tensor)) is not None]
        before = [tuple(tensor.shape) for tensor in _tensors([*args, *kwargs.values()])]
        output = func(*args, **kwargs)
        if _name(func) == "setitem":  # changes its first argument in place and returns nothing
            for layer in {layer for tag_in in tags for layer in tag_in.sources}:
                self.trace.escaped.setdefault(layer, "an assignment to a part of a tensor")
            args[0]._bise_tag = None
        if not any(True for _ in _tensors([output])):
            return output
        self.step += 1
        self._note_forks(_tensors([*args, *kwargs.values()]))
        name = _name(func)
        operands = args or tuple(kwargs[key] for key in ("input", "tensors") if key in kwargs)
        tag = self._rule(name, operands, kwargs, output, before) if isinstance(output, Tensor) else None
        for source in (tag_in for tag_in in tags if tag_in.raw is not None):
            norm = self._owner(args, kwargs, 1) if name == "batch_norm" and source.dim == 1 else None
            reader = name if norm is None else f"batch_norm:{norm}"
            self.trace.consumers.setdefault(source.raw or "", []).append(reader)
        if tag is None:
            for layer in {layer for tag_in in tags for layer in tag_in.sources}:
                self.trace.escaped.setdefault(layer, name)
        if isinstance(output, Tensor):
            output._bise_tag = self._at_nonlinearity(name, tag, output)  # type: ignore[attr-defined]
            output._bise_first_use = None  # type: ignore[attr-defined]  # in-place functions return what they read
        return output

    def finish(self, output: Tensor) -> None:
        """Note what reaches the model's output."""
        tag = _tag(output)
        if tag is not None:
            self.trace.head = tag.raw
            for layer in tag.sources:
                self.trace.escaped[layer] = "the model's output"
            if tag.raw is not None:
                self.trace.consumers.setdefault(tag.raw, []).append("output")

    # -- rules: None means "not understood" --------------------------------------------------------

    def _rule(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor, before: list[tuple[int, ...]]
    ) -> ChannelTag | None:
        if name in _CONVOLUTIONS:
            return self._convolution(args, kwargs, output)
        if name == "linear":
            return self._linear(args, kwargs, output)
        if name in ("add", "sub", "mul", "div", "true_divide"):
            return self._arithmetic(name, args, output)
        if name in ("cat", "concat"):
            return self._concatenation(args, kwargs, output)
        tag = _tag(args[0]) if args else None
        if tag is None:
            return None
        tag = replace(tag, raw=None, nonlinearity=None)
        if name in ("flatten", "view", "reshape", "squeeze"):
            return self._reshape(tag, before[0], output)
        if name in ("mean", "sum"):
            return self._reduction(tag, _argument(args, kwargs, 1, "dim"), before[0], output)
        if name in ("permute", "transpose"):
            return self._permutation(name, tag, args, kwargs, len(before[0]))
        if output.ndim != len(before[0]) or output.shape[tag.dim] != len(tag.zero):
            return None
        if name == "batch_norm":
            self._count(self._owner(args, kwargs, 1))
            return replace(tag, zero=torch.zeros_like(tag.zero)) if tag.dim == 1 else None
        if name in NONLINEARITIES:
            return tag if NONLINEARITIES[name] else replace(tag, zero=torch.zeros_like(tag.zero))
        if name == "pad" and _argument(args, kwargs, 3, "value"):
            return replace(tag, zero=torch.zeros_like(tag.zero))
        return tag if name in _CHANNELWISE else None

    def _convolution(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> ChannelTag | None:
        inputs, weight = args[0], _argument(args, kwargs, 1, "weight")
        layer, tag = self._owner(args, kwargs, 1), _tag(inputs)
        if layer is None or (tag is not None and tag.dim != 1) or output.ndim != weight.ndim:
            return None
        self._count(layer)
        zero = torch.zeros(output.shape[1], dtype=torch.bool)
        depthwise = weight.shape[1] == 1 and weight.shape[0] == inputs.shape[1]
        if not depthwise or weight.shape[0] == 1:
            self._read(layer, tag, inputs.shape[1])
        elif tag is not None and _argument(args, kwargs, 2, "bias") is None:
            zero = tag.zero
        return ChannelTag(1, zero, ((layer, len(zero)),), frozenset([layer]), raw=layer)

    def _linear(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> ChannelTag | None:
        inputs, layer = args[0], self._owner(args, kwargs, 1)
        tag = _tag(inputs)
        if layer is None or (tag is not None and tag.dim != inputs.ndim - 1):
            return None
        self._count(layer)
        self._read(layer, tag, inputs.shape[-1])
        zero = torch.zeros(output.shape[-1], dtype=torch.bool)
        return ChannelTag(output.ndim - 1, zero, ((layer, len(zero)),), frozenset([layer]), raw=layer)

    def _arithmetic(self, name: str, args: tuple[Any, ...], output: Tensor) -> ChannelTag | None:
        tags = [tag for value in args[:2] if (tag := _tag(value)) is not None]
        for value in args[:2]:  # a tensor of unknown origin may be broadcast over the channels, not differ between them
            if tags and isinstance(value, Tensor) and _tag(value) is None:
                place = tags[0].dim - (output.ndim - value.ndim)
                if place >= 0 and value.shape[place] != 1:
                    return None
        if not tags or any(
            tag.dim != tags[0].dim or len(tag.zero) != len(tags[0].zero) or output.shape[tag.dim] != len(tag.zero)
            for tag in tags
        ):
            return None
        first = tags[0]
        if name in ("add", "sub"):
            zero = first.zero & tags[1].zero if len(tags) == 2 else torch.zeros_like(first.zero)
        elif name == "mul":
            zero = first.zero | tags[-1].zero
            self.trace.scales |= {
                tag.nonlinearity
                for tag in tags
                if len(tags) == 2
                and tag.nonlinearity is not None
                and self.trace.nonlinearities[tag.nonlinearity].function in _SCALES
            }
        elif _tag(args[0]) is first and len(tags) == 1:
            zero = first.zero
        else:
            return None
        sources = frozenset().union(*(tag.sources for tag in tags))
        return replace(first, zero=zero, sources=sources, raw=None, nonlinearity=None)

    def _concatenation(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> ChannelTag | None:
        parts = list(args[0])
        dim = _argument(args, kwargs, 1, "dim", 0) % output.ndim
        tags = [_tag(part) for part in parts]
        known = [tag for tag in tags if tag is not None]
        if not known or any(tag.dim != dim or tag.repeat != 1 for tag in known):
            return None
        zero: list[Tensor] = []
        segments: list[tuple[str | None, int]] = []
        for part, tag in zip(parts, tags, strict=True):
            size = part.shape[dim]
            zero.append(tag.zero if tag else torch.zeros(size, dtype=torch.bool))
            segments.extend(tag.segments if tag else [(None, size)])
        return ChannelTag(dim, torch.cat(zero), tuple(segments), frozenset().union(*(tag.sources for tag in known)))

    def _reshape(self, tag: ChannelTag, before: tuple[int, ...], output: Tensor) -> ChannelTag | None:
        after, channels = tuple(output.shape), len(tag.zero)
        if tag.dim < len(after) and after[: tag.dim + 1] == before[: tag.dim + 1]:
            return tag
        if tag.dim == 1 and len(after) == 2 and after[0] == before[0] and after[1] % channels == 0:
            repeat = after[1] // channels
            return replace(tag, zero=tag.zero.repeat_interleave(repeat), repeat=tag.repeat * repeat)
        return None

    def _reduction(self, tag: ChannelTag, dims: Any, before: tuple[int, ...], output: Tensor) -> ChannelTag | None:
        if dims is None:
            return None
        reduced = {dim % len(before) for dim in ([dims] if isinstance(dims, int) else dims)}
        if tag.dim in reduced:
            return None
        shift = 0 if output.ndim == len(before) else sum(dim < tag.dim for dim in reduced)
        return replace(tag, dim=tag.dim - shift)

    def _permutation(
        self, name: str, tag: ChannelTag, args: tuple[Any, ...], kwargs: Mapping[str, Any], ndim: int
    ) -> ChannelTag | None:
        if kwargs or len(args) < 2:
            return None
        given = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
        dims = [dim % ndim for dim in given]
        if name == "transpose":
            order = list(range(ndim))
            order[dims[0]], order[dims[1]] = order[dims[1]], order[dims[0]]
            dims = order
        return replace(tag, dim=dims.index(tag.dim))

    # -- what the rules record ---------------------------------------------------------------------

    def _owner(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int) -> str | None:
        name = "running_mean" if "running_mean" in kwargs else "weight"
        return self.owner.get(id(_argument(args, kwargs, position, name)))

    def _note_forks(self, inputs: Iterable[Tensor]) -> None:
        for tensor in inputs:
            first_use = getattr(tensor, "_bise_first_use", None)
            if first_use is None:
                tensor._bise_first_use = self.step  # type: ignore[attr-defined]
            elif id(tensor) not in self.owner:
                self.trace.first_fork = min(first_use, self.trace.first_fork or first_use)

    def _count(self, layer: str | None) -> None:
        if layer is not None:
            self.trace.calls[layer] = self.trace.calls.get(layer, 0) + 1
            self.trace.steps[layer] = self.step

    def _read(self, layer: str, tag: ChannelTag | None, size: int) -> None:
        zero = tag.zero if tag is not None else torch.zeros(size, dtype=torch.bool)
        self.trace.reads.setdefault(layer, []).append(tag)
        known = self.trace.zero_inputs.get(layer)
        self.trace.zero_inputs[layer] = zero if known is None else known & zero

    def _at_nonlinearity(self, name: str, tag: ChannelTag | None, output: Tensor) -> ChannelTag | None:
        if name not in NONLINEARITIES:
            return tag
        index = len(self.trace.nonlinearities)
        # Without a tag: channels first for images and vectors, last for token sequences.
        dim = tag.dim if tag is not None else output.ndim - 1 if output.ndim == 3 else min(1, output.ndim - 1)
        size = output.shape[dim]
        segments = tag.segments if tag is not None and tag.repeat == 1 else ((None, size),)
        self.trace.nonlinearities.append(Nonlinearity(index, name, dim, size, segments, self.step))
        closed = self.closed.get(index)
        if tag is None:
            if closed is None:
                return None
            return ChannelTag(dim, closed, segments, frozenset(), nonlinearity=index)
        return replace(tag, zero=tag.zero if closed is None else tag.zero | closed, nonlinearity=index)

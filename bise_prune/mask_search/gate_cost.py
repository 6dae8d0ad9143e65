"""The cost of a gated network (FLOPs, parameters or latency) as a differentiable function of its gates.

Every tensor of the trace gets a number in [0, 1] per channel: 1 = the channel is present, 0 = it is removed. Going
forwards, a channel is live if anything but zero reaches it; going backwards, it is needed if anything that counts reads
it; it is present if it is live and needed. Where gates that may disagree meet, the maximum is taken; a gate multiplies.
For gates of 0 and 1 this gives the width of every layer after removal, and the derivative says what closing or opening
a channel would change.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..channels import Joins
from ..channels.analysis import condition_of
from ..config import CostUnit
from ..distributed import share_object
from ..gates.masks import GateCall, GateSite
from ..metrics.cost import time_by_turns
from ..tracing import WITHOUT_MEAN, Attention, Call, Side, Trace, UnionFind
from .rounded_widths import round_up

_WIDTHS = (0.125, 0.25, 0.5, 0.75, 1.0)  # shares of a layer's inputs and outputs at which it is timed
_RUNS = 9


class GateCost:
    """The cost of a network under given gates, as a share of the dense network's cost.

    Args:
        trace: trace of the network.
        model: the network.
        sites: gate sites of the network.
        of: cost to count: "flops" (multiply-accumulates of convolutions, linear layers and attention), "params", or
            "latency" (measured times of layers at several widths, interpolated).
        joins: lowering at places where gates disagree; see :func:`bise_prune.prune`.
        multiple: multiple that the widths of layers, and of the heads of attention, are rounded up to.
    """

    def __init__(
        self,
        trace: Trace,
        model: nn.Module,
        sites: Sequence[GateSite],
        of: CostUnit = "flops",
        joins: Joins = "expand",
        multiple: int = 1,
    ) -> None:
        self.trace, self.sites, self.multiple = trace, list(sites), multiple
        self.gates_on: dict[int, list[tuple[int, GateCall]]] = {}
        self.normed = {trace.call_of[c.key].index for site in sites for c in site.calls if c.is_layer_norm}
        for number, site in enumerate(sites):
            for call in site.calls:
                if not call.is_layer_norm:
                    self.gates_on.setdefault(trace.call_of[call.key].index, []).append((number, call))
        self.joined = _joined(trace) if joins == "intersection" else {}
        self.terms = _latency_terms(trace, model) if of == "latency" else _terms(trace, model, of)
        ones = [torch.ones(site.num_channels, dtype=torch.float64) for site in sites]
        self.dense = 1.0
        self.dense = float(self(ones))

    def __call__(self, gates: Sequence[Tensor]) -> Tensor:
        """Share of the dense network's cost, a float64 scalar on the CPU.

        Args:
            gates: values of the gates in [0, 1], one tensor (channels,) per site; the result is differentiable in them.
        """
        present = self._present([gate.cpu().double() for gate in gates])
        return torch.stack([term(present) for term in self.terms]).sum() / self.dense

    def by_channels(self) -> GateCost:
        """The same cost where every channel is counted: widths are not rounded up."""
        single = copy.copy(self)
        single.multiple = 1
        return single

    def _present(self, gates: Sequence[Tensor]) -> list[Tensor]:
        """For each tensor of the trace, how far each of its channels is present, in [0, 1]."""
        values, calls = self.trace.values, self.trace.calls
        live = [torch.ones(value.num_channels, dtype=torch.float64) for value in values]
        for call in calls:
            for o, output in enumerate(call.outputs):
                live[output] = self._forwards(call, o, live)
            if call.index in self.gates_on:
                live[call.outputs[0]] = self._gated(call, live[call.outputs[0]], gates)
        wanted: list[list[Tensor]] = [[] for _ in values]
        for output in self.trace.outputs:
            wanted[output].append(torch.ones(values[output].num_channels, dtype=torch.float64))
        needed = [torch.zeros(value.num_channels, dtype=torch.float64) for value in values]
        for call in reversed(calls):
            for output in call.outputs:
                needed[output] = _either(wanted[output], values[output].num_channels)
            if (attention := self.trace.attention_of.get(call.index)) is not None:
                if call.index == attention.end:
                    _want_attended(attention, live, self._gated(call, needed[call.outputs[0]], gates), wanted)
                continue
            for k, operand in enumerate(call.operands):
                if operand is not None:
                    wanted[operand].append(self._backwards(call, k, operand, live, needed, gates))
        for index, value in enumerate(values):
            if value.call is None:
                needed[index] = _either(wanted[index], value.num_channels)
        present = [a * b for a, b in zip(live, needed, strict=True)]
        for attention in self.trace.attentions:
            _fill_heads(attention, present, self.multiple)
        for index, members in self.joined.items():
            present[index] = _either([present[member] for member in members], len(present[index]))
        if self.multiple > 1:
            round_up(self.trace, present, self.multiple)
        return present

    def _gated(self, call: Call, channels: Tensor, gates: Sequence[Tensor]) -> Tensor:
        """A number for each channel of a call's output, times its gates."""
        for number, gate in self.gates_on.get(call.index, ()):
            factor = gate.spread(gates[number].cpu().double(), 1.0)
            channels = channels * factor if len(factor) == len(channels) else channels
        return channels

    def _forwards(self, call: Call, o: int, live: list[Tensor]) -> Tensor:
        """Whether anything but zero reaches each channel of a call's output, in [0, 1]."""
        size = self.trace.values[call.outputs[o]].num_channels
        if (attention := self.trace.attention_of.get(call.index)) is not None:
            if call.index != attention.end:
                return torch.ones(size, dtype=torch.float64)
            values, results = attention.values, attention.results
            place = results.channels.flatten().argsort()
            return live[values.whole][values.channels.flatten()[place]]
        if call.kind == "mixing":
            operand = call.operands[0]
            if call.groups == 1 or operand is None or call.whole or len(live[operand]) % call.groups or o:
                return torch.ones(size, dtype=torch.float64)
            return live[operand].view(call.groups, -1).amax(1).repeat_interleave(size // call.groups)
        if call.kind == "normalising" and call.index not in self.normed and call.function not in WITHOUT_MEAN:
            return live[call.operands[0] or 0].view(call.groups, -1).amax(1).repeat_interleave(size // call.groups)
        parts = []
        for k, operand in enumerate(call.operands):
            mapping = call.maps.get((k, o))
            if operand is None or self.trace.values[operand].is_constant or k == condition_of(call):
                continue  # which is folded where nothing else reaches it, or says where only
            if mapping is not None and len(mapping) == size:
                parts.append(torch.where(mapping >= 0, live[operand][mapping.clamp(min=0)], 0.0))
        if call.kind == "opaque" or not parts:
            return torch.ones(size, dtype=torch.float64)
        return torch.stack(parts).prod(0) if call.function == "mul" else torch.stack(parts).amax(0)

    def _backwards(
        self, call: Call, k: int, operand: int, live: list[Tensor], needed: list[Tensor], gates: Sequence[Tensor]
    ) -> Tensor:
        """Whether anything that counts reads each channel of a call's operand, in [0, 1]."""
        size = self.trace.values[operand].num_channels
        if call.kind == "mixing" and call.groups > 1 and not call.whole and size % call.groups == 0 and k == 0:
            output = needed[call.outputs[0]] * live[call.outputs[0]]
            if len(output) % call.groups == 0:
                return output.view(call.groups, -1).amax(1).repeat_interleave(size // call.groups)
        if call.kind == "normalising":
            wanted = self._gated(call, needed[call.outputs[0]], gates)
            return wanted.view(call.groups, -1).amax(1).repeat_interleave(size // call.groups)
        if call.kind in ("mixing", "opaque"):
            return torch.ones(size, dtype=torch.float64)
        if call.kind == "reducing":
            return needed[call.outputs[0]].amax().expand(size)
        parts = []
        for o, output_index in enumerate(call.outputs):
            mapping = call.maps.get((k, o))
            if mapping is None or len(mapping) != len(needed[output_index]):
                continue
            wanted = needed[output_index]
            if call.function == "mul":
                wanted = wanted * live[output_index]
            wanted = self._gated(call, wanted, gates)
            reads = mapping >= 0
            spread = torch.zeros(size, dtype=torch.float64)
            parts.append(spread.scatter_reduce(0, mapping[reads], wanted[reads], "amax"))
        return _either(parts, size) if parts else torch.ones(size, dtype=torch.float64)


def _want_attended(
    attention: Attention, live: Sequence[Tensor], results: Tensor, wanted: Sequence[list[Tensor]]
) -> None:
    """Note how far an attention wants each channel that it reads, when its merged results are wanted so far."""
    cells = results[attention.results.channels]
    wanted[attention.values.whole].append(_put(torch.zeros_like(live[attention.values.whole]), attention.values, cells))
    if attention.queries is not None and attention.keys is not None:
        heads = cells.amax(1, keepdim=True)
        for side, other in ((attention.queries, attention.keys), (attention.keys, attention.queries)):
            pairs = heads * live[other.whole][other.channels]
            wanted[side.whole].append(_put(torch.zeros_like(live[side.whole]), side, pairs))
    for value in attention.external:
        wanted[value].append(torch.ones_like(live[value]))


def _fill_heads(attention: Attention, present: list[Tensor], multiple: int) -> None:
    """Make all heads that are present as wide as the widest one: of values and results, of queries and keys.

    A head has at least one channel, and its width is rounded up to a multiple.
    """
    kept = present[attention.results.whole][attention.results.channels]
    heads = torch.ones_like(kept[:, :1])
    filled = [(attention.values, kept), (attention.results, kept)]
    if attention.queries is not None and attention.keys is not None:
        heads = heads if attention.counts_heads else kept.amax(1, keepdim=True)  # otherwise all of them stay
        sides = (attention.queries, attention.keys)
        pairs = torch.minimum(*(present[side.whole][side.channels] for side in sides))
        filled += [(side, pairs) for side in sides]
    for side, cells in filled:
        width = cells.mean(1).amax().clamp(min=1 / cells.shape[1])
        channels = round(float(width.detach()) * cells.shape[1], 6)
        width = width + (min(-(-channels // multiple) * multiple, cells.shape[1]) - channels) / cells.shape[1]
        present[side.whole] = _put(present[side.whole], side, (heads * width).expand(cells.shape))


def _put(numbers: Tensor, side: Side, cells: Tensor) -> Tensor:
    """Numbers of the channels of a tensor, with those of heads put in: the largest where several heads share one."""
    return numbers.scatter_reduce(0, side.channels.flatten(), cells.flatten(), "amax", include_self=False)


Term = Callable[[list[Tensor]], Tensor]


def _either(parts: Sequence[Tensor], size: int) -> Tensor:
    """The maximum of the parts, channel by channel; zeros if there are none."""
    if not parts:
        return torch.zeros(size, dtype=torch.float64)
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).amax(0)


@dataclass(frozen=True)
class _Layer:
    """A convolution or linear layer in the trace, and the shares of its outputs and inputs that are present."""

    call: Call

    def shares(self, present: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Share of the outputs that are present, and share of the inputs."""
        outputs = present[self.call.outputs[0]]
        operand = self.call.operands[0]
        if operand is None or self.call.whole:
            return outputs.mean(), outputs.new_ones(())
        return outputs.mean(), present[operand].mean()

    def product(self, present: list[Tensor]) -> Tensor:
        """Share of the weights, and so of the multiply-accumulates, that stay."""
        operand, groups = self.call.operands[0], self.call.groups
        outputs = present[self.call.outputs[0]]
        if operand is None or self.call.whole or groups == 1:
            out, into = self.shares(present)
            return out * into
        return (outputs.view(groups, -1).mean(1) * present[operand].view(groups, -1).mean(1)).mean()


def _terms(trace: Trace, model: nn.Module, of: CostUnit) -> list[Term]:
    """The terms of the cost in FLOPs or parameters, one per layer call or parameter."""
    terms: list[Term] = []
    counted: set[int] = set()
    for name, calls in trace.calls_by_layer.items():
        for number, call in enumerate(calls):
            if of == "flops" and call.macs:
                is_depthwise = call.kind == "channelwise"
                terms.append(_scaled(_mean_of(call.outputs[0]) if is_depthwise else _Layer(call).product, call.macs))
            elif of == "params" and number == 0:
                for origin, parameter in _parameters_of(name, call, model):
                    counted.add(id(parameter))
                    if call.kind == "mixing" and call.weights is not None and origin == call.weights.weight.name:
                        terms.append(_scaled(_Layer(call).product, parameter.numel()))
                    else:
                        terms.append(_scaled(_mean_of(call.outputs[0]), parameter.numel()))
    if of == "flops":
        products = {index for attention in trace.attentions for index in attention.products}
        terms += [_of_attention(attention, trace) for attention in trace.attentions]
        terms.append(_fixed(sum(c.macs for c in trace.calls if c.layer is None and c.index not in products)))
    if of == "params":
        rest = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in counted)
        terms.append(_fixed(rest))
    return terms


def _parameters_of(layer: str, call: Call, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters of a layer with their full names."""
    if call.weights is None:
        return [(f"{layer}.{leaf}", p) for leaf, p in model.get_submodule(layer).named_parameters(recurse=False)]
    found = []
    for origin in call.weights.origins:
        owner, _, leaf = origin.name.rpartition(".")
        if (parameter := model.get_submodule(owner)._parameters.get(leaf)) is not None:
            found.append((origin.name, parameter))
    return found


def _of_attention(attention: Attention, trace: Trace) -> Term:
    """The multiply-accumulates of the products of an attention."""
    results, queries, keys = attention.results, attention.queries, attention.keys
    macs = [float(trace.calls[index].macs) for index in attention.products]
    if len(macs) == 1:  # a fused one: its products are as wide as queries and values
        width, height = attention.width, results.channels.shape[1]
        macs = [macs[0] * width / (width + height), macs[0] * height / (width + height)]

    def term(present: list[Tensor]) -> Tensor:
        pairs = torch.ones((), dtype=torch.float64)
        if queries is not None and keys is not None:
            pairs = torch.minimum(present[queries.whole][queries.channels], present[keys.whole][keys.channels]).mean()
        return pairs * macs[0] + present[results.whole][results.channels].mean() * macs[1]

    return term


def _fixed(size: float) -> Term:
    """A term that no gate changes."""
    return lambda present: torch.tensor(float(size), dtype=torch.float64)


def _scaled(share: Term, size: float) -> Term:
    """A term that is a share times the size of the whole."""
    return lambda present: share(present) * size


def _mean_of(value: int) -> Term:
    """A term that is the share of a tensor's channels that are present."""
    return lambda present: present[value].mean()


def _latency_terms(trace: Trace, model: nn.Module) -> list[Term]:
    """One term per call of a convolution or linear layer, its times interpolated; equal layers are timed once."""
    tables: dict[tuple[object, ...], Tensor] = {}
    terms: list[Term] = []
    device = next(model.parameters()).device
    for calls in trace.calls_by_layer.values():
        for call in calls:
            operand = call.operands[0]
            if call.kind != "mixing" or operand is None or call.weights is None:
                continue
            layer, shape = model.get_submodule(call.module), tuple(call.weights.of(model).shape)
            geometry = getattr(layer, "stride", None), getattr(layer, "dilation", None), call.groups
            key = (call.function, shape, trace.values[operand].shape, geometry)
            if key not in tables:
                tables[key] = _measured(call, layer, shape, trace.values[operand].shape, device)
            terms.append(_interpolated(_Layer(call), tables[key]))
    return terms


def _measured(
    call: Call, layer: nn.Module, size: tuple[int, ...], shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """Milliseconds of a layer, shape (widths, widths): rows by share of its inputs, columns by share of its outputs.

    A grouped convolution is timed with as many groups as its input and output widths have as greatest common divisor.
    """
    outputs = size[1] * call.groups if call.transposed else size[0]
    inputs = size[0] if call.transposed else size[1] * call.groups
    is_linear = len(size) == 2
    runs: list[Callable[[], object]] = []
    for into in _WIDTHS:
        for out in _WIDTHS:
            width, height = max(1, round(inputs * into)), max(1, round(outputs * out))
            if is_linear:
                module: nn.Module = nn.Linear(width, height)
                example = torch.randn(*shape[:-1], width)
            else:
                assert isinstance(layer, nn.modules.conv._ConvNd)
                groups = max(1, math.gcd(width, height)) if call.groups > 1 else 1
                module = type(layer)(  # type: ignore[call-arg]
                    width,
                    height,
                    layer.kernel_size,
                    layer.stride,
                    layer.padding,
                    dilation=layer.dilation,
                    groups=groups,
                )
                example = torch.randn(shape[0], width, *shape[2:])
            module.to(device).eval()
            runs.append(_timed(module, example.to(device)))
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else None
    medians = [sorted(times)[_RUNS // 2] for times in time_by_turns(runs, _RUNS, wait, warm_up_s=0.0)]
    return torch.tensor(share_object(medians), dtype=torch.float64).view(len(_WIDTHS), len(_WIDTHS))


def _timed(module: nn.Module, example: Tensor) -> Callable[[], object]:
    """A function that runs the module once on the example."""

    def call() -> object:
        with torch.inference_mode():
            return module(example)

    return call


def _interpolated(layer: _Layer, table: Tensor) -> Term:
    """A term that interpolates a table of :func:`_measured` bilinearly."""
    knots = torch.tensor(_WIDTHS, dtype=torch.float64)

    def weights(share: Tensor) -> Tensor:
        """Weight of each row or column of the table: piecewise linear, extrapolated below the first share."""
        upper = int(torch.searchsorted(knots, share.detach().clamp(max=1.0)).clamp(1, len(knots) - 1))
        low, high = knots[upper - 1], knots[upper]
        part = (share - low) / (high - low)
        row = torch.zeros(len(knots), dtype=torch.float64)
        return row.index_put((torch.tensor([upper - 1, upper]),), torch.stack([1 - part, part]))

    def term(present: list[Tensor]) -> Tensor:
        out, into = layer.shares(present)
        return weights(into) @ table @ weights(out)

    return term


def _joined(trace: Trace) -> dict[int, list[int]]:
    """For each tensor, the tensors that must keep the same channels, since they are added or passed on unchanged."""
    streams = UnionFind(len(trace.values))
    for call in trace.calls:
        if call.kind in ("mixing", "opaque") or not call.outputs:
            continue
        for k, operand in enumerate(call.operands):
            if operand is None or trace.values[operand].is_constant:
                continue
            if call.keeps(k) and len(call.maps[k, 0]) == trace.values[operand].num_channels:
                streams.join(operand, call.outputs[0])
    members: dict[int, list[int]] = {}
    for value in range(len(trace.values)):
        members.setdefault(streams.first(value), []).append(value)
    return {value: stream for stream in members.values() if len(stream) > 1 for value in stream}

"""Analysis of channels under decided gates: constants are followed forwards, and layers that read a channel backwards.

Each channel has one number in float64: its value if that is the same for every sample and position, NaN if the channel
is live. Constants pass through elementwise functions by running the same functions on them, so that NaN spreads as
"live" does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..tracing import (
    COMPARISONS,
    COUNT_PLACES,
    KEEP_CONSTANTS,
    LOGICAL,
    WITHOUT_MEAN,
    Attention,
    Call,
    Slot,
    Trace,
    Value,
    parameters_of,
    replace_tensors,
)

_PASSES = {"to", "float", "double", "half", "bfloat16", "type"}


@dataclass(frozen=True)
class Analysis:
    """What is known about the channels of every value of a trace.

    Attributes:
        constant: per value, float64 of shape (channels,): the value of a constant channel, NaN for a live channel.
        needed: per value, bool of shape (channels,): whether the channel is an output of the model, or live channels
            that an output depends on are computed from it.
        closed: index of a gated call -> bool over the channels of its output, True where a gate closes the channel.
        normed: index of a call of a layer norm -> bool over its channels, True where its statistics leave the channel
            out and it passes unchanged.
    """

    constant: list[Tensor]
    needed: list[Tensor]
    closed: Mapping[int, Tensor]
    normed: Mapping[int, Tensor]

    def live(self, value: int) -> Tensor:
        """Return which channels of a value must be computed: those that are needed and not constant."""
        return self.needed[value] & self.constant[value].isnan()

    def spared(self, call: Call) -> Tensor:
        """Return which channels of its operand the statistics of a norm, or a mean over channels, do not need.

        A gated layer norm gets the zeros back that it computes with.
        """
        inputs = self.constant[call.operands[0] or 0]
        if call.index in self.normed:
            return self.normed[call.index]
        notices_zeros = call.kind == "normalising" and call.function not in WITHOUT_MEAN
        notices_zeros &= not (call.function == "layer_norm" and call.index in self.closed)
        return torch.zeros_like(inputs, dtype=torch.bool) if notices_zeros else inputs == 0


def analyse(
    trace: Trace, model: nn.Module, closed: Mapping[int, Tensor], normed: Mapping[int, Tensor] | None = None
) -> Analysis:
    """Determine which channels of a network are constant and which are needed, under decided gates.

    Args:
        trace: trace of ``model``.
        model: the dense network.
        closed: index of a gated call -> bool over the channels of its output, True where a gate closes the channel.
        normed: index of a call of a layer norm -> bool over its channels, True where its statistics leave the channel
            out.

    Returns:
        The constants and the needed channels of every value.
    """
    constant = constants(trace, model, closed, normed or {})
    analysis = Analysis(constant, [], closed, normed or {})
    needed = [torch.zeros(len(c), dtype=torch.bool) for c in constant]
    for value in trace.outputs:
        needed[value][:] = True
    for call in reversed(trace.calls):
        if (attention := trace.attention_of.get(call.index)) is not None:
            if call.index == attention.end:
                _need_attended(attention, constant, needed)
            continue
        live = [needed[o] & constant[o].isnan() for o in call.outputs]
        if call.outputs and not any(bool(mask.any()) for mask in live):
            continue
        for k, operand in enumerate(call.operands):
            if operand is None:
                continue
            if call.kind in ("opaque", "reducing") or call.whole:
                needed[operand][:] = True
            elif call.kind == "mixing":
                needed[operand] |= spread(live[0], call.groups, len(needed[operand]))
            elif call.kind == "normalising":
                needed[operand] |= live[0] | (spread(live[0], call.groups, len(live[0])) & ~analysis.spared(call))
            elif call.kind == "movement" and not any((k, o) in call.maps for o in range(len(live))):
                needed[operand][:] = True  # an index
            else:
                for o, mask in enumerate(live):
                    if (mapping := call.maps.get((k, o))) is not None:
                        sources = mapping[mask]
                        needed[operand][sources[sources >= 0]] = True
    return replace(analysis, needed=needed)


def _need_attended(attention: Attention, constant: Sequence[Tensor], needed: Sequence[Tensor]) -> None:
    """Mark what an attention reads for those of its results that must be computed."""
    results, values = attention.results, attention.values
    live = (needed[results.whole] & constant[results.whole].isnan())[results.channels]
    if not bool(live.any()):
        return
    needed[values.whole][values.channels[live]] = True
    if attention.queries is not None and attention.keys is not None:
        pairs = pairs_that_count(attention, constant, live.any(1))
        for side in (attention.queries, attention.keys):
            needed[side.whole][side.channels[pairs]] = True
    for value in attention.external:
        needed[value][:] = True


def pairs_that_count(attention: Attention, constant: Sequence[Tensor], heads: Tensor) -> Tensor:
    """Return which products of a query channel with its key channel add anything to the scores.

    Args:
        attention: an attention whose queries and keys are followed.
        constant: per value, the constants of its channels; NaN for live channels.
        heads: which heads are used, bool of shape (heads,).

    Returns:
        bool of shape (heads, width).
    """
    assert attention.queries is not None and attention.keys is not None
    pairs = heads[:, None].expand(attention.queries.channels.shape)
    if not attention.cuts_pairs:
        return pairs
    for side in (attention.queries, attention.keys):
        pairs = pairs & (constant[side.whole][side.channels] != 0)  # NaN (live) differs from 0, too
    return pairs


def constants(
    trace: Trace, model: nn.Module, closed: Mapping[int, Tensor], normed: Mapping[int, Tensor]
) -> list[Tensor]:
    """Return the constants of every value's channels under gates; NaN for live channels (see :func:`analyse`)."""

    def under_gates(call: Call, output: int, known: Tensor) -> Tensor:
        return torch.where(closed[call.index], 0.0, known) if call.index in closed else known

    return _propagate(trace, model, normed, under_gates)


def physical_constants(
    trace: Trace,
    model: nn.Module,
    analysis: Analysis,
    present: Sequence[Tensor],
    closed: Mapping[int, Tensor],
    silent: Mapping[int, Tensor],
) -> list[Tensor]:
    """Return the constants of the slim network without its gates, once the weights of closed channels are zero.

    Args:
        trace: trace of ``model``.
        model: the dense network.
        analysis: the constants under gates, which layers have folded into their additive biases.
        present: per value, the channels that the slim network contains.
        closed: index of a gated call -> bool over the channels of its output, True where a gate closes the channel.
        silent: index of a call -> output channels whose weights are zero.
    """
    logical = analysis.constant

    def without_gates(call: Call, output: int, known: Tensor) -> Tensor:
        if call.kind == "mixing":
            known = logical[output]
            if call.index in closed:  # by a gate, and not by the layer
                known = torch.where(closed[call.index], float("nan"), known)
        if call.index in silent:
            known = torch.where(silent[call.index], 0.0, known)
        return torch.where(present[output], known, logical[output].nan_to_num(0.0))

    return _propagate(trace, model, analysis.normed, without_gates)


def _propagate(
    trace: Trace, model: nn.Module, normed: Mapping[int, Tensor], finish: Callable[[Call, int, Tensor], Tensor]
) -> list[Tensor]:
    """Compute the constants of all values in order; ``finish`` adjusts the result of each call."""
    known = [_given(model, value) for value in trace.values]
    for call in trace.calls:
        for o, output in enumerate(call.outputs):
            if call.kind == "mixing":
                known[output] = _mixed(call, known, model)
            elif (attention := trace.attention_of.get(call.index)) is not None:
                if call.index == attention.end:
                    known[output] = _attended(attention, known)
            elif call.kind == "normalising":
                known[output] = _normalised(call, known, model, trace.values[output], normed.get(call.index))
            elif call.kind not in ("reducing", "opaque"):
                known[output] = _evaluate(call, o, known, model)
            known[output] = finish(call, output, known[output])
    return known


def spread(channels: Tensor, groups: int, size: int) -> Tensor:
    """Return which channels on one side of a grouped layer meet any of ``channels`` (bool) on its other side."""
    return channels.view(groups, -1).any(1).repeat_interleave(size // groups)


def _given(model: nn.Module, value: Value) -> Tensor:
    """Return the entries of a value that is a parameter or made of some, one per channel; else, or if more, NaN."""
    tensor = None
    if value.call is None and value.parameter is not None:
        owner, _, leaf = value.parameter.rpartition(".")
        tensor = getattr(model.get_submodule(owner), leaf)
    elif value.call is None and value.origin is not None and math.prod(value.shape) == value.num_channels:
        tensor = value.origin.tensor(model)
    if tensor is None or tensor.numel() != value.num_channels:
        return torch.full((value.num_channels,), float("nan"), dtype=torch.float64)
    entries: Tensor = tensor.detach().double().reshape(-1).cpu()
    return entries


def _mixed(call: Call, known: list[Tensor], model: nn.Module) -> Tensor:
    """Return the output constants of a convolution or linear layer; NaN where an input is live or padding counts."""
    (operand, output) = (call.operands[0], call.outputs[0])
    result = torch.full_like(known[output], float("nan"))
    if operand is None or call.weights is None or call.whole:
        return result
    inputs = known[operand]
    settled = ~spread(inputs.isnan() | ((inputs != 0) & call.padded), call.groups, len(result))
    if bool(settled.any()):
        result[settled] = offset(model, call, torch.where(inputs.isnan(), 0.0, inputs))[settled]
        if (bias := call.weights.bias_of(model)) is not None:
            result[settled] += bias.detach().double().cpu()[settled]
    return result


def offset(model: nn.Module, call: Call, inputs: Tensor) -> Tensor:
    """Return what constant inputs add to each output channel of a convolution or linear layer, away from borders.

    Args:
        model: the dense network.
        call: a call of the layer.
        inputs: value of each input channel, float64 of shape (input channels,); 0 for channels that are left out.

    Returns:
        float64 of shape (output channels,).
    """
    assert call.weights is not None
    weight = call.weights.of(model)
    active = inputs.nonzero().flatten()
    if call.transposed:
        taps = weight.detach()[active].double().cpu()
        taps = taps.flatten(2).sum(2) if taps.ndim > 2 else taps  # (in, out / groups)
        per_group = torch.zeros(call.groups, taps.shape[1], dtype=torch.float64)
        group = active // (len(inputs) // call.groups)
        return per_group.index_add(0, group, taps * inputs[active, None]).flatten()
    size = weight.shape[1]
    result = torch.zeros(weight.shape[0], dtype=torch.float64)
    rows = weight.shape[0] // call.groups
    for group in set((active // size).tolist()):
        inside = active[active // size == group]
        taps = weight.detach()[group * rows : (group + 1) * rows, inside % size].double().cpu()
        result[group * rows : (group + 1) * rows] = (
            taps.flatten(2).sum(2) @ inputs[inside] if taps.ndim > 2 else (taps @ inputs[inside])
        )
    return result


def _attended(attention: Attention, known: Sequence[Tensor]) -> Tensor:
    """Return the constants of an attention's merged results: zero where the values are, as their weights are finite."""
    results, values = attention.results, attention.values
    result = torch.full((results.channels.numel(),), float("nan"), dtype=torch.float64)
    result[results.channels[known[values.whole][values.channels] == 0]] = 0.0
    return result


def _normalised(call: Call, known: list[Tensor], model: nn.Module, output: Value, left_out: Tensor | None) -> Tensor:
    """Return the output constants of a norm: where a whole group is constant, or where zeros or all else passes."""
    inputs = known[call.operands[0] or 0]
    if left_out is not None:
        return torch.where(left_out, inputs, float("nan"))
    is_live = spread(inputs.isnan(), call.groups, len(inputs))
    zeros = (inputs == 0) & (call.function in WITHOUT_MEAN)
    if bool((is_live & ~zeros).all()):
        return torch.full_like(inputs, float("nan"))
    shape = (1, -1, 1) if call.function == "group_norm" else output.compact or ()
    places = (1, len(inputs), 2) if call.function == "group_norm" else shape  # a group norm needs several entries
    given = {0: inputs.nan_to_num(0.0).view(shape).expand(places)}
    for name, slot in parameters_of(call).items():
        parameter = getattr(model.get_submodule(call.layer or ""), name)
        given[slot.position] = parameter.detach().double().cpu()
    args, kwargs = replace_tensors((call.args, call.kwargs), lambda slot: given[slot.position], Slot)
    result: Tensor = call.run(*args, **kwargs)
    result = result[..., 0].flatten() if call.function == "group_norm" else result.flatten()
    return torch.where(is_live & ~zeros, float("nan"), torch.where(zeros, 0.0, result))


def _evaluate(call: Call, output: int, known: list[Tensor], model: nn.Module) -> Tensor:
    """Return the constants of one output of a channelwise, elementwise or movement call."""
    operands: list[Tensor | None] = []
    for k, operand in enumerate(call.operands):
        mapping = call.maps.get((k, output))
        if operand is None or mapping is None:
            operands.append(None)
        else:
            values = known[operand][mapping.clamp(min=0)]
            operands.append(torch.where(mapping >= 0, values, 0.0))
    if call.kind == "movement" or call.function in ("cat", "stack"):
        parts = [(v, call.maps[k, output] >= 0) for k, v in enumerate(operands) if v is not None]
        if call.kind == "movement":
            return torch.stack([v for v, _ in parts]).sum(0)  # each channel comes from one operand
        first = parts[0][0]
        agree = torch.stack([v == first for v, _ in parts]).all(0)
        return torch.where(agree, first, float("nan"))
    inputs = operands[0]
    if call.function in _TRANSFER and inputs is not None and call.layer is not None:
        return _TRANSFER[call.function](call, inputs, model.get_submodule(call.layer))
    if call.weights is not None and inputs is not None:
        return _depthwise(call, inputs, model)
    if call.kind == "channelwise":
        assert inputs is not None
        unstable = call.function in COUNT_PLACES or call.function in ("batch_norm", "instance_norm")
        unstable |= output > 0 and call.function in KEEP_CONSTANTS and call.function != "aminmax"  # a place
        return torch.where((inputs != 0) & call.padded | unstable, float("nan"), inputs)
    if call.function in _PASSES or "dropout" in call.function:
        assert inputs is not None
        return inputs
    return _elementwise(call, operands)


def _elementwise(call: Call, operands: list[Tensor | None]) -> Tensor:
    """Return the constants of an elementwise call by running its function on the constants of its operands."""
    present = [v for v in operands if v is not None]
    if call.function in LOGICAL:
        return torch.full_like(present[0], float("nan"))
    if call.function == "masked_fill":  # where nobody knows
        filled = call.argument(2, "value")
        same = present[0] == filled if isinstance(filled, (int, float)) else torch.zeros_like(present[0]).bool()
        return torch.where(same, present[0], float("nan"))
    condition = condition_of(call)
    if condition is not None and (choice := operands[condition]) is not None:
        operands = [choice != 0 if k == condition else v for k, v in enumerate(operands)]
    args, kwargs = replace_tensors(
        (call.args, call.kwargs), lambda slot: _copy(operands[slot.position], present[0]), Slot
    )
    kwargs = {key: value for key, value in kwargs.items() if key not in ("out", "inplace")}
    result: Tensor = call.run(*args, **kwargs)
    if call.function == "mul":
        return torch.where(torch.stack([v == 0 for v in present]).any(0), 0.0, result)
    if call.function == "div" and len(operands) == 2 and operands[0] is not None:
        divisor = _copy(operands[1], operands[0])
        return torch.where((operands[0] == 0) & divisor.isnan(), 0.0, result)
    unknown = torch.stack([v.isnan() for v in present]).any(0)
    if condition is not None:
        choices = [v for k, v in enumerate(operands) if k != condition and v is not None]
        agree = choices[0] == choices[-1] if len(choices) == 2 else torch.zeros_like(unknown)
        return torch.where(unknown, torch.where(agree, choices[0], float("nan")), result.double())
    if call.function in COMPARISONS:  # which say something of NaN
        return torch.where(unknown, float("nan"), result.double())
    return result


def condition_of(call: Call) -> int | None:
    """Return the position of the operand that says where a choice takes what; None for other calls."""
    if call.function == "masked_fill":
        slot = call.argument(1, "mask")
    elif call.function == "where":
        first = call.args[1 if call.run is Tensor.where else 0] if call.args else None
        slot = call.kwargs.get("condition", first)
    else:
        return None
    return slot.position if isinstance(slot, Slot) else None


def _copy(values: Tensor | None, like: Tensor) -> Tensor:
    """Return a copy of an operand's constants; NaN for an operand that is not followed."""
    return values.clone() if values is not None else torch.full_like(like, float("nan"))


def _batch_norm(call: Call, inputs: Tensor, norm: nn.Module) -> Tensor:
    """Return the output constants of a batch norm; NaN where it uses the statistics of the batch."""
    mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
    if mean is None or var is None or call.argument(5, "training", False):
        return torch.full_like(inputs, float("nan"))  # it uses the statistics of the batch
    scale: Tensor = (var.detach().double() + call.argument(7, "eps", 1e-5)).rsqrt()
    scale = scale * norm.weight.detach().double() if isinstance(norm.weight, Tensor) else scale
    shift = norm.bias.detach().double() if isinstance(norm.bias, Tensor) else torch.zeros_like(scale)
    shift = shift - mean.detach().double() * scale
    moved: Tensor = inputs * scale.cpu() + shift.cpu()
    return moved


def _depthwise(call: Call, inputs: Tensor, model: nn.Module) -> Tensor:
    """Return the output constants of a depthwise convolution."""
    assert call.weights is not None
    weight, bias = call.weights.of(model), call.weights.bias_of(model)
    taps = weight.detach().double().flatten(1).sum(1).cpu()
    result = torch.where((inputs != 0) & call.padded, float("nan"), inputs * taps)
    return result if bias is None else result + bias.detach().double().cpu()


def _prelu(call: Call, inputs: Tensor, layer: nn.Module) -> Tensor:
    """Return the output constants of a PReLU."""
    assert isinstance(layer.weight, Tensor)
    return torch.where(inputs < 0, inputs * layer.weight.detach().double().cpu(), inputs)


_TRANSFER: dict[str, Callable[[Call, Tensor, nn.Module], Tensor]] = {"batch_norm": _batch_norm, "prelu": _prelu}

"""Gates (BISE, Eq. 2): one value per channel on the outputs of nonlinearities, and models that have them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .artifacts import GateCall, GateSite, MaskSet
from .channels import lay_out
from .config import PLACEMENTS, Placement
from .errors import ConfigError, ModelError
from .normalisation import normalise_open
from .tracing import NONLINEARITIES, Call, FunctionMode, Inputs, Nonlinearity, Trace, function_name, trace


def gate_sites(model: nn.Module, example_inputs: Inputs, placement: Placement = "tied") -> list[GateSite]:
    """Where gates sit in ``model``: the outputs of its nonlinearities, found by running it once.

    Args:
        model: any network that runs in Python and ends in a linear head; never changed.
        example_inputs: its input(s), batch first.
        placement: "paper" = one mask per gated output; the stem of a branching network (its first nonlinearity, if
            it comes before the first fork) has none, as in the paper's ResNet-18 (3,840 mask logits). In a transformer
            with layer norms behind its sums (BERT), gates sit in front of the nonlinearities and on what feed-forward
            blocks add to the stream, whose layer norm then leaves closed channels out (46,848 logits in BERT-base).
            "tied" = outputs whose channels belong to one dependency group share one mask, the stem's included, and
            only where a closed channel can be removed from the plain network.

    Returns:
        The sites in order of execution.

    Raises:
        ModelError: the network has no linear head or no nonlinearity before it.
        ConfigError: an unknown placement.
    """
    record = trace(model, example_inputs)
    return sites_in(record, model, placement)


def sites_in(record: Trace, model: nn.Module, placement: Placement) -> list[GateSite]:
    """:func:`gate_sites` for a forward pass already traced."""
    if placement not in PLACEMENTS:
        raise ConfigError(f"unknown placement '{placement}': choose one of {', '.join(PLACEMENTS)}")
    head = record.head
    if head is None:
        raise ModelError(
            "the network's logits are not the channels of one linear or convolutional layer, so that it has no "
            "classifier to leave alone; wrap it so that it ends in one"
        )
    eligible = [n for n in record.nonlinearities if n.index not in record.scales and n.call < head.index]
    if not eligible:
        raise ModelError(f"the network has no nonlinearity before its head '{head.layer}', so there is nothing to gate")
    return _paper_sites(eligible, record) if placement == "paper" else _tied_sites(eligible, model, record)


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


def sites_of(masks: MaskSet, model: nn.Module, example_inputs: Inputs) -> list[GateSite]:
    """The gate sites of ``model`` that ``masks`` were learned for, in either placement.

    Raises:
        ModelError: the masks belong to another network.
    """
    return matching_sites(trace(model, example_inputs), model, masks)


def matching_sites(record: Trace, model: nn.Module, masks: MaskSet) -> list[GateSite]:
    """:func:`sites_of` for a forward pass already traced."""
    wanted = {name: len(logits) for name, logits in masks.logits.items()}
    complaint = ""
    for placement in reversed(PLACEMENTS):  # the paper's are found at once
        try:
            sites = sites_in(record, model, placement)
        except ModelError as error:
            complaint += f"; {placement}: {error}"
            continue
        found = {site.name: site.num_channels for site in sites}
        if found == wanted:
            return sites
        foreign = [name for name in wanted if name not in found]
        missing = [name for name in found if name not in wanted]
        sizes = [name for name in wanted if name in found and wanted[name] != found[name]]
        complaint += f"; {placement}: unknown {foreign[:3]}, missing {missing[:3]}, other length {sizes[:3]}"
    raise ModelError(f"the masks do not belong to this network{complaint}")


def apply_masks(model: nn.Module, masks: MaskSet, example_inputs: Inputs) -> GatedModel:
    """A copy of ``model`` in eval mode that computes the masked function: closed channels read as zero.

    Args:
        model: the dense network; never changed.
        masks: its masks, with what else the search changed.
        example_inputs: its input(s), batch first.

    Raises:
        ModelError: the masks belong to another network.
    """
    sites = sites_of(masks, model, example_inputs)
    return constant_gates(with_learned_state(copy.deepcopy(model), masks).eval(), sites, masks.keep)


def with_learned_state(model: nn.Module, masks: MaskSet) -> nn.Module:
    """``model`` with the parameters and buffers that the search changed; a copy, if there are any.

    Raises:
        ModelError: the network has no such tensors.
    """
    if not masks.state:
        return model
    model = copy.deepcopy(model)
    own = model.state_dict()
    for name, tensor in masks.state.items():
        if name not in own or own[name].shape != tensor.shape:
            raise ModelError(f"the masks come with '{name}' {tuple(tensor.shape)}, which this network does not have")
    model.load_state_dict(dict(masks.state), strict=False)
    return model


def constant_gates(model: nn.Module, sites: Sequence[GateSite], keep: Mapping[str, Tensor]) -> GatedModel:
    """``model`` itself, run with fixed masks (bool, True = keep) on its gate sites."""
    parameter = next(model.parameters())
    return GatedModel(model, sites, ConstantGates([keep[site.name].to(parameter) for site in sites]))


def least_open(num_channels: int, floor: float) -> int:
    """Channels of a site that a target leaves open: the share ``floor``, and one at least."""
    return max(1, math.ceil(floor * num_channels - 1e-9))


class _Step(torch.autograd.Function):
    """1{sigma(m / tau) >= .5} = 1{m >= 0}; straight through the step, so its gradient is sigma'(m / tau) / tau."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.temperature = temperature
        return (logits >= 0).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (logits,) = ctx.saved_tensors
        return grad_outputs[0] * step_slope(logits, ctx.temperature), None


def step_slope(logits: Tensor, temperature: float) -> Tensor:
    """What stands for the derivative of :func:`step_gate`: sigma'(m / tau) / tau."""
    probability = torch.sigmoid(logits / temperature)
    return probability * (1 - probability) / temperature


def step_gate(logits: Tensor, temperature: float) -> Tensor:
    """The gate of Eq. (2), with the paper's straight-through gradient.

    Args:
        logits: mask logits m, any shape.
        temperature: tau > 0; it changes the gradient alone.

    Returns:
        1 where m >= 0 and 0 elsewhere, in the logits' dtype.
    """
    return _Step.apply(logits, temperature)  # type: ignore[no-any-return]


class LearnedGates(nn.Module):
    """Gates under training: the mask logits m of all sites in one tensor, all equal at first (Algorithm 1, line 1).

    Args:
        sizes: channels per site.
        initial_logit: m at the start.
        dtype: precision.
    """

    def __init__(self, sizes: Sequence[int], initial_logit: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.logits = nn.Parameter(torch.full((sum(sizes),), initial_logit, dtype=dtype))
        self.temperature = 1.0

    def flat(self) -> Tensor:
        """The values of all gates, shape (channels of all sites,)."""
        return step_gate(self.logits, self.temperature)

    def forward(self) -> Sequence[Tensor]:
        """The values of the gates, one tensor of shape (channels,) per site."""
        return list(self.flat().split(self.sizes))


class ConstantGates(nn.Module):
    """Decided masks, 0 and 1, one tensor of shape (channels,) per site."""

    def __init__(self, masks: Sequence[Tensor]) -> None:
        super().__init__()
        for index, mask in enumerate(masks):
            self.register_buffer(str(index), mask)

    def forward(self) -> Sequence[Tensor]:
        """The masks."""
        return list(self.buffers())


class GatedModel(nn.Module):
    """A network whose nonlinearities' outputs are multiplied by gates: h_i * gate_i (Eq. 2).

    The network runs unmodified; the outputs are caught on their way, by position in the forward pass, so modules that
    are called several times (one ReLU for a whole residual block) have one gate per call.

    Args:
        model: the network.
        sites: its gate sites.
        gates: returns one tensor of shape (channels,) per site.
    """

    def __init__(self, model: nn.Module, sites: Sequence[GateSite], gates: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.gates = gates
        self.sites = tuple(sites)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own forward pass, gated."""
        with self.gating(self.gates()):
            return self.model(*args, **kwargs)

    def gating(self, values: Sequence[Tensor]) -> FunctionMode:
        """The mode under which the network runs with the given values of its gates.

        Args:
            values: one tensor per site, of shape (channels,), or (N, channels) to give each sample its own.
        """
        table: dict[tuple[str, int], tuple[Tensor, int]] = {
            (call.kind, call.index): (value, call.dim)
            for site, value in zip(self.sites, values, strict=True)
            for call in site.calls
        }
        return _Gating(table)


class _Gating(FunctionMode):
    def __init__(self, values: Mapping[tuple[str, int], tuple[Tensor, int]]) -> None:
        super().__init__()
        self.values = values
        self.counts = {"nonlinearity": 0, "linear": 0, "layer_norm": 0}

    def outcome(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = function_name(func)
        kind = "nonlinearity" if name in NONLINEARITIES else name
        if kind not in self.counts:
            return self.passed_on(func, args, kwargs)
        index = self.counts[kind]
        self.counts[kind] = index + 1
        if (kind, index) not in self.values:
            return self.passed_on(func, args, kwargs)
        gate, dim = self.values[kind, index]
        if kind == "layer_norm":
            return normalise_open(gate, *args, **kwargs)
        output = self.passed_on(func, args, kwargs)
        shape = [1] * output.ndim
        shape[dim] = -1
        if gate.ndim == 2:
            shape[0] = len(gate)
        return output * gate.reshape(shape)


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


def _paper_sites(eligible: list[Nonlinearity], record: Trace) -> list[GateSite]:
    normalised = {n.index: place for n in eligible if (place := _layer_norm_behind(n, record)) is not None}
    if normalised:
        return _transformer_sites(eligible, normalised, record)
    fork = record.first_fork
    has_stem = fork is not None and eligible[0].call < fork and len(eligible) > 1
    gated = eligible[1:] if has_stem else eligible
    return _named([(n.layer or f"{n.function}.{n.index}", n.num_channels, (_gate_on(n),)) for n in gated])


def _gate_on(n: Nonlinearity) -> GateCall:
    return GateCall(n.index, n.dim, n.layer)


def _named(places: Sequence[tuple[str, int, tuple[GateCall, ...]]]) -> list[GateSite]:
    counts: dict[str, int] = {}
    sites = []
    for base, num_channels, calls in places:
        count = counts[base] = counts.get(base, 0) + 1
        sites.append(GateSite(base if count == 1 else f"{base}@{count - 1}", num_channels, calls))
    return sites


def _transformer_sites(
    eligible: list[Nonlinearity], normalised: Mapping[int, tuple[Call, Call]], record: Trace
) -> list[GateSite]:
    """Gates in front of the nonlinearities, and on what feed-forward blocks add to the stream before its layer norm."""
    places: list[tuple[str, int, tuple[GateCall, ...]]] = []
    for n in eligible:
        layer = _linear_before(n, record)
        gate = _gate_on(n) if layer is None else GateCall(layer.count, n.dim, layer.layer, "linear")
        places.append((n.layer or f"{n.function}.{n.index}", n.num_channels, (gate,)))
        if n.index in normalised:
            second, norm = normalised[n.index]
            value = record.values[second.outputs[0]]
            dim = len(value.shape) - 1
            calls = (
                GateCall(second.count, dim, second.layer, "linear"),
                GateCall(norm.count, dim, norm.layer, "layer_norm"),
            )
            places.append((second.layer or f"linear.{second.count}", value.shape[-1], calls))
    return _named(places)


def _linear_before(n: Nonlinearity, record: Trace) -> Call | None:
    """The linear layer whose output the nonlinearity reads, if nothing is in between."""
    operand = record.calls[n.call].operands[0]
    source = None if operand is None else record.values[operand].call
    call = None if source is None else record.calls[source]
    return call if call is not None and call.function == "linear" else None


def _layer_norm_behind(n: Nonlinearity, record: Trace) -> tuple[Call, Call] | None:
    """The second linear layer of a post-norm feed-forward block, and the layer norm behind its sum with the stream."""
    readers = record.values[record.calls[n.call].outputs[0]].readers
    calls = [record.calls[reader] for reader in readers]
    if len(calls) != 1 or calls[0].function != "linear":
        return None
    second, seen = calls[0], {"add": 0}
    call = second
    while True:
        readers = record.values[call.outputs[0]].readers if call.outputs else []
        if len(readers) != 1:
            return None
        call = record.calls[readers[0]]
        if call.function == "layer_norm":
            return (second, call) if seen["add"] == 1 else None
        if call.function not in ("dropout", "add"):
            return None
        seen["add"] += call.function == "add"


def _tied_sites(eligible: list[Nonlinearity], model: nn.Module, record: Trace) -> list[GateSite]:
    stream = _streams(record)
    tied: dict[int, list[Nonlinearity]] = {}
    for n in eligible:
        (output,) = record.calls[n.call].outputs
        if n.layer is not None and record.values[output].num_channels == n.num_channels:
            tied.setdefault(stream[output], []).append(n)
    sites = []
    for members in _removable(list(tied.values()), model, record):
        name = members[0].layer or ""
        name += f"+{len(members) - 1}" if len(members) > 1 else ""
        sites.append(GateSite(name, members[0].num_channels, tuple(_gate_on(n) for n in members)))
    if not sites:
        raise ModelError("no closed channel of this network could be removed; use placement='paper'")
    return sites


def _streams(record: Trace) -> list[int]:
    """Per value, the first one that must have the same channels: joined one to one, or computed channel by channel."""
    parent = list(range(len(record.values)))

    def first(value: int) -> int:
        while parent[value] != value:
            value = parent[value]
        return value

    by_layer: dict[str, Call] = {}
    for call in record.calls:
        pairs = [
            (operand, output)
            for k, operand in enumerate(call.operands)
            for o, output in enumerate(call.outputs)
            if operand is not None
            and call.keeps(k, o)
            and record.values[operand].num_channels == record.values[output].num_channels
        ]
        if call.layer is not None:
            other = by_layer.setdefault(call.layer, call)
            pairs.append((other.outputs[0], call.outputs[0]))
        for one, two in pairs:
            low, high = sorted((first(one), first(two)))
            parent[high] = low
    return [first(value) for value in range(len(parent))]


def _removable(tied: list[list[Nonlinearity]], model: nn.Module, record: Trace) -> list[list[Nonlinearity]]:
    """Those of which a channel that all members close can go from all of them, whatever the others close.

    Found out by closing half of the channels of each at random.
    """
    generator = torch.Generator().manual_seed(0)
    masks = []
    for members in tied:
        size = members[0].num_channels
        masks.append(torch.randperm(size, generator=generator) < max(1, size // 2))
    closed = {n.call: mask for members, mask in zip(tied, masks, strict=True) for n in members}
    layout = lay_out(record, model, closed, "intersection")
    return [
        members
        for members, mask in zip(tied, masks, strict=True)
        if not any(bool((layout.present[record.calls[n.call].outputs[0]] & mask).any()) for n in members)
    ]

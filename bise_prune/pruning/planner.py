"""Planning: from masks and a target to a plan, before any layer is changed."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..channels import NO_DEMANDS, Demands, Edit, Joins, Layout, Lowering, lay_out, lower
from ..channels.folding import folded_inputs
from ..config import FARTHEST, Rounding, Target
from ..errors import ChanceLevelError, ConfigError, PruningError, counted
from ..gates.masks import GateSite, MaskSet
from ..gates.ranking import least_open, tie_free
from ..tracing import Attention, Call, Inputs, Reason, Trace, Why, tensors_in, trace
from .plan import LayerPlan, PruningPlan, digest
from .surgery import cut


class DeadNetworkError(ChanceLevelError):
    """Raised if nothing of the input would reach the logits."""


@dataclass(frozen=True)
class Proposal:
    """A plan with the layout and the edits that carry it out.

    Attributes:
        plan: which channels are removed, for people and for the plan file.
        layout: which channels of every tensor the slim network contains.
        lowering: the edits of function calls.
    """

    plan: PruningPlan
    layout: Layout
    lowering: Lowering


class Planner:
    """Makes plans from masks for one network, which is traced once.

    Args:
        model: the dense network; never changed.
        sites: its gate sites.
        example_inputs: its input(s), batch first.
        record: its trace, if it has already been traced.
        rounding: how the numbers of kept channels are rounded up; None = not at all.
        demands: what the forward pass does not run without.

    Attributes:
        trace: the trace of the network.
        params: number of parameters of the dense network.
        macs: its multiply-accumulates in convolutions, linear layers and attention, for one sample.
        batch_size: number of samples in ``example_inputs``.
        cuts: the networks that were cut last, at most two.

    Raises:
        ConfigError: the example inputs hold no sample.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[GateSite],
        example_inputs: Inputs,
        *,
        record: Trace | None = None,
        rounding: Rounding | None = None,
        demands: Demands = NO_DEMANDS,
    ) -> None:
        self.model, self.sites, self.example_inputs = model, list(sites), example_inputs
        self.trace = record if record is not None else trace(model, example_inputs)
        self.rounding = rounding or Rounding()
        self.demands = demands
        self.cuts = deque[nn.Module](maxlen=2)
        self.params = sum(parameter.numel() for parameter in model.parameters())
        first = next(tensors_in([example_inputs]), None)
        self.batch_size = len(first) if first is not None and first.ndim else 1
        if not self.batch_size:
            raise ConfigError("example_inputs hold no sample; at least one is needed to watch the forward pass")
        self.macs = sum(call.macs for call in self.trace.calls) // self.batch_size

    def propose(self, keep: Mapping[str, Tensor], joins: Joins) -> Proposal:
        """Return the plan for the masked network with exactly these channels open.

        Args:
            keep: site name -> mask, bool of shape (channels,), True = keep.
            joins: lowering, "intersection" or "expand"; see :func:`bise_prune.channels.lay_out`.

        Raises:
            DeadNetworkError: nothing of the input would reach the logits.
        """
        closed: dict[int, Tensor] = {}
        normed: dict[int, Tensor] = {}
        for site in self.sites:
            for gate in site.calls:
                call = self.trace.call_of[gate.key]
                places = normed if gate.is_layer_norm else closed
                shut = gate.spread(~keep[site.name].cpu(), False)
                places[call.index] = places.get(call.index, torch.zeros_like(shut)) | shut
        multiple = self.rounding.multiple
        layout = lay_out(
            self.trace, self.model, closed, joins,
            rounding=(lambda kept: math.ceil(kept / multiple) * multiple) if multiple > 1 else None,
            demands=self.demands,
            normed=normed,
        )  # fmt: skip
        if not any(bool(layout.analysis.live(value).any()) for value in self.trace.inputs):
            raise DeadNetworkError(
                "a dead network: with these masks nothing of the input reaches the logits; open more channels"
            )
        lowering = lower(layout, self.model)
        return Proposal(self._plan(keep, layout, lowering, joins), layout, lowering)

    def rank(
        self,
        masks: MaskSet,
        joins: Joins,
        target: Target,
        removed: Callable[[Proposal], float],
        floor: float = 0.0,
    ) -> Proposal:
        """Return the plan that closes the channels of lowest mask logit until the target is reached.

        Args:
            masks: the mask logits to rank by.
            joins: lowering, "intersection" or "expand".
            target: the size to reach; how far it is missed is not checked if widths are rounded.
            removed: function that returns the share a proposal removes; it grows with the number of closed channels.
            floor: share of each site's channels, those of highest mask logit, that is never closed; at least one
                channel.

        Raises:
            PruningError: the target is missed by more than five points; the message names the nearest share.
        """
        names = [site.name for site in self.sites]
        parts = tie_free([masks.logits[name] for name in names])
        for part in parts:
            part[part.topk(least_open(len(part), floor)).indices] = float("inf")
        scores, sizes = torch.cat(parts), [len(part) for part in parts]
        order = scores.argsort(stable=True)

        def closing(count: int) -> tuple[float, Proposal | None]:
            keep = torch.ones(len(scores), dtype=torch.bool)
            keep[order[:count]] = False
            split = dict(zip(names, keep.split(sizes), strict=True))
            try:
                proposal = self.propose(self.rounded_up(split, masks), joins)
            except DeadNetworkError:  # more channels than can be closed
                return float("inf"), None
            return removed(proposal), proposal

        low, high = 0, int(torch.isfinite(scores).sum())
        below, above = closing(low), closing(high)
        if above[0] < target.removed:
            low, below = high, above
        while high - low > 1:
            middle = (low + high) // 2
            tried = closing(middle)
            if tried[0] <= target.removed:
                low, below = middle, tried
            else:
                high, above = middle, tried
        reached, nearest = min((below, above), key=lambda pair: abs(pair[0] - target.removed))
        assert nearest is not None  # closing no channel is always possible
        if abs(reached - target.removed) > FARTHEST and self.rounding.multiple == 1:
            hint = f" with {floor:g} of every layer kept: lower the layer floor" if floor else ""
            raise PruningError(
                f"no ranking of the channels comes within {counted(FARTHEST * 100, 'point')} of target "
                f"{target.name} {target.removed:g}; the nearest reachable is {reached:.4f}"
                f"{hint if reached < target.removed else ''}"
            )
        outcome = {**outcome_of(target, reached), "layer_floor": floor}
        return replace(nearest, plan=replace(nearest.plan, target=outcome))

    def rounded_up(self, keep: Mapping[str, Tensor], masks: MaskSet) -> dict[str, Tensor]:
        """Return the masks with the best closed channels opened again, where rounding fills up with these.

        So it does if it is set to, and in any case for streams whose layer norms run over open channels: a channel of
        zeros would have to be left out of each norm, which takes longer than the norm itself.
        """
        opened = dict(keep)
        for site in self.sites if self.rounding.multiple > 1 else ():
            leaves_out = site.is_stream and any(gate.is_layer_norm for gate in site.calls)
            if self.rounding.fill != "best" and not leaves_out:
                continue
            mask, width = keep[site.name], max(1, (site.calls[0].entries or (0,)).count(0))  # channels for an entry
            kept = math.ceil(int(mask.sum()) * width / self.rounding.multiple) * self.rounding.multiple
            logits = masks.logits[site.name].cpu().double()
            ranked = torch.where(mask, float("inf"), logits).argsort(descending=True)
            opened[site.name] = mask.clone()
            opened[site.name][ranked[: min(math.ceil(kept / width), len(mask))]] = True
        return opened

    def cut(self, proposal: Proposal) -> nn.Module:
        """Return the slim network of a proposal; see :func:`bise_prune.pruning.surgery.cut`."""
        slim = cut(self.model, proposal.layout, proposal.lowering)
        self.cuts.append(slim)
        return slim

    # -- describing the plan -------------------------------------------------------------------------

    def _plan(self, keep: Mapping[str, Tensor], layout: Layout, lowering: Lowering, joins: Joins) -> PruningPlan:
        """Describe a layout and its edits as a plan."""
        layers, saved = {}, 0
        for name, calls in self.trace.calls_by_layer.items():
            call = calls[0]
            rows = layout.present[call.outputs[0]]
            columns = _columns(call, layout)
            saved += _saved(self.model, call, layout, calls, name in layout.dead)
            if not bool(rows.all()) or not (columns is None or bool(columns.all())):
                layers[name] = LayerPlan(
                    tuple(rows.nonzero().flatten().tolist()),
                    len(rows),
                    None if columns is None else tuple(columns.nonzero().flatten().tolist()),
                    None if columns is None else len(columns),
                )
        for value in self.trace.values:
            present = layout.present[value.index]
            if value.parameter is not None and value.dim is not None and bool(present.any()):
                owner, _, leaf = value.parameter.rpartition(".")
                if leaf in self.model.get_submodule(owner)._parameters:
                    saved += math.prod(value.shape) // len(present) * int((~present).sum())
        macs = sum(_macs(self.model, call, layout) for call in self.trace.calls) // self.batch_size
        edits = tuple(f"{edit.function} number {edit.count + 1}: {_in_words(edit)}" for edit in lowering.edits)
        return PruningPlan(
            keep=dict(keep),
            layers=layers,
            params=(self.params, self.params - saved),
            macs=(self.macs, macs),
            joins=joins if edits or joins == "intersection" else "dense",
            edits=edits,
            reasons=self._reasons(keep, layout),
            not_followed=self._not_followed(),
            edits_digest=digest(lowering.edits),
        )

    def _not_followed(self) -> tuple[Reason, ...]:
        """Return why function calls are not followed and which modules do not run."""
        calls = [
            call.why
            for call in self.trace.calls
            if call.why is not None and not call.why.why.is_consequence and call.index not in self.trace.attention_of
        ]
        idle = [Reason(Why.IDLE, layer=name) for name in self.trace.unused]
        return (*dict.fromkeys(calls), *idle)

    def _reasons(self, keep: Mapping[str, Tensor], layout: Layout) -> dict[str, dict[Reason, tuple[int, ...]]]:
        """Return, for each site, why closed channels are still present, and which."""
        reasons: dict[str, dict[Reason, tuple[int, ...]]] = {}
        for site in self.sites:
            causes: dict[Reason, list[int]] = {}
            closed = ~keep[site.name].cpu()
            for gate in site.calls:
                if gate.is_layer_norm:
                    continue
                call = self.trace.call_of[gate.key]
                places = [call.outputs[0]]
                if gate.layer is not None and (producers := self.trace.calls_of(gate.layer)):
                    places.append(producers[0].outputs[0])
                shut, entries = gate.spread(closed, False), gate.entries
                for value in places:
                    if len(layout.present[value]) == len(shut):
                        for channel in (layout.present[value] & shut).nonzero().flatten().tolist():
                            entry = channel if entries is None else entries[channel]
                            channels = causes.setdefault(layout.reason(value, channel), [])
                            if entry not in channels:
                                channels.append(entry)
            if causes:
                reasons[site.name] = {why: tuple(sorted(channels)) for why, channels in causes.items()}
        return reasons


def outcome_of(target: Target, reached: float) -> dict[str, Any]:
    """Return a target with the share that was removed, as a mapping for :attr:`PruningPlan.target`."""
    return {"kind": target.kind, "of": target.name, "asked": target.removed, "reached": reached}


def outcome_after(planned: PruningPlan, plan: PruningPlan) -> dict[str, Any]:
    """Return the outcome of a plan's target, with the share that another plan for the same network removes.

    A latency would have to be measured again: its share stays as it is.
    """
    target = dict(planned.target)
    removed = planned.macs[0] - planned.macs[1]
    if target and target["kind"] == "sparsity":
        target["reached"] = plan.sparsity
    elif target and target["kind"] == "flops" and removed:
        target["reached"] *= (plan.macs[0] - plan.macs[1]) / removed
    return target


def _in_words(edit: Edit) -> str:
    """Describe an edit in words."""
    if edit.action in ("skip", "copy"):
        gathered = [change for change in edit.results if change is not None]
        return f"skipped, its operand {edit.operand + 1} " + ("rearranged" if gathered else "passed on")
    parts = [
        f"operand {k + 1} rearranged from {c.present} to {len(c.index)} channels" for k, c in edit.operands.items()
    ]
    parts += [f"operand {k + 1} replaced by constants" for k in edit.fixed]
    parts += [f"operand {k + 1} left out" for k in edit.dropped]
    if edit.statistics is not None:
        parts.append(f"statistics over {edit.statistics.count(True)} of {len(edit.statistics)} channels")
    if edit.number is not None:
        parts.append(f"with {edit.number:g}")
    if edit.groups is not None:
        parts.append(f"{edit.groups} groups")
    if edit.share is not None:
        parts.append(f"mean taken over all channels, of which {edit.share:.0%} are left")
    if edit.zeros is not None:
        parts.append(f"{edit.zeros} channels of zeros put back for the statistics")
    if edit.scale is not None:
        parts.append("scores scaled as for heads of full width")
    if edit.mask is not None:
        parts.append(f"{edit.mask[1].count(False)} of {len(edit.mask[1])} channels multiplied by zero")
    return ", ".join(parts)


def _columns(call: Call, layout: Layout) -> Tensor | None:
    """Return the input channels of a layer that stay; None for layers without separate input channels."""
    operand = call.operands[0]
    if call.kind != "mixing" or operand is None or call.whole:
        return None
    return layout.present[operand]


def _size(call: Call, layout: Layout, model: nn.Module) -> tuple[int, int]:
    """Return the number of entries of a layer's weight in the slim network, and its number of output channels there."""
    assert call.weights is not None
    weight = call.weights.of(model)
    inputs = weight.shape[0] if call.transposed else weight.shape[1] * call.groups
    taps = math.prod(weight.shape[2:])
    rows = int(layout.present[call.outputs[0]].sum())
    columns, groups = _columns(call, layout), call.groups
    if columns is not None:
        inputs = int(columns.sum())
        groups = int(columns.view(call.groups, -1).any(1).sum())
    return rows * inputs // max(groups, 1) * taps, rows


def _saved(model: nn.Module, call: Call, layout: Layout, calls: Sequence[Call], dead: bool) -> int:
    """Return the number of parameters that a layer loses (negative if it gains an additive bias)."""
    rows = layout.present[call.outputs[0]]
    if call.weights is None:  # e.g. a batch norm
        layer = model.get_submodule(call.layer or "")
        # Buffers are not counted, nor other parameters that the module reads itself.
        own = [parameter for leaf in ("weight", "bias") if (parameter := layer._parameters.get(leaf)) is not None]
        if dead:
            return sum(parameter.numel() for parameter in own)
        per_channel = [parameter for parameter in own if parameter.ndim and len(parameter) == len(rows)]
        return sum(p.numel() // len(rows) * int((~rows).sum()) for p in per_channel) if bool(rows.any()) else 0
    fold = layout.fold_of(call.layer or "")
    if fold is None and call.layer in layout.trace.folds:
        return 0  # the weights stay as they are made
    spent = sum(_parameters(model, name) for name in (fold.spent if fold is not None else ()))
    weight, bias = (0 if o is None else _parameters(model, o.name) for o in (call.weights.weight, call.weights.bias))
    if dead:
        return weight + bias
    if not bool(rows.any()):
        return spent
    if call.kind != "mixing":
        return spent + (weight + bias) // len(rows) * int((~rows).sum())
    entries, kept = _size(call, layout, model)
    has_bias = bias > 0
    if not has_bias and _columns(call, layout) is not None:
        folded, operand = folded_inputs(call, calls, layout.analysis), call.operands[0]
        assert operand is not None
        has_bias = bool((folded & (layout.analysis.constant[operand].nan_to_num(0.0) != 0)).any())
    return spent + weight + bias - (entries if weight else 0) - (kept if has_bias else 0)


def _parameters(model: nn.Module, name: str) -> int:
    """Return the number of entries of a parameter by its full name; 0 if it is a buffer, or not there."""
    owner, _, leaf = name.rpartition(".")
    parameter = model.get_submodule(owner)._parameters.get(leaf)
    return 0 if parameter is None else parameter.numel()


def _macs(model: nn.Module, call: Call, layout: Layout) -> int:
    """Return the multiply-accumulates of one call in the slim network, for the whole example batch."""
    attention = layout.trace.attention_of.get(call.index)
    if call.macs and attention is not None and call.index in attention.products:
        return round(call.macs * _share_attended(layout, attention, attention.products.index(call.index)))
    if not call.macs or call.weights is None:
        return call.macs
    return call.macs // call.weights.of(model).numel() * _size(call, layout, model)[0]


def _share_attended(layout: Layout, attention: Attention, number: int) -> float:
    """Return the share that is left of a product of an attention: its only one, or that of the scores or results."""
    kept, pairs = layout.heads_kept(attention)
    pairs = torch.ones(len(kept), attention.width).bool() if pairs is None else pairs
    if len(attention.products) == 1:
        return int(kept.sum() + pairs.sum()) / (kept.numel() + pairs.numel())
    return float((kept if number else pairs).double().mean())

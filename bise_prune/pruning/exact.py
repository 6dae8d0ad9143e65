"""Pruning that is exact: plan, removal, and the comparison of the slim network with the masked one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..channels import Joins
from ..channels.edited_model import RewiredModel
from ..config import (
    ENGINES,
    JOINS,
    Engine,
    JoinsChoice,
    RoundFill,
    Rounding,
    RoundTo,
    Target,
    TargetSparsity,
)
from ..errors import BiseError, ConfigError, ModelError, PruningError, VerificationError
from ..gates.gated_model import constant_gates, with_learned_state
from ..gates.masks import GateSite, MaskSet
from ..gates.sites import matching_sites
from ..metrics.cost import measure, measure_latency
from ..tracing import NONLINEARITIES, Inputs, Reason, Trace, Why, trace
from .plan import LayerPlan, PruningPlan, fingerprint
from .planner import Planner, Proposal
from .surgery import cut
from .verification import Verification, require, verify

# Multiples at which kernels are fast: 16 in onnxruntime's CPU convolutions, 8 on tensor cores.
_AUTO_MULTIPLE = {"cpu": 16, "cuda": 8}
_LATENCY_RUNS = 15
_AS_FAST = 1.05  # what two timings of one network differ by


@dataclass(frozen=True)
class PruningResult:
    """A pruned network.

    Attributes:
        model: the slim network, in eval mode; of the dense network's class, wrapped in a
            :class:`bise_prune.rewiring.RewiredModel` where function calls had to change too.
        plan: what was removed, and what stayed and why.
        verification: slim against masked network, in float64.
        masked: the dense network under the decided masks: the function that the slim one computes. It shares the dense
            network's weights.
    """

    model: nn.Module
    plan: PruningPlan
    verification: Verification
    masked: nn.Module


def prune(
    model: nn.Module,
    masks: MaskSet | PruningPlan,
    example_inputs: Inputs,
    target_sparsity: TargetSparsity = "auto",
    *,
    target_flops: float | None = None,
    target_latency: float | None = None,
    joins: JoinsChoice = "auto",
    round_to: RoundTo = 1,
    round_fill: RoundFill = "zero",
    layer_floor: float = 0.05,
    engine: Engine = "exact",
    batch_sizes: Sequence[int] = (1, 2, 5),
    tolerance: float = 1e-9,
) -> PruningResult:
    """Remove closed channels from a copy of ``model``; the result computes the masked function from the start.

    A channel goes if it is constant or nobody reads it; constants other than zero move into biases or one carrier
    channel. What cannot go stays as zeros, and the plan says why. The classifier keeps its outputs.

    Args:
        model: the dense network; never changed.
        masks: its masks, or a plan to carry out again on the same weights.
        example_inputs: its input(s), batch first.
        target_sparsity: "auto" = what the masks close; a number in (0, 1) = the share of parameters to remove,
            lowest m first.
        target_flops: the share of FLOPs that may stay, in (0, 1), instead; counted as :func:`bise_prune.measure` does.
        target_latency: the share of the latency that may stay, in (0, 1), instead; measured on the model's device.
        joins: what happens where tensors meet whose gates disagree. "intersection" keeps a shared channel while any
            of them has it open; "expand" lets every layer shrink and puts zeros back on the way; "auto" times both and
            takes the faster one, or the smaller of two within 5 % of each other.
        round_to: round kept channels per layer up to a multiple; "auto" = 16 on a CPU, 8 on a GPU.
        round_fill: see :class:`bise_prune.config.Rounding`.
        layer_floor: for a target, the share of each mask's channels, those of highest m, that ranking never closes (one
            at least): ranking far past the learned threshold starves whole layers.
        engine: "exact", or (experimental) "torch-pruning" to remove only what that library's dependency graph can.
        batch_sizes: batches of the verification.
        tolerance: see :func:`bise_prune.verify`.

    Raises:
        ConfigError: an argument out of range, or two targets.
        ModelError: the masks belong to another network.
        PruningError: the target cannot be met, the network would be dead, or the plan is for other weights.
        VerificationError: the slim network does not compute the masked function.
    """
    target = Target.of(target_sparsity, target_flops, target_latency)
    for name, value, choices in (("joins", joins, JOINS), ("engine", engine, ENGINES)):
        if value not in choices:
            raise ConfigError(f"unknown {name} '{value}': choose one of {', '.join(choices)}")
    if not 0 <= layer_floor < 1:
        raise ConfigError(f"layer_floor = {layer_floor!r} is out of range: expected a number in [0, 1)")
    shaped = target is not None or joins != "auto" or round_to != 1
    if isinstance(masks, PruningPlan) and (shaped or engine != "exact"):
        raise ConfigError("a plan holds its widths and lowering: give no target, joins, rounding or engine beside it")
    if engine == "torch-pruning" and shaped:
        raise ConfigError("engine 'torch-pruning' takes no target, joins or rounding: it removes what the masks close")
    if isinstance(masks, MaskSet):
        model = with_learned_state(model, masks)
    record = trace(model, example_inputs)
    finish = partial(_finished, model, example_inputs, batch_sizes, tolerance)
    if isinstance(masks, PruningPlan):
        return _replayed(model, masks, record, example_inputs, finish)
    sites = matching_sites(record, model, masks)
    if engine == "torch-pruning":
        return finish(sites, *_by_groups(model, masks, sites, record, example_inputs))
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    multiple = _AUTO_MULTIPLE.get(device.type, 8) if round_to == "auto" else round_to
    rounding = Rounding(multiple=multiple, fill=round_fill)
    planner = Planner(model, sites, example_inputs, record=record, rounding=rounding)
    choose = partial(_chosen, planner, masks, joins, target, layer_floor)
    return _with_fallback(planner, lambda: finish(sites, *choose()))


Finish = Callable[[Sequence[GateSite], nn.Module, PruningPlan], PruningResult]


def _with_fallback(planner: Planner, attempt: Callable[[], PruningResult]) -> PruningResult:
    """The attempt; if its network does not run or agree, another one with the full width around every reshape."""
    reshapes = {call.index for call in planner.trace.calls if call.kind == "movement" and call.function != "cat"}
    try:
        return attempt()
    except (ConfigError, PruningError):
        raise
    except _FAILURES as error:
        if not reshapes:
            raise _explained(error) from error
    planner.rigid = reshapes  # one has a literal width, perhaps
    try:
        return attempt()
    except BiseError:
        raise
    except _FAILURES as error:
        raise _explained(error) from error


_FAILURES = (AttributeError, LookupError, RuntimeError, TypeError, ValueError, ModelError, VerificationError)


def _explained(error: Exception) -> BiseError:
    if isinstance(error, BiseError):
        return error
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return PruningError(f"the forward pass does not run with fewer channels ({type(error).__name__}: {reason})")


def _replayed(
    model: nn.Module, plan: PruningPlan, record: Trace, example_inputs: Inputs, finish: Finish
) -> PruningResult:
    found = fingerprint(model)
    if plan.fingerprint and plan.fingerprint != found:
        raise PruningError(
            f"the plan was made for other weights (fingerprint {plan.fingerprint[:12]}, this model has {found[:12]}); "
            "if the search changed batch norms, prune by its masks, which hold them"
        )
    sites = matching_sites(record, model, MaskSet({name: mask.float() * 2 - 1 for name, mask in plan.keep.items()}))
    rounding = Rounding(multiple=plan.rounding.get("multiple", 1))  # re-opened channels are open in the plan
    planner = Planner(model, sites, example_inputs, record=record, rounding=rounding)

    def attempt() -> PruningResult:
        proposal = planner.propose(plan.keep, "intersection" if plan.joins == "intersection" else "expand")
        again = replace(proposal.plan, costs_ms=plan.costs_ms, target=plan.target, rounding=plan.rounding)
        result = finish(sites, cut(model, proposal.layout, proposal.lowering), again)
        if again.layers != plan.layers or (plan.edits_digest and again.edits_digest != plan.edits_digest):
            raise VerificationError("the plan's widths do not follow from its masks: it was changed, or made elsewhere")
        return result

    return _with_fallback(planner, attempt)


def _by_groups(
    model: nn.Module, masks: MaskSet, sites: Sequence[GateSite], record: Trace, example_inputs: Inputs
) -> tuple[nn.Module, PruningPlan]:
    """What torch-pruning's own engine makes of the masks, with its plan."""
    from ..torch_pruning.engine import remove_by_groups  # torch-pruning takes seconds to import

    if any(call.function not in NONLINEARITIES for site in sites for call in site.calls):
        raise PruningError("engine 'torch-pruning' cannot change layer norms; use engine 'exact'")
    found = remove_by_groups(model, masks.keep, sites, record, example_inputs)
    plan = PruningPlan(
        keep=dict(masks.keep),
        layers={
            name: LayerPlan(tuple(mask.nonzero().flatten().tolist()), len(mask)) for name, mask in found.kept.items()
        },
        params=(_num_parameters(model), _num_parameters(found.model)),
        macs=(0, 0),
        joins="dense",
        reasons={name: {Reason(Why.COUPLED): channels} for name, channels in found.stays.items()},
    )
    return found.model, plan


def _num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _propose(planner: Planner, masks: MaskSet, joins: Joins, target: Target | None, floor: float) -> Proposal:
    if target is None:
        return planner.propose(planner.rounded_up(masks.keep, masks), joins)
    return planner.rank(masks, joins, target, partial(_removed, planner, target), floor)


def _removed(planner: Planner, target: Target, proposal: Proposal) -> float:
    """The share of what a target counts that is gone in a proposal."""
    model, inputs, plan = planner.model, planner.example_inputs, proposal.plan
    if target.kind == "sparsity":
        return plan.sparsity
    if target.kind == "flops":
        # Where fvcore takes no keyword arguments, the multiply-accumulates are all there is to count by.
        total = planner.macs if isinstance(inputs, Mapping) else measure(model, inputs).flops
        return (plan.macs[0] - plan.macs[1]) / total
    slim = settled(cut(model, proposal.layout, proposal.lowering), model)
    return 1 - time_ratio(model, slim, inputs)


def removed_share(target: Target, dense: nn.Module, result: PruningResult, example_inputs: Inputs) -> float:
    """The share of what a target counts that is gone from a pruned network; latency is measured by turns."""
    if target.kind == "sparsity":
        return result.plan.sparsity
    if target.kind == "flops":
        return (result.plan.macs[0] - result.plan.macs[1]) / result.plan.macs[0]
    return 1 - time_ratio(dense, result.model, example_inputs)


def time_ratio(dense: nn.Module, slim: nn.Module, inputs: Inputs) -> float:
    """Median latency of ``slim`` as a share of ``dense``'s, timed by turns on the device of ``dense``."""
    device = str(next(dense.parameters()).device)
    dense_ms, slim_ms = (t.median_ms for t in measure_latency([dense, slim], inputs, runs=_LATENCY_RUNS, device=device))
    return slim_ms / dense_ms


def _chosen(
    planner: Planner, masks: MaskSet, joins: JoinsChoice, target: Target | None, floor: float
) -> tuple[nn.Module, PruningPlan]:
    """The slim network and its plan, of two lowerings the faster one; of two that are as fast, the smaller."""
    model = planner.model
    proposals = [_propose(planner, masks, "expand" if joins == "auto" else joins, target, floor)]
    if joins == "auto" and proposals[0].lowering.edits:
        proposals.append(_propose(planner, masks, "intersection", target, floor))
    slims = [cut(model, proposal.layout, proposal.lowering) for proposal in proposals]
    best, costs = 0, {}
    if len(slims) > 1:
        candidates = [settled(_sharing_copy(slim), model) for slim in slims]
        device = str(next(model.parameters()).device)
        timed = measure_latency(candidates, planner.example_inputs, runs=_LATENCY_RUNS, device=device)
        costs = {proposal.plan.joins: t.median_ms for proposal, t in zip(proposals, timed, strict=True)}
        longest = _AS_FAST * min(times.median_ms for times in timed)
        as_fast = [i for i, times in enumerate(timed) if times.median_ms <= longest]
        best = min(as_fast, key=lambda i: proposals[i].plan.macs[1])
    plan = proposals[best].plan
    return slims[best], replace(plan, costs_ms=costs, rounding=_given_back(planner, masks, plan, target))


def _given_back(planner: Planner, masks: MaskSet, plan: PruningPlan, target: Target | None) -> Mapping[str, Any]:
    """What rounding costs, beside the same masks (or the same ranking's, for a target) without it."""
    rounding = planner.rounding
    if rounding.multiple == 1:
        return {}
    keep = masks.keep if target is None else plan.keep
    unrounded = Planner(planner.model, planner.sites, planner.example_inputs, record=planner.trace)
    unrounded.rigid = planner.rigid
    bare = unrounded.propose(keep, "intersection" if plan.joins == "intersection" else "expand").plan
    return {
        "multiple": rounding.multiple,
        "fill": rounding.fill,
        "reopened": sum(int((plan.keep[name] & ~mask.cpu()).sum()) for name, mask in keep.items()),
        "params_given_back": plan.params[1] - bare.params[1],
        "macs_given_back": plan.macs[1] - bare.macs[1],
    }


def _finished(
    model: nn.Module,
    inputs: Inputs,
    batch_sizes: Sequence[int],
    tolerance: float,
    sites: Sequence[GateSite],
    slim: nn.Module,
    plan: PruningPlan,
) -> PruningResult:
    """A slim network that has been compared with the masked one."""
    masked = constant_gates(_sharing_copy(model).eval(), sites, plan.keep)
    assert _num_parameters(slim) == plan.params[1]
    verification = verify(masked, slim, inputs, batch_sizes=batch_sizes, tolerance=tolerance)
    require(verification, "the pruned model does not compute the masked function")
    return PruningResult(settled(slim, model), replace(plan, fingerprint=fingerprint(model)), verification, masked)


def _sharing_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules with the very tensors of ``model``."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def settled(slim: nn.Module, dense: nn.Module) -> nn.Module:
    """``slim`` itself, with what constants were folded into, in float64 so far, in the dense network's precision."""
    own = slim.model if isinstance(slim, RewiredModel) else slim
    before = {**dict(dense.named_parameters()), **dict(dense.named_buffers())}
    for name, tensor in [*own.named_parameters(), *own.named_buffers()]:
        owner_name, _, leaf = name.rpartition(".")
        like = before.get(name, before.get(f"{owner_name}.weight" if owner_name else "weight"))
        if like is None or tensor.dtype == like.dtype:
            continue
        owner = own.get_submodule(owner_name)
        if leaf in owner._parameters:
            owner._parameters[leaf] = nn.Parameter(tensor.detach().to(like.dtype), tensor.requires_grad)
        else:
            owner._buffers[leaf] = tensor.to(like.dtype)
    if isinstance(slim, RewiredModel):
        slim.rewirings.to(next((p.dtype for p in dense.parameters() if p.is_floating_point()), torch.float32))
    return slim

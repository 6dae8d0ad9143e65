"""Exact pruning: make the plan, remove the channels, and compare the slim network with the masked one."""

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
    lowering_of,
)
from ..errors import ConfigError, ModelError, PruningError, VerificationError
from ..gates.gated_model import GatedModel, constant_gates, with_learned_state
from ..gates.masks import GateSite, MaskSet
from ..gates.sites import matching_sites
from ..metrics.cost import measure, measure_latency
from ..tracing import UNREPEATABLE, Inputs, Reason, Trace, Why, trace
from .fallback import with_fallback
from .plan import LayerPlan, PruningPlan, fingerprint
from .planner import Planner, Proposal
from .verification import Verification, require, verify

# Multiples of channels for which kernels are fast: 16 in onnxruntime's CPU convolutions, 8 on tensor cores.
_AUTO_MULTIPLE = {"cpu": 16, "cuda": 8}
_LATENCY_RUNS = 15
_AS_FAST = 1.05  # ratio by which two timings of the same network may differ


@dataclass(frozen=True)
class PruningResult:
    """A pruned network with its plan and verification.

    Attributes:
        model: the slim network, in eval mode; of the dense network's class, or a
            :class:`bise_prune.channels.edited_model.RewiredModel` around it where function calls had to change.
        plan: which channels were removed, and which closed channels stayed and why.
        verification: comparison of the slim with the masked network, in float64.
        masked: the dense network under the decided masks, whose function the slim network computes. It shares the dense
            network's weights.
    """

    model: nn.Module
    plan: PruningPlan
    verification: Verification
    masked: nn.Module

    @property
    def open_norms(self) -> int:
        """Number of layer norms that compute their statistics over open channels, in both networks."""
        keep = self.plan.keep
        sites = self.masked.sites if isinstance(self.masked, GatedModel) else ()
        return sum(gate.is_layer_norm for site in sites if not bool(keep[site.name].all()) for gate in site.calls)


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
    """Remove closed channels from a copy of ``model``; the slim network computes the function of the masked one.

    A channel is removed if it is constant or if no layer reads it; constants other than zero are folded into additive
    biases or kept in one carrier channel. Closed channels that cannot be removed stay as zeros, and the plan names the
    reason. The outputs of the classifier head all stay.

    Args:
        model: the dense network; never changed.
        masks: its masks, or a plan to carry out again on the same weights.
        example_inputs: its input(s), batch first.
        target_sparsity: "auto" = remove what the masks close; a number in (0, 1) = the sparsity to reach, i.e. the
            share of the dense network's parameters to remove, closing the channels of lowest mask logit first.
        target_flops: instead, the share of the dense network's FLOPs that may stay, in (0, 1); counted as
            :func:`bise_prune.measure` does.
        target_latency: instead, the share of the dense network's latency that may stay, in (0, 1); measured on the
            model's device.
        joins: lowering, i.e. what happens where tensors with different masks meet. "intersection" keeps a shared
            channel while any of the outputs that meet has its gate open; "expand" lets every layer shrink and puts
            zeros back where tensors meet; "auto" times both and takes the faster one, or the smaller one if their times
            are within 5 % of each other.
        round_to: multiple to which the number of kept channels per layer is rounded up; "auto" = 16 on a CPU, 8 on a
            GPU, without a measurement (a run of the command line measures instead, see
            :class:`bise_prune.config.RunConfig`).
        round_fill: what rounding fills up with: "zero" = closed channels with zero weights, so that the function does
            not change; "best" = closed channels of highest mask logit, which are opened again.
        layer_floor: for a target, the share of each mask's channels, those of highest mask logit, that is never closed,
            in [0, 1); at least one channel. Without it, a high target can leave single layers almost empty.
        engine: "exact", or "torch-pruning" (experimental) to remove only what that library's dependency graph allows.
        batch_sizes: batch sizes of the verification.
        tolerance: largest difference that passes the verification; see :func:`bise_prune.verify`.

    Returns:
        The slim network, its plan, the verification and the masked network.

    Raises:
        ConfigError: an argument is out of range, or there are two targets.
        ModelError: the masks belong to another network, or the network returns something else whenever it runs.
        PruningError: the target is missed by more than five points, nothing of the input would reach the logits, or the
            plan was made for other weights.
        VerificationError: the slim network does not compute the function of the masked network.
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
    make_planner = partial(Planner, model, sites, example_inputs, rounding=rounding)
    try:
        return with_fallback(
            record, make_planner, lambda planner: finish(sites, *_chosen(planner, masks, joins, target, layer_floor))
        )
    except PruningError as error:
        if error.__cause__ is not None:  # the forward pass failed
            _require_to_run(model, example_inputs, batch_sizes)
        raise


Finish = Callable[[Sequence[GateSite], nn.Module, PruningPlan], PruningResult]


def _replayed(
    model: nn.Module, plan: PruningPlan, record: Trace, example_inputs: Inputs, finish: Finish
) -> PruningResult:
    """Carry out a plan again on the weights that it was made for."""
    found = fingerprint(model)
    if plan.fingerprint and plan.fingerprint != found:
        raise PruningError(
            f"the plan was made for other weights (fingerprint {plan.fingerprint[:12]}, this model has {found[:12]}); "
            "if the run changed norm layers, prune by its masks, which hold them"
        )
    sites = matching_sites(record, model, plan.masks)
    rounding = Rounding(multiple=plan.rounding.get("multiple", 1))  # the plan has re-opened channels open
    make_planner = partial(Planner, model, sites, example_inputs, rounding=rounding)

    def attempt(planner: Planner) -> PruningResult:
        proposal = planner.propose(plan.keep, lowering_of(plan.joins))
        again = replace(proposal.plan, costs_ms=plan.costs_ms, target=plan.target, rounding=plan.rounding)
        result = finish(sites, planner.cut(proposal), again)
        if again.layers != plan.layers or (plan.edits_digest and again.edits_digest != plan.edits_digest):
            raise VerificationError("the plan's widths do not follow from its masks: it was changed, or made elsewhere")
        return result

    return with_fallback(record, make_planner, attempt)


def _by_groups(
    model: nn.Module, masks: MaskSet, sites: Sequence[GateSite], record: Trace, example_inputs: Inputs
) -> tuple[nn.Module, PruningPlan]:
    """Return the network and the plan of a removal by Torch-Pruning's own engine."""
    from ..torch_pruning.engine import remove_by_groups  # imported late, since torch-pruning takes seconds to import

    if any(call.function in ("linear", "layer_norm") or call.entries for site in sites for call in site.calls):
        raise PruningError(
            "engine 'torch-pruning' changes neither layer norms nor attention; use engine 'exact', or placement "
            "'feed-forward' (--placement feed-forward)"
        )
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
    """Return the number of parameters of a network."""
    return sum(parameter.numel() for parameter in model.parameters())


def _propose(planner: Planner, masks: MaskSet, joins: Joins, target: Target | None, floor: float) -> Proposal:
    """Return the proposal for the masks, or for a target if there is one."""
    if target is None:
        return planner.propose(planner.rounded_up(masks.keep, masks), joins)
    model, inputs = planner.model, planner.example_inputs
    # fvcore takes no keyword arguments; for such inputs only multiply-accumulates are counted.
    by_fvcore = target.kind == "flops" and not isinstance(inputs, Mapping)
    total = measure(model, inputs).flops if by_fvcore else planner.macs

    def removed(proposal: Proposal) -> float:
        def ratio() -> float:
            return time_ratio(model, settled(planner.cut(proposal), model), inputs)

        return removed_share(target, proposal.plan, total, ratio)

    return planner.rank(masks, joins, target, removed, floor)


def removed_share(target: Target, plan: PruningPlan, total_flops: int, latency_ratio: Callable[[], float]) -> float:
    """Return the share of the dense network's parameters, FLOPs or latency that a plan removes.

    Args:
        target: says which of the three is counted.
        plan: the plan; its multiply-accumulates are those of convolutions and linear layers, in which channels count.
        total_flops: FLOPs of the dense network, of which the removed multiply-accumulates are a share.
        latency_ratio: measures the slim network's latency divided by the dense one's.
    """
    if target.kind == "sparsity":
        return plan.sparsity
    if target.kind == "flops":
        return (plan.macs[0] - plan.macs[1]) / total_flops
    return 1 - latency_ratio()


def time_ratio(dense: nn.Module, slim: nn.Module, inputs: Inputs) -> float:
    """Return the median latency of ``slim`` divided by that of ``dense``, timed in turns on the device of ``dense``."""
    device = str(next(dense.parameters()).device)
    dense_ms, slim_ms = (t.median_ms for t in measure_latency([dense, slim], inputs, runs=_LATENCY_RUNS, device=device))
    return slim_ms / dense_ms


def _chosen(
    planner: Planner, masks: MaskSet, joins: JoinsChoice, target: Target | None, floor: float
) -> tuple[nn.Module, PruningPlan]:
    """Return the slim network and its plan, with the faster lowering, or the smaller one of equally fast ones."""
    model = planner.model
    proposals = [_propose(planner, masks, "expand" if joins == "auto" else joins, target, floor)]
    if joins == "auto" and proposals[0].lowering.edits:
        proposals.append(_propose(planner, masks, "intersection", target, floor))
    slims = [planner.cut(proposal) for proposal in proposals]
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
    """Return what rounding costs, compared with the same masks (or the same ranking, for a target) without it."""
    rounding = planner.rounding
    if rounding.multiple == 1:
        return {}
    keep = masks.keep if target is None else plan.keep
    unrounded = Planner(
        planner.model, planner.sites, planner.example_inputs, record=planner.trace, demands=planner.demands
    )
    bare = unrounded.propose(keep, lowering_of(plan.joins)).plan
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
    """Verify a slim network against the masked one and return the result."""
    masked = constant_gates(_sharing_copy(model).eval(), sites, plan.keep)
    if _num_parameters(slim) != plan.params[1]:
        raise PruningError(f"the plan counts {plan.params[1]} parameters, the slim network has {_num_parameters(slim)}")
    verification = verify(masked, slim, inputs, batch_sizes=batch_sizes, tolerance=tolerance)
    if not verification.passed and not verify(masked, masked, inputs, batch_sizes=batch_sizes).passed:
        raise ModelError(UNREPEATABLE)
    require(verification, "the pruned model does not compute the masked function")
    return PruningResult(settled(slim, model), replace(plan, fingerprint=fingerprint(model)), verification, masked)


def _require_to_run(model: nn.Module, inputs: Inputs, batch_sizes: Sequence[int]) -> None:
    """Raise a PruningError if the dense network itself does not run on the batches of the verification."""
    try:
        verify(model, model, inputs, batch_sizes=batch_sizes)
    except Exception as error:  # the network's own code may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PruningError(
            f"the network does not run on batches of {', '.join(map(str, batch_sizes))} samples before anything is "
            f"removed either ({type(error).__name__}: {reason}); batch_sizes says which are compared"
        ) from error


def _sharing_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the modules that shares the parameters and buffers of ``model``."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def settled(slim: nn.Module, dense: nn.Module) -> nn.Module:
    """Cast the tensors of ``slim`` that constants were folded into from float64 to the dense network's precision.

    Args:
        slim: the slim network; changed and returned.
        dense: the dense network.
    """
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

"""Physical removal, on a copy, checked against the masked network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..artifacts import GateSite, MaskSet, PruningPlan, Verification
from ..config import TargetSparsity
from ..errors import ConfigError
from ..gates import constant_gates, sites_of
from ..graph import build_graph, dependency_groups, remove_channels
from ..tracing import Inputs, trace_channels
from ..verification import require, verify
from .plan import Planner, removed_outputs


@dataclass(frozen=True)
class PruningResult:
    """A pruned network.

    Attributes:
        model: the slim network, in eval mode; of the dense network's class unless closed channels had to stay, in
            which case it is that network under constant gates.
        plan: what was removed, and what stayed and why.
        verification: slim against masked network, in float64.
        masked: the dense network under the decided masks: the function that the slim one computes.
    """

    model: nn.Module
    plan: PruningPlan
    verification: Verification
    masked: nn.Module


def prune(
    model: nn.Module,
    masks: MaskSet,
    example_inputs: Inputs,
    target_sparsity: TargetSparsity = "auto",
    *,
    batch_sizes: Sequence[int] = (1, 2, 5),
    tolerance: float = 1e-9,
) -> PruningResult:
    """Remove closed channels from a copy of ``model``; the result computes the masked function from the start.

    A channel goes if it reads as zero wherever it is read. Closed channels that other, open outputs are coupled to
    stay, multiplied by a constant zero. The classifier keeps its outputs, and no layer is left empty.

    Args:
        model: the dense network; never changed.
        masks: its masks.
        example_inputs: its input(s), batch first.
        target_sparsity: "auto" = what the masks close; a number in (0, 1) = the share of parameters to remove,
            lowest m first.
        batch_sizes: batches of the verification.
        tolerance: see :func:`bise_prune.verify`.

    Raises:
        ModelError: the masks belong to another network.
        PruningError: the target cannot be met.
        VerificationError: the slim network does not compute the masked function.
    """
    if target_sparsity != "auto" and not (isinstance(target_sparsity, float) and 0 < target_sparsity < 1):
        raise ConfigError(f"target_sparsity = {target_sparsity!r}: expected 'auto' or a number in (0, 1)")
    sites = sites_of(masks, model, example_inputs)
    plan = Planner(model, sites, example_inputs).plan(masks, target_sparsity)
    slim = copy.deepcopy(model).eval()
    gone: dict[str, set[int]] = {}
    if plan.removed:
        graph = build_graph(slim, example_inputs)
        groups = dependency_groups(graph, trace_channels(slim, example_inputs))
        gone = removed_outputs(groups, plan.removed)
        remove_channels(graph, plan.removed)
    assert sum(parameter.numel() for parameter in slim.parameters()) == plan.params[1]
    slim = _under_constant_gates(slim, sites, plan, gone, model, example_inputs)
    masked = constant_gates(copy.deepcopy(model).eval(), sites, plan.keep)
    verification = verify(masked, slim, example_inputs, batch_sizes=batch_sizes, tolerance=tolerance)
    require(verification, "the pruned model does not compute the masked function")
    return PruningResult(slim, plan, verification, masked)


def _under_constant_gates(
    slim: nn.Module,
    sites: Sequence[GateSite],
    plan: PruningPlan,
    gone: dict[str, set[int]],
    dense: nn.Module,
    example_inputs: Inputs,
) -> nn.Module:
    """Gate the channels that are closed but still there; the bare network if there are none."""
    nonlinearities = trace_channels(dense, example_inputs).nonlinearities
    leftover_sites, keep = [], {}
    for site in sites:
        for call in site.calls:
            remaining = torch.cat(
                [_remaining(layer, size, gone) for layer, size in nonlinearities[call.index].segments]
            )
            mask: Tensor = plan.keep[site.name].cpu()[remaining]
            if not bool(mask.all()):
                name = f"{site.name}#{call.index}"
                leftover_sites.append(GateSite(name, len(mask), (call,)))
                keep[name] = mask
    return constant_gates(slim, leftover_sites, keep) if leftover_sites else slim


def _remaining(layer: str | None, size: int, gone: dict[str, set[int]]) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool)
    mask[sorted(gone.get(layer or "", ()))] = False
    return mask

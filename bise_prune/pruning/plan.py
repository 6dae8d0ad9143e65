"""Which channels go: from masks and a target to the output channels of each layer, before anything is touched."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..artifacts import GateSite, MaskSet, PruningPlan
from ..config import TargetSparsity
from ..errors import PruningError
from ..graph import DependencyGroup, GroupMember, build_graph, dependency_groups, removable_channels
from ..importance import tie_free
from ..tracing import Inputs, trace_channels

TOLERANCE = 0.01  # a target sparsity is met within one point


class Planner:
    """Turns masks into plans for one network; the graph is built once.

    Args:
        model: the dense network; never changed.
        sites: its gate sites.
        example_inputs: its input(s), batch first.
    """

    def __init__(self, model: nn.Module, sites: Sequence[GateSite], example_inputs: Inputs) -> None:
        self.model, self.sites, self.example_inputs = model, sites, example_inputs
        self.graph = build_graph(copy.deepcopy(model), example_inputs)
        self.params = sum(parameter.numel() for parameter in model.parameters())

    def plan(self, masks: MaskSet, target_sparsity: TargetSparsity) -> PruningPlan:
        """The plan for ``masks``.

        Args:
            masks: masks of this network.
            target_sparsity: "auto" removes what the masks close; a number ranks all channels by m and closes the
                lowest until that share of the parameters is gone, within one point. The best channel of each site
                is never closed by ranking.

        Raises:
            PruningError: the target cannot be met; the message names the nearest that can.
        """
        if target_sparsity == "auto":
            return self.plan_for(masks.keep, masks)
        return self._to_sparsity(masks, float(target_sparsity))

    def plan_for(self, keep: Mapping[str, Tensor], masks: MaskSet) -> PruningPlan:
        """The plan that computes the function with exactly these channels open."""
        closed = {call.index: ~keep[site.name].cpu() for site in self.sites for call in site.calls}
        trace = trace_channels(self.model, self.example_inputs, closed)
        groups = dependency_groups(self.graph, trace)
        order = {layer: masks.logits[site.name] for site in self.sites for call in site.calls if (layer := call.layer)}
        removed: dict[str, tuple[int, ...]] = {}
        emptied: dict[str, str] = {}
        for group in groups:
            channels = removable_channels(group, trace)
            if bool(channels.all()):  # never an empty layer: the best channel stays, as zeros
                scores = next((order[layer] for layer in group.producers if layer in order), None)
                spared = int(scores.argmax()) if scores is not None and len(scores) == len(channels) else 0
                channels[spared] = False
                emptied[group.root] = "all channels are closed; one stays so that the layer is not empty"
            if bool(channels.any()):
                removed[group.root] = tuple(channels.nonzero().flatten().tolist())
        removed = {name: removed[name] for name, _ in self.model.named_modules() if name in removed}
        gone = removed_outputs(groups, removed)
        remaining = self.params - removed_parameters(self.model, groups, removed)
        reasons = self._reasons(keep, groups, gone, emptied)
        return PruningPlan(dict(keep), removed, (self.params, remaining), reasons)

    def _reasons(
        self,
        keep: Mapping[str, Tensor],
        groups: Sequence[DependencyGroup],
        gone: Mapping[str, set[int]],
        emptied: Mapping[str, str],
    ) -> dict[str, str]:
        group_of = {member.layer: group for group in groups for member in group.members if member.is_output}
        reasons = {}
        for site in self.sites:
            closed = set((~keep[site.name]).nonzero().flatten().tolist())
            for call in site.calls:
                group = group_of.get(call.layer or "")
                if group is None:
                    if closed:
                        reasons[site.name] = "its channels come from several layers"
                elif closed - gone.get(call.layer or "", set()):
                    coupled = "coupled outputs read these channels while they are open"
                    reasons[site.name] = emptied.get(group.root) or group.blocked or coupled
        return reasons

    def _to_sparsity(self, masks: MaskSet, target: float) -> PruningPlan:
        names = [site.name for site in self.sites]
        parts = tie_free([masks.logits[name] for name in names])
        for part in parts:  # the best channel of each site ranks last
            part[part.argmax()] = float("inf")
        scores, sizes = torch.cat(parts), [site.num_channels for site in self.sites]
        order = scores.argsort(stable=True)
        most = int(torch.isfinite(scores).sum())

        def closing(count: int) -> PruningPlan:
            keep = torch.ones(len(scores), dtype=torch.bool)
            keep[order[:count]] = False
            return self.plan_for(dict(zip(names, keep.split(sizes), strict=True)), masks)

        low, high = 0, most  # sparsity(low) <= target; it grows with the number of closed channels
        below, above = closing(low), closing(high)
        if above.sparsity < target:
            low, below = high, above
        while high - low > 1:
            middle = (low + high) // 2
            plan = closing(middle)
            if plan.sparsity <= target:
                low, below = middle, plan
            else:
                high, above = middle, plan
        nearest = min((below, above), key=lambda plan: abs(plan.sparsity - target))
        if abs(nearest.sparsity - target) > TOLERANCE:
            raise PruningError(
                f"no ranking of the channels comes within one point of target sparsity {target:g}; "
                f"the nearest reachable is {nearest.sparsity:.4f}"
            )
        return nearest


def removed_outputs(groups: Sequence[DependencyGroup], removed: Mapping[str, tuple[int, ...]]) -> dict[str, set[int]]:
    """Layer -> output channels gone, for every layer of the groups pruned."""
    gone: dict[str, set[int]] = {}
    for member, channels in _pruned_members(groups, removed):
        if member.is_output:
            gone.setdefault(member.layer, set()).update(channels)
    return gone


def removed_parameters(
    model: nn.Module, groups: Sequence[DependencyGroup], removed: Mapping[str, tuple[int, ...]]
) -> int:
    """How many parameters a removal takes, counted from shapes alone."""
    modules = dict(model.named_modules())
    inputs: dict[str, set[int]] = {}
    for member, channels in _pruned_members(groups, removed):
        if not member.is_output:
            inputs.setdefault(member.layer, set()).update(channels)
    outputs = removed_outputs(groups, removed)
    total = 0
    for layer in inputs.keys() | outputs.keys():
        gone_out, gone_in = len(outputs.get(layer, ())), len(inputs.get(layer, ()))
        for name, parameter in modules[layer].named_parameters(recurse=False):
            if isinstance(modules[layer], nn.PReLU) and parameter.numel() == 1:
                continue  # one slope for all channels
            shape = list(parameter.shape)
            shape[0] -= gone_out
            if name == "weight" and parameter.ndim > 1 and getattr(modules[layer], "groups", 1) == 1:
                shape[1] -= gone_in
            total += parameter.numel() - torch.Size(shape).numel()
    return total


def _pruned_members(
    groups: Sequence[DependencyGroup], removed: Mapping[str, tuple[int, ...]]
) -> list[tuple[GroupMember, list[int]]]:
    pairs = []
    for group in groups:
        if group.root in removed:
            roots = torch.tensor(removed[group.root])
            for member in group.members:
                pairs.append((member, member.channels[torch.isin(member.roots, roots)].tolist()))
    return pairs

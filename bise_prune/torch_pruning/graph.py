"""Which layers share channels: torch-pruning's dependency graph, reduced to plain records.

The only place where the graph is built. torch-pruning follows autograd, so on frozen weights its graph is empty without
a word: weights are unfrozen while it traces and restored afterwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from ..errors import ModelError, PruningError
from ..tracing import Inputs, logits_of

_PRODUCERS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class GroupMember:
    """A layer of a group: channel ``channels[i]`` of its output (or input) goes with root channel ``roots[i]``."""

    layer: str
    is_output: bool
    channels: Tensor
    roots: Tensor


@dataclass(frozen=True)
class DependencyGroup:
    """Layers whose channels can only be removed together.

    Attributes:
        root: the layer whose output channels number the group's.
        num_channels: how many there are.
        members: every layer concerned, the root first.
        followed: whether every layer concerned is known with all its channels.
    """

    root: str
    num_channels: int
    members: tuple[GroupMember, ...]
    followed: bool

    @property
    def producers(self) -> list[str]:
        """Layers whose output channels belong to the group."""
        return [member.layer for member in self.members if member.is_output]


def build_graph(model: nn.Module, example_inputs: Inputs) -> tp.DependencyGraph:
    """The dependency graph of ``model``, in eval mode, frozen weights or not."""
    # torch-pruning tries model(*inputs) first, which would unpack the batch of a lone tensor.
    inputs = example_inputs if isinstance(example_inputs, (tuple, Mapping)) else (example_inputs,)
    with _unfrozen(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return tp.DependencyGraph().build_dependency(model, inputs, output_transform=logits_of)
        except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
            raise ModelError(
                f"torch-pruning cannot follow the channels of {type(model).__name__} ({type(error).__name__}: {error})"
            ) from error


def dependency_groups(graph: tp.DependencyGraph) -> list[DependencyGroup]:
    """Every dependency group of the graph."""
    # By module object: torch-pruning's own node names hold the layer's repr.
    names: dict[Any, str] = {module: name for name, module in graph.model.named_modules()}
    groups: list[DependencyGroup] = []
    seen: set[str] = set()
    for module, name in names.items():  # in the model's order: a block's own layer comes before its shortcut
        if name in seen or module not in graph.module2node or not isinstance(module, _PRODUCERS):
            continue
        prune_out = graph.get_pruner_of_module(module).prune_out_channels
        channels = list(range(graph.get_out_channels(module)))
        groups.append(_group(graph.get_pruning_group(module, prune_out, channels), names))
        seen.update(groups[-1].producers)
    return groups


def remove_channels(graph: tp.DependencyGraph, removed: Mapping[str, tuple[int, ...]]) -> None:
    """Remove output channels of root layers, with all that depends on them, from the graph's own model.

    Args:
        graph: a graph built on the model to change.
        removed: root layer -> channels; one entry per dependency group.

    Raises:
        PruningError: a layer would be left without channels.
    """
    modules = dict(graph.model.named_modules())
    with _unfrozen(graph.model):
        for name, channels in removed.items():
            prune_out = graph.get_pruner_of_module(modules[name]).prune_out_channels
            group = graph.get_pruning_group(modules[name], prune_out, list(channels))
            if not graph.check_pruning_group(group):
                raise PruningError(f"cannot remove {len(channels)} channels of '{name}': a layer would be left empty")
            group.prune()


def _group(group: Any, names: Mapping[Any, str]) -> DependencyGroup:
    members, followed = [], True
    for item in group.items:
        module, name = item.dep.target.module, names.get(item.dep.target.module)
        if name is None:  # an operation, or a parameter outside any module that torch-pruning knows
            followed &= not isinstance(module, nn.Parameter)
            continue
        roots = item.root_idxs
        if any(index is None for index in roots):
            followed = False
            continue
        is_output = item.dep.handler in _OUTPUT_PRUNERS
        members.append(GroupMember(name, is_output, torch.tensor(item.idxs), torch.tensor(roots)))
    return DependencyGroup(names[group[0].dep.target.module], len(group[0].idxs), tuple(members), followed)


# Norms and depthwise convolutions are pruned by one function for input and output alike; they count as outputs.
_OUTPUT_PRUNERS = {
    tp.prune_conv_out_channels,
    tp.prune_linear_out_channels,
    tp.prune_depthwise_conv_out_channels,
    tp.prune_batchnorm_out_channels,
    tp.prune_prelu_out_channels,
}


@contextmanager
def _unfrozen(model: nn.Module) -> Iterator[None]:
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    model.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for name in frozen:  # by name: pruning replaces the parameter objects
            model.get_parameter(name).requires_grad_(False)

"""Dependency groups: which layers share channels, read from Torch-Pruning's dependency graph into plain dataclasses.

No other module builds the graph. Torch-Pruning follows autograd, so that its graph of a frozen network is empty without
any error: weights are unfrozen while it traces, and frozen again afterwards.
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
    """A layer in a dependency group.

    Attributes:
        layer: name of the layer.
        is_output: whether its output channels belong to the group; otherwise its input channels do.
        channels: indices of these channels in the layer, int64.
        roots: for each of them the channel of the root layer that it is removed with, int64.
    """

    layer: str
    is_output: bool
    channels: Tensor
    roots: Tensor


@dataclass(frozen=True)
class DependencyGroup:
    """Layers whose channels can only be removed together.

    Attributes:
        root: name of the layer whose output channels number the channels of the dependency group.
        num_channels: number of channels of the dependency group.
        members: every layer in it, the root first.
        followed: whether every layer in it is known, with all its channels.
    """

    root: str
    num_channels: int
    members: tuple[GroupMember, ...]
    followed: bool

    @property
    def producers(self) -> list[str]:
        """Names of the layers whose output channels belong to the dependency group."""
        return [member.layer for member in self.members if member.is_output]


def build_graph(model: nn.Module, example_inputs: Inputs) -> tp.DependencyGraph:
    """Build Torch-Pruning's dependency graph of ``model``; weights may be frozen.

    Args:
        model: the network.
        example_inputs: its input(s), batch first.

    Raises:
        ModelError: Torch-Pruning cannot trace the network.
    """
    # Torch-Pruning tries model(*inputs) first, which would split a single tensor by samples.
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
    """Return every dependency group of the graph whose root is a convolution or linear layer."""
    # Matched by module object, since Torch-Pruning's node names contain the repr of the layer.
    names: dict[Any, str] = {module: name for name, module in graph.model.named_modules()}
    groups: list[DependencyGroup] = []
    seen: set[str] = set()
    for module, name in names.items():  # in model order: a block's own layer precedes its shortcut
        if name in seen or module not in graph.module2node or not isinstance(module, _PRODUCERS):
            continue
        prune_out = graph.get_pruner_of_module(module).prune_out_channels
        channels = list(range(graph.get_out_channels(module)))
        groups.append(_group(graph.get_pruning_group(module, prune_out, channels), names))
        seen.update(groups[-1].producers)
    return groups


def remove_channels(graph: tp.DependencyGraph, removed: Mapping[str, tuple[int, ...]]) -> None:
    """Remove output channels of root layers, and all channels coupled to them, from the model of the graph.

    Args:
        graph: a dependency graph; its model is changed.
        removed: name of a root layer -> its output channels to remove; one entry per dependency group.

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
    """Read one of Torch-Pruning's groups into a :class:`DependencyGroup`."""
    members, followed = [], True
    for item in group.items:
        module, name = item.dep.target.module, names.get(item.dep.target.module)
        if name is None:  # an operation, or a parameter outside the modules that Torch-Pruning knows
            followed &= not isinstance(module, nn.Parameter)
            continue
        roots = item.root_idxs
        if any(index is None for index in roots):
            followed = False
            continue
        is_output = item.dep.handler in _OUTPUT_PRUNERS
        members.append(GroupMember(name, is_output, torch.tensor(item.idxs), torch.tensor(roots)))
    return DependencyGroup(names[group[0].dep.target.module], len(group[0].idxs), tuple(members), followed)


# Norms and depthwise convolutions have one pruning function for input and output; they count as outputs.
_OUTPUT_PRUNERS = {
    tp.prune_conv_out_channels,
    tp.prune_linear_out_channels,
    tp.prune_depthwise_conv_out_channels,
    tp.prune_batchnorm_out_channels,
    tp.prune_prelu_out_channels,
}


@contextmanager
def _unfrozen(model: nn.Module) -> Iterator[None]:
    """While active, all parameters require gradients and gradients are enabled."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    model.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for name in frozen:  # found by name, since pruning replaces the parameter objects
            model.get_parameter(name).requires_grad_(False)

"""Networks to and from checkpoints: dense ones, and slim ones that load without unpickling code."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .artifacts import GateCall, GateSite
from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .errors import CheckpointError, ConfigError
from .gates import GatedModel, constant_gates
from .models import build_model, identify_architecture

_GATE = "gates.{}.mask"


def load_model(path: str | Path, arch: str | None = None) -> tuple[nn.Module, Checkpoint]:
    """A network in eval mode from a checkpoint, dense or slim, with the checkpoint completed by what was found out.

    Args:
        path: the weight file.
        arch: architecture; None = what the file names, or what its weights tell.

    Raises:
        CheckpointError: the file is unfit, or its weights do not fit the architecture.
    """
    return model_of(load_checkpoint(Path(path)), Path(path), arch)


def model_of(checkpoint: Checkpoint, path: Path, arch: str | None = None) -> tuple[nn.Module, Checkpoint]:
    """:func:`load_model` for a checkpoint already read."""
    name = arch or checkpoint.arch
    num_classes = checkpoint.num_classes
    if name is None:
        name, num_classes = identify_architecture(checkpoint.state, path.stem)
    arguments = checkpoint.arguments if arch in (None, checkpoint.arch) else {}
    if num_classes is None:
        last = list(build_model(name, 2, arguments).state_dict())[-1]
        num_classes = len(checkpoint.state[last]) if last in checkpoint.state else 2
    model = build_model(name, num_classes, arguments)
    state = dict(checkpoint.state)
    if checkpoint.slim is not None:
        masks = [state.pop(_GATE.format(i)) for i in range(len(checkpoint.slim))]
        _resize(model, state)
    _load(model, state, path, name)
    model.eval()
    completed = dataclasses.replace(checkpoint, arch=name, num_classes=num_classes)
    if checkpoint.slim:
        gates = zip(checkpoint.slim, masks, strict=True)
        sites = [GateSite(str(index), len(mask), (GateCall(index, dim, None),)) for (index, dim), mask in gates]
        return constant_gates(model, sites, {site.name: m > 0 for site, m in zip(sites, masks, strict=True)}), completed
    return model, completed


def save_slim(path: Path, model: nn.Module, dense: Checkpoint) -> None:
    """Write a pruned network as safetensors: its widths are the tensors' shapes, its class is the dense network's.

    Args:
        path: the file.
        model: what :func:`bise_prune.prune` returned.
        dense: the completed checkpoint of the network it was pruned from.
    """
    slim: tuple[tuple[int, int], ...] = ()
    state = dict(model.state_dict())
    if isinstance(model, GatedModel):
        slim = tuple((site.calls[0].index, site.calls[0].dim) for site in model.sites)
        gates = {_GATE.format(i): gate() for i, gate in enumerate(model.gates)}
        state = {**model.model.state_dict(), **gates}
    save_checkpoint(path, dataclasses.replace(dense, state=state, slim=slim))


def _load(model: nn.Module, state: dict[str, Tensor], path: Path, arch: str) -> None:
    expected = model.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and expected[key].shape != state[key].shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("misshaped", shapes))
        if names
    ]
    if problems:
        raise CheckpointError(f"the weights in {path} do not fit '{arch}': {'; '.join(problems)}")
    model.load_state_dict(state)


def _resize(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Give the layers of ``model`` the shapes of ``state``; the values come later."""
    for name, module in model.named_modules():
        weight = state.get(f"{name}.weight")
        if weight is None or not hasattr(module, "weight") or module.weight.shape == weight.shape:
            continue
        if isinstance(module, nn.modules.conv._ConvNd):
            depthwise = module.groups > 1 and module.groups == module.in_channels
            module.groups = weight.shape[0] if depthwise else module.groups
            module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = weight.shape[0], weight.shape[1]
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.num_features = weight.shape[0]
        elif isinstance(module, nn.PReLU):
            module.num_parameters = weight.shape[0]
        else:
            raise ConfigError(f"cannot give '{name}' ({type(module).__name__}) the shape {tuple(weight.shape)}")
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in state and tensor.shape != state[name].shape:
            owner = model.get_submodule(name.rpartition(".")[0])
            leaf = name.rpartition(".")[2]
            fresh = torch.empty_like(state[name])
            if leaf in owner._parameters:
                owner._parameters[leaf] = nn.Parameter(fresh, requires_grad=fresh.is_floating_point())
            else:
                owner._buffers[leaf] = fresh


def example_input(checkpoint: Checkpoint, shape: Sequence[int] | None = None, batch_size: int = 1) -> Tensor:
    """Noise of the shape that a checkpoint's network takes.

    Args:
        checkpoint: its preprocessing may name the image size.
        shape: of one sample; None = three channels of the image size named, else 224x224.
        batch_size: number of samples.
    """
    size = tuple(checkpoint.preprocessing.get("size") or (224, 224))
    return torch.randn(batch_size, *(shape or (3, *size)), generator=torch.Generator().manual_seed(0))

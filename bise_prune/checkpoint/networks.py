"""Networks to and from checkpoints: dense ones, and slim ones that load without unpickling code."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..channels import Edit
from ..channels.edited_model import RewiredModel
from ..errors import CheckpointError
from ..models import build_model, identify_architecture, is_factory, parse_architecture
from ..models.pretrained import TRANSFORMING, published_arguments
from ..models.widths import declare_widths
from ..pruning.plan import PruningPlan
from . import PREFIXES, Checkpoint, load_checkpoint, save_checkpoint

# Arguments with which constructors load or download weights: never on a file's say-so.
_FETCHING = ("weights", "weights_backbone", "checkpoint_path", "cache_dir")


def load_model(path: str | Path, arch: str | None = None, trust_pickle: bool = False) -> tuple[nn.Module, Checkpoint]:
    """A network in eval mode from a checkpoint, dense or slim, with the checkpoint completed by what was found out.

    Args:
        path: the weight file.
        arch: architecture; None = what the file names, or what its weights tell. ``torchvision:NAME``, ``timm:NAME``,
            ``hf:FOLDER`` or ``package.module:factory``, with arguments as in ``NAME(key=value)``.
        trust_pickle: whether to unpickle whatever is in the file, which can run any code.

    Raises:
        CheckpointError: the file is unfit, or its weights do not fit the architecture.
    """
    return model_of(load_checkpoint(Path(path), trust_pickle), Path(path), arch)


def model_of(checkpoint: Checkpoint, path: Path, arch: str | None = None) -> tuple[nn.Module, Checkpoint]:
    """:func:`load_model` for a checkpoint already read."""
    name, num_classes, arguments = checkpoint.arch, checkpoint.num_classes, dict(checkpoint.arguments)
    if fetching := [key for key in arguments if key in _FETCHING or key.startswith("pretrained")]:
        raise CheckpointError(f"{path} wants '{fetching[0]}' for its network, which would fetch other files")
    if arch is not None:
        name, given = parse_architecture(arch)
        arguments = {**(arguments if name == checkpoint.arch else {}), **given}
        num_classes = arguments.get("num_classes", num_classes)
    elif name is not None:
        if is_factory(name):
            raise CheckpointError(f"{path} is built by the code '{name}', which is not run unasked: pass --arch {name}")
    elif checkpoint.module is not None:
        return _whole(checkpoint.module, checkpoint, path)
    else:
        name, num_classes, arguments = identify_architecture(checkpoint.state, path.stem)
        arguments |= published_arguments(name, checkpoint.sha256)
        if name in TRANSFORMING and not arguments.get("transform_input"):
            note = f"--arch '{name}(transform_input=True)' if it was trained from torchvision's published weights"
            checkpoint = dataclasses.replace(
                checkpoint, notes=(*checkpoint.notes, f"{name} without transform_input: {note}")
            )
    if num_classes is None:
        num_classes = _num_classes(build_model(name, 2, arguments), checkpoint)
    model = build_model(name, num_classes, arguments)
    if checkpoint.slim is not None:
        model = _slimmed(model, checkpoint, path, name)
    else:
        _load(model, checkpoint.state, path, name)
    return model.eval(), dataclasses.replace(checkpoint, arch=name, num_classes=num_classes, arguments=arguments)


def _whole(module: nn.Module, checkpoint: Checkpoint, path: Path) -> tuple[nn.Module, Checkpoint]:
    """A module that came whole; with the name of its architecture, if it is built exactly like one of torchvision's."""
    try:
        name, num_classes, arguments = identify_architecture(checkpoint.state, path.stem)
        if repr(build_model(name, num_classes, arguments)) == repr(module):
            arguments |= {"transform_input": True} if getattr(module, "transform_input", False) else {}
            about = dataclasses.replace(checkpoint, arch=name, num_classes=num_classes, arguments=arguments)
            return module.eval(), about
    except CheckpointError:
        pass
    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise CheckpointError(f"{path} holds a module without a linear layer, so without a classifier's head")
    return module.eval(), dataclasses.replace(checkpoint, num_classes=linear[-1].out_features)


def _num_classes(like: nn.Module, checkpoint: Checkpoint) -> int:
    """The rows of the last weight, by the order of a network of the architecture: files may have another one."""
    expected = [(name, tensor) for name, tensor in like.state_dict().items() if tensor.ndim]
    found = _named_as(like.state_dict(), checkpoint.state).get(expected[-1][0]) if expected else None
    return 2 if found is None or not found.ndim else len(found)


def _named_as(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """``state`` with the prefix that its network itself has, where it was taken for that of a wrapper."""
    if state.keys() == expected.keys():
        return state
    for prefix in [*PREFIXES, *map("".join, itertools.product(PREFIXES, PREFIXES))]:
        if {prefix + key for key in state} == expected.keys():
            return {prefix + key: tensor for key, tensor in state.items()}
    return state


def load_slim(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """A pruned network in eval mode, for finetuning or inference.

    Args:
        path: what :func:`save_slim` wrote.
        model: a dense network of the class that was pruned, for classes that this package cannot build; changed.

    Raises:
        CheckpointError: the file is unfit, or holds a dense network.
    """
    path = Path(path)
    checkpoint = load_checkpoint(path)
    if checkpoint.slim is None:
        raise CheckpointError(f"{path} holds a dense network; load it with bise_prune.load_model")
    if model is not None:
        return _slimmed(model, checkpoint, path, type(model).__name__).eval()
    if checkpoint.arch is None:
        raise CheckpointError(
            f"{path} does not name an architecture that this package can build; pass a dense network of its class: "
            "load_slim(path, model)"
        )
    return model_of(checkpoint, path)[0]


def save_slim(
    path: str | Path, model: nn.Module, dense: Checkpoint | None = None, plan: PruningPlan | None = None
) -> None:
    """Write a pruned network as safetensors: its widths are the tensors' shapes, its class is the dense network's.

    Args:
        path: the file.
        model: what :func:`bise_prune.prune` returned, with its batch norms fused or not.
        dense: the completed checkpoint of the network it was pruned from: its architecture and preprocessing. Without
            it, :func:`load_slim` needs a dense network of the class.
        plan: what was removed; it goes into the file's header.
    """
    edits: tuple[Edit, ...] = ()
    saved = model
    if isinstance(model, RewiredModel):
        edits, model = model.edits, model.model
    identities = [name for name, module in model.named_modules() if isinstance(module, nn.Identity)]
    groups = {
        name: module.groups
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1
    }
    totals = saved.totals if isinstance(saved, RewiredModel) else {}
    changes = {
        "edits": [edit.as_dict() for edit in edits], "totals": totals, "identities": identities, "groups": groups,
    }  # fmt: skip
    state = {**model.state_dict(), **dict(model.named_buffers())}  # those that are not persistent may have been cut
    save_checkpoint(
        Path(path),
        dataclasses.replace(
            dense or Checkpoint({}),
            state=state,
            slim=changes,
            plan=None if plan is None else plan.as_dict(),
        ),
    )


def _slimmed(model: nn.Module, checkpoint: Checkpoint, path: Path, arch: str) -> nn.Module:
    assert checkpoint.slim is not None
    state = dict(checkpoint.state)
    try:
        for name in checkpoint.slim["identities"]:
            model.get_submodule(name)  # set_submodule would make a new one
            model.set_submodule(name, nn.Identity())
        edits = [Edit.from_dict(edit) for edit in checkpoint.slim["edits"]]
        totals = {str(name): int(total) for name, total in checkpoint.slim["totals"].items()}
        _resize(model, state, {name: max(1, int(number)) for name, number in checkpoint.slim["groups"].items()})
        slim = RewiredModel(model, edits, totals) if edits else model
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its description is damaged ({type(error).__name__}: {error})") from error
    _load(model, state, path, arch)
    if isinstance(slim, RewiredModel):
        slim.rewirings.to(next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32))
    return slim


def _load(model: nn.Module, state: Mapping[str, Tensor], path: Path, arch: str) -> None:
    expected = model.state_dict()
    state = _named_as(expected, state)
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
    expected.update(state)  # with the versions of its modules, which some of torchvision's ask for
    model.load_state_dict(expected)


def _resize(model: nn.Module, state: dict[str, Tensor], groups: dict[str, int]) -> None:
    """Give the layers of ``model`` the shapes and types of ``state``; the values come later.

    Buffers that are not persistent get their values here, and leave ``state``.
    """
    persistent = set(model.state_dict())
    for name, fresh in list(state.items()):
        owner_name, _, leaf = name.rpartition(".")
        try:
            owner = model.get_submodule(owner_name)
        except AttributeError:
            continue  # reported as unexpected
        old = owner._parameters.get(leaf, owner._buffers.get(leaf))
        if leaf in owner._buffers and name not in persistent:
            owner._buffers[leaf] = state.pop(name)
        elif old is not None and (old.shape, old.dtype) == (fresh.shape, fresh.dtype):
            continue
        elif leaf in owner._parameters:
            like = old if old is not None else owner._parameters.get("weight")
            trains = fresh.is_floating_point() and (like is None or like.requires_grad)
            owner._parameters[leaf] = nn.Parameter(torch.empty_like(fresh), requires_grad=trains)
        elif leaf in owner._buffers:
            owner._buffers[leaf] = torch.empty_like(fresh)
    for name, module in model.named_modules():
        # One group left of many counts as one.
        was_grouped = isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1
        declare_widths(module, groups.get(name, 1 if was_grouped else None))


def example_input(checkpoint: Checkpoint, shape: Sequence[int] | None = None, batch_size: int = 1) -> Tensor:
    """Noise of the shape that a checkpoint's network takes.

    Args:
        checkpoint: its preprocessing may name the image size.
        shape: of one sample; None = three channels of the image size named, else 224x224.
        batch_size: number of samples.
    """
    size = tuple(checkpoint.preprocessing.get("size") or (224, 224))
    return torch.randn(batch_size, *(shape or (3, *size)), generator=torch.Generator().manual_seed(0))

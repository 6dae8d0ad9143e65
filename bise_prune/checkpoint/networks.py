"""Build networks from checkpoints, dense or slim, and save slim networks so that they load without unpickling code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..channels import Edit
from ..channels.edited_model import RewiredModel
from ..digests import state_tensors
from ..errors import CheckpointError, counted
from ..models import build_model, identify_architecture, is_factory, parse_architecture
from ..models.matching import difference, left_out, matched
from ..models.pretrained import TRANSFORMING, published_arguments
from ..models.registry import default_classes, renamed_weights
from ..models.widths import declare_widths
from . import TRANSFORMER, Checkpoint, load_checkpoint, save_checkpoint

# Arguments that make constructors load or download weights; a checkpoint must not set them.
_FETCHING = ("weights", "weights_backbone", "checkpoint_path", "cache_dir")


class Describable(Protocol):
    """Anything that describes itself in JSON values, such as a pruning plan."""

    def as_dict(self) -> dict[str, Any]:
        """Return the description."""
        ...


def load_model(path: str | Path, arch: str | None = None, trust_pickle: bool = False) -> tuple[nn.Module, Checkpoint]:
    """Load a dense or slim network from a checkpoint, in eval mode.

    Args:
        path: the weight file, or the folder of a Hugging Face classifier.
        arch: architecture: ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER`` or ``package.module:factory``, with
            arguments as in ``NAME(key=value)``; None = what the file names or its weights show.
        trust_pickle: whether to unpickle whatever is in the file, which can run any code.

    Returns:
        The network, and the checkpoint completed by its architecture, number of classes and constructor arguments.

    Raises:
        CheckpointError: the file cannot be used, or its weights do not fit the architecture.
        ConfigError: ``arch`` is unknown or cannot be built.
    """
    return model_of(load_checkpoint(Path(path), trust_pickle), Path(path), arch)


def model_of(checkpoint: Checkpoint, path: Path, arch: str | None = None) -> tuple[nn.Module, Checkpoint]:
    """Build the network of a checkpoint that was already read; see :func:`load_model`."""
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
    model, num_classes = _built(name, num_classes, arguments, checkpoint)
    notes = checkpoint.notes
    if checkpoint.slim is not None:
        model = _slimmed(model, checkpoint, path, name)
    else:
        notes = (*notes, *_load(model, checkpoint.state, path, name))
    about = dataclasses.replace(checkpoint, arch=name, num_classes=num_classes, arguments=arguments, notes=notes)
    return _evaluating(model, path), about


def _built(
    name: str, num_classes: int | None, arguments: Mapping[str, Any], checkpoint: Checkpoint
) -> tuple[nn.Module, int]:
    """The untrained network, and the number of its classes.

    If it is not given, it is the default of the user's function or class if the weights fit that; otherwise the number
    of rows of the last weight.
    """
    if num_classes is not None:
        return build_model(name, num_classes, arguments), num_classes
    default = default_classes(name)
    model = build_model(name, 2 if default is None else default, arguments)
    like = state_tensors(model)
    found = matched(like, checkpoint.state)
    if default is not None and not difference(like, found).count:
        return model, default
    expected = [key for key, tensor in like.items() if tensor.ndim]
    last = found.get(expected[-1]) if expected else None
    num_classes = 2 if last is None or not last.ndim else len(last)
    return (model if num_classes == (default or 2) else build_model(name, num_classes, arguments)), num_classes


def _whole(module: nn.Module, checkpoint: Checkpoint, path: Path) -> tuple[nn.Module, Checkpoint]:
    """Use a module that the checkpoint holds whole; if torchvision has exactly the same network, add its name."""
    check_values(module, checkpoint.state, path)
    try:
        name, num_classes, arguments = identify_architecture(checkpoint.state, path.stem)
        if repr(build_model(name, num_classes, arguments)) == repr(module):
            arguments |= {"transform_input": True} if getattr(module, "transform_input", False) else {}
            about = dataclasses.replace(checkpoint, arch=name, num_classes=num_classes, arguments=arguments)
            return _evaluating(module, path), about
    except CheckpointError:
        pass
    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise CheckpointError(f"{path} holds a module without a linear layer, so without a classifier's head")
    return _evaluating(module, path), dataclasses.replace(checkpoint, num_classes=linear[-1].out_features)


def _evaluating(model: nn.Module, path: Path) -> nn.Module:
    """The network in eval mode.

    Raises:
        CheckpointError: its own ``eval`` or ``train`` does something else.
    """
    if model.eval() is not model:
        raise CheckpointError(
            f"{path}: eval() of {type(model).__name__} does not return the network: let it return self"
        )
    if any(module.training for module in model.modules()):
        raise CheckpointError(f"{path}: {type(model).__name__} stays in training mode after eval()")
    return model


def load_slim(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Load a slim network in eval mode, for finetuning or inference.

    Args:
        path: file that :func:`save_slim` wrote.
        model: dense network of the class that was pruned, needed for classes that this package cannot build; it is
            changed into the slim network.

    Raises:
        CheckpointError: the file cannot be used, or holds a dense network.
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
    path: str | Path, model: nn.Module, dense: Checkpoint | None = None, plan: Describable | None = None
) -> None:
    """Write a slim network as safetensors: the shapes of the tensors give its widths, the dense network its class.

    Args:
        path: the file.
        model: network that :func:`bise_prune.prune` returned, with its batch norms fused or not.
        dense: completed checkpoint of the dense network, for its architecture and preprocessing; without it,
            :func:`load_slim` needs a dense network of the class.
        plan: plan of the removal, which is written into the file's header.

    Raises:
        BiseError: the file cannot be written.
    """
    edits: tuple[Edit, ...] = ()
    saved = model
    if isinstance(model, RewiredModel):
        edits, model = model.edits, model.model
    identities = [name for name, module in model.named_modules() if isinstance(module, nn.Identity)]
    groups = {
        name: module.groups if isinstance(module, nn.modules.conv._ConvNd) else module.num_groups
        for name, module in model.named_modules()
        if isinstance(module, nn.GroupNorm) or (isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1)
    }
    is_rewired = isinstance(saved, RewiredModel)
    changes = {
        "edits": [edit.as_dict() for edit in edits],
        "totals": saved.totals if is_rewired else {},
        "as_exported": is_rewired and saved.as_exported,
        "identities": identities,
        "groups": groups,
    }
    state = {**state_tensors(model), **dict(model.named_buffers())}  # surgery may have cut non-persistent ones
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
    """Change a dense network into the slim network of a checkpoint."""
    assert checkpoint.slim is not None
    state = dict(checkpoint.state)
    try:
        for name in checkpoint.slim["identities"]:
            model.get_submodule(name)  # an unknown name must fail; set_submodule would add a new module
            model.set_submodule(name, nn.Identity())
        edits = [Edit.from_dict(edit) for edit in checkpoint.slim["edits"]]
        totals = {str(name): int(total) for name, total in checkpoint.slim["totals"].items()}
        _resize(model, state, {name: max(1, int(number)) for name, number in checkpoint.slim["groups"].items()})
        as_exported = bool(checkpoint.slim.get("as_exported"))
        slim = RewiredModel(model, edits, totals, as_exported) if edits else model
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its description is damaged ({type(error).__name__}: {error})") from error
    _load(model, state, path, arch)
    if isinstance(slim, RewiredModel):
        slim.rewirings.to(next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32))
    return slim


def _load(model: nn.Module, state: Mapping[str, Tensor], path: Path, arch: str) -> list[str]:
    """Load a state dict into a network, and return notes on what was left out.

    Raises:
        CheckpointError: names or shapes do not fit, or there are values that a network cannot have.
    """
    expected = state_tensors(model)
    found = matched(expected, state, path)
    differing = difference(expected, found)
    if differing.count and arch == TRANSFORMER:
        state = found = dict(renamed_weights(model, state))
        differing = difference(expected, found)
    if differing.count:
        raise CheckpointError(f"the weights in {path} do not fit '{arch}': {differing}")
    check_values(model, found, path)
    whole = model.state_dict()  # with the modules' versions, which torchvision needs
    whole.update(found)
    model.load_state_dict(whole)
    others = left_out(state, found)
    listed = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    return [f"{counted(len(others), 'tensor')} beside the network left out: {listed}"] if others else []


def check_values(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Check that weights are numbers that a network can have.

    Raises:
        CheckpointError: some are complex, sparse, quantised, without values, NaN, integers in the place of floats, or,
            of parameters and running statistics, infinite.
    """
    expected = state_tensors(model)
    finite = {name for name, _ in model.named_parameters()}
    finite |= {name for name in expected if name.rpartition(".")[2].startswith("running_")}
    for name, tensor in state.items():
        kind = (
            "sparse" if tensor.layout is not torch.strided else "quantised" if tensor.is_quantized
            else "complex" if tensor.is_complex() else "without values" if tensor.is_meta else None
        )  # fmt: skip
        if kind is not None:
            raise CheckpointError(f"{path}: '{name}' is {kind}, which cannot be pruned: save plain float weights")
        if not tensor.is_floating_point():
            if name in expected and expected[name].is_floating_point():
                kind = str(tensor.dtype).removeprefix("torch.")
                raise CheckpointError(f"{path}: '{name}' holds {kind}, which is no weight: save plain float weights")
            continue
        tensor = tensor if tensor.element_size() > 1 else tensor.float()  # torch looks for no NaN in numbers of 8 bits
        if bool(tensor.isnan().any()):
            raise CheckpointError(f"{path}: '{name}' holds NaN: the training that wrote it had failed before")
        if name in finite and bool(tensor.isinf().any()):
            raise CheckpointError(f"{path}: '{name}' holds infinity: the training that wrote it had failed before")


def _resize(model: nn.Module, state: dict[str, Tensor], groups: dict[str, int]) -> None:
    """Give the layers of ``model`` the shapes and dtypes of ``state``, without its values.

    Buffers that are not persistent get their values here and are removed from ``state``.
    """
    persistent = set(state_tensors(model))
    for name, fresh in list(state.items()):
        owner_name, _, leaf = name.rpartition(".")
        try:
            owner = model.get_submodule(owner_name)
        except AttributeError:
            continue  # _load reports it as unexpected
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
        # A convolution whose conv groups were reduced to one is saved without a number of groups.
        was_grouped = isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1
        declare_widths(module, groups.get(name, 1 if was_grouped else None))


def example_input(checkpoint: Checkpoint, shape: Sequence[int] | None = None, batch_size: int = 1) -> Tensor:
    """Make random noise of the shape that a checkpoint's network takes as input.

    Args:
        checkpoint: checkpoint whose preprocessing may give the image size.
        shape: shape of one sample; None = three channels of the image size in the checkpoint, or else of 224x224
            pixels.
        batch_size: number of samples.
    """
    size = tuple(checkpoint.preprocessing.get("size") or (224, 224))
    channels = checkpoint.preprocessing.get("channels") or 3
    return torch.randn(batch_size, *(shape or (channels, *size)), generator=torch.Generator().manual_seed(0))

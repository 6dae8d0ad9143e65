"""Find the network's weights in the nested content that a training script saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..digests import state_tensors
from ..errors import CheckpointError
from .inert import Inert

# Keys of the weights in training checkpoints, in order of preference; averaged weights only if there are no others.
_PLAIN = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")
_AVERAGED = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "ema_model_state_dict", "shadow")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "ema_model.")
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "AveragedModel", "OptimizedModule")
_DEEPEST = 4  # levels of nested mappings that are searched
_COUNTERS = ("n_averaged", "num_updates", "decay", "initted", "step")  # kept beside averaged weights
# Keys of the accuracy that a training script has measured, in order of preference.
_ACCURACIES = (
    "val_acc", "val_accuracy", "valid_acc", "test_acc", "test_accuracy", "acc", "acc1", "accuracy", "best_acc",
    "best_acc1", "best_accuracy", "best_val_acc", "best_val_accuracy", "best_prec1", "best_top1", "metric",
)  # fmt: skip


def network_in(content: Any, path: Path) -> tuple[dict[str, Tensor], nn.Module | None, tuple[str, ...]]:
    """Find the state dict in a file's content.

    Args:
        content: what the file holds, such as a state dict, a module, or a mapping that nests one.
        path: the file, for messages.

    Returns:
        The state dict; the module, if the content holds it whole, else None; and notes on the choice of weights.

    Raises:
        CheckpointError: there is no state dict, or it holds tensors of an unusual kind.
    """
    notes: list[str] = []
    found = _network_in(content, path, notes, _DEEPEST)
    if found is None:
        raise CheckpointError(f"{path} holds no state dict (a mapping of names to tensors){_instead(content)}")
    if isinstance(found, Inert) and not _is_state(found):
        state = dict(_weights_in(found))
        is_script = found.wanted.startswith("__torch__.")
        kind = "a TorchScript module" if is_script else f"a whole module of class {found.wanted}"
        notes.append(f"{path.name} holds {kind}, of which the weights alone were read")
        return _bare(state), None, tuple(notes)
    if not isinstance(found, nn.Module):
        unusual = {name: value.wanted for name, value in found.items() if isinstance(value, Inert)}
        if unusual:
            name = next(iter(unusual))
            raise CheckpointError(
                f"{path}: '{name}' is no plain tensor but made by {unusual[name]} (such as a sparse, quantised or meta "
                "tensor), which cannot be pruned: save plain float weights"
            )
        state = {key: value for key, value in found.items() if isinstance(value, Tensor)}
        extra = [key for key in found if key not in state and key.endswith("_extra_state")]
        if extra:
            notes.append(f"'{extra[0]}' in {path.name} is no tensor and left out: modules keep their own extra state")
        return _bare(state), None, tuple(notes)
    while type(found).__name__ in _WRAPPERS:
        inner = getattr(found, "module", None) or getattr(found, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            break
        found = inner
    try:
        state = state_tensors(found)
    except AttributeError as error:
        raise CheckpointError(f"{path} holds a module that is not complete ({error})") from error
    return state, found, tuple(notes)


def accuracy_in(content: Any) -> float | None:
    """The accuracy that a training script has saved beside the weights, in [0, 1]; None if there is none."""
    if not isinstance(content, Mapping) or isinstance(content, Inert):
        return None
    for key in _ACCURACIES:
        value = content.get(key)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 100:
            return float(value if value <= 1 else value / 100)
    return None


def _network_in(content: Any, path: Path, notes: list[str], depth: int) -> Any:
    """The first module or state dict in nested mappings; None if there is none."""
    if isinstance(content, nn.Module) or _is_state(content):
        return content
    if isinstance(content, Inert) and any(True for _ in _weights_in(content)):
        return content
    if not isinstance(content, Mapping) or not depth:
        return None
    found: dict[str, Any] = {}
    for key in (*_PLAIN, *_AVERAGED):
        inner: list[str] = []
        if isinstance(content.get(key), (Mapping, nn.Module)):
            network = _network_in(content[key], path, inner, depth - 1)
            if network is not None:
                found[key] = network
                notes += inner if len(found) == 1 else []
    if not found:
        return None
    first = next(iter(found))
    averaged = [key for key in found if key in _AVERAGED]
    if averaged and first not in _AVERAGED:
        notes.append(f"{path.name} holds averaged weights as well ('{averaged[0]}'); the plain ones ('{first}') count")
    elif averaged:
        notes.append(f"the weights are averaged ones ('{first}' in {path.name})")
    return found[first]


def _is_state(content: Any) -> bool:
    """Whether content is a mapping of names to tensors.

    Counters of averaged weights may be among them, and stand-ins for tensors of unusual kinds.
    """
    if not isinstance(content, Mapping) or not content or not all(isinstance(key, str) for key in content):
        return False
    others = [key for key, value in content.items() if not isinstance(value, Tensor)]
    known = [key for key in others if key in _COUNTERS or key.endswith("_extra_state")]
    rebuilt = [key for key in others if isinstance(content[key], Inert) and "._rebuild" in content[key].wanted]
    return len(known) < len(content) and len(known) + len(rebuilt) == len(others)


def _weights_in(module: Any, prefix: str = "", depth: int = 64) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the state dict of a module whose class is not known, or of a TorchScript module."""
    values = module.state if isinstance(module, Inert) else vars(module)
    if not isinstance(values, Mapping) or not depth:
        return
    children: Mapping[str, Any] = values
    if isinstance(values.get("_modules"), Mapping):
        unsaved = values.get("_non_persistent_buffers_set")
        for kind in ("_parameters", "_buffers"):
            for name, tensor in (values.get(kind) or {}).items():
                if isinstance(tensor, Tensor) and not (isinstance(unsaved, set) and name in unsaved):
                    yield f"{prefix}{name}", tensor
        children = values["_modules"]
    else:  # TorchScript has all attributes in one mapping
        for name, value in values.items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
    for name, child in children.items():
        if isinstance(child, (Inert, nn.Module)):
            yield from _weights_in(child, f"{prefix}{name}.", depth - 1)


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove counters, and prefixes of wrapper modules that all names share."""
    state = {name: tensor for name, tensor in state.items() if name not in _COUNTERS or tensor.ndim}
    for prefix in PREFIXES * 2:  # two passes, since prefixes nest in any order
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _instead(content: Any) -> str:
    """Describe what a file holds instead of a state dict, for a message."""
    if isinstance(content, Inert):
        return f" but an object of {content.wanted}"
    if isinstance(content, Mapping):
        keys = ", ".join(map(repr, list(content)[:5]))
        return (
            f" but a mapping with {keys}{', ...' if len(content) > 5 else ''}" if content else " but an empty mapping"
        )
    return f" but {type(content).__name__}"

"""Find the network's weights in the nested content that a training script saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError

# Keys of the weights in training checkpoints, in order of preference; averaged weights only if there are no others.
_PLAIN = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")
_AVERAGED = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "ema_model_state_dict", "shadow")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "ema_model.")
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "AveragedModel", "OptimizedModule")
_DEEPEST = 4  # levels of nested mappings that are searched
_COUNTERS = ("n_averaged", "num_updates", "decay", "initted", "step")  # kept beside averaged weights


def network_in(content: Any, path: Path) -> tuple[dict[str, Tensor], nn.Module | None, tuple[str, ...]]:
    """Find the state dict in a file's content.

    Args:
        content: what the file holds, such as a state dict, a module, or a mapping that nests one.
        path: the file, for messages.

    Returns:
        The state dict; the module, if the content holds it whole, else None; and notes on the choice of weights.

    Raises:
        CheckpointError: there is no state dict.
    """
    notes: list[str] = []
    found = _network_in(content, path, notes, _DEEPEST)
    if found is None:
        raise CheckpointError(f"{path} holds no state dict (a mapping of names to tensors){_instead(content)}")
    if not isinstance(found, nn.Module):
        return _bare({key: value for key, value in found.items() if isinstance(value, Tensor)}), None, tuple(notes)
    while type(found).__name__ in _WRAPPERS:
        inner = getattr(found, "module", None) or getattr(found, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            break
        found = inner
    try:
        state = {key: value for key, value in found.state_dict().items() if isinstance(value, Tensor)}
    except AttributeError as error:
        raise CheckpointError(f"{path} holds a module that is not complete ({error})") from error
    return state, found, tuple(notes)


def _network_in(content: Any, path: Path, notes: list[str], depth: int) -> Any:
    """The first module or state dict in nested mappings; None if there is none."""
    if isinstance(content, nn.Module) or _is_state(content):
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
    """Whether content is a mapping of names to tensors; counters of averaged weights may be among them."""
    if not isinstance(content, Mapping) or not content or not all(isinstance(key, str) for key in content):
        return False
    others = [key for key, value in content.items() if not isinstance(value, Tensor)]
    return len(others) < len(content) and all(key in _COUNTERS or key.endswith("_extra_state") for key in others)


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove counters, and prefixes of wrapper modules that all names share."""
    state = {name: tensor for name, tensor in state.items() if name not in _COUNTERS or tensor.ndim}
    for prefix in PREFIXES * 2:  # two passes, since prefixes nest in any order
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _instead(content: Any) -> str:
    """Describe what a file holds instead of a state dict, for a message."""
    if isinstance(content, Mapping):
        keys = ", ".join(map(repr, list(content)[:5]))
        return (
            f" but a mapping with {keys}{', ...' if len(content) > 5 else ''}" if content else " but an empty mapping"
        )
    return f" but {type(content).__name__}"

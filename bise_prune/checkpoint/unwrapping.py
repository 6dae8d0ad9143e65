"""The network's weights in what a training script saved around them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import CheckpointError

# Where training scripts put the weights, in order of preference; averaged ones only if there are no others.
_PLAIN = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")
_AVERAGED = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "ema_model_state_dict", "shadow")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "ema_model.")
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "AveragedModel", "OptimizedModule")
_DEEPEST = 4  # mapping within mapping
_COUNTERS = ("n_averaged", "num_updates", "decay", "initted", "step")  # of averages, beside the weights


def network_in(content: Any, path: Path) -> tuple[dict[str, Tensor], nn.Module | None, tuple[str, ...]]:
    """The state dict in a file's content, the module if it is there whole, and notes on what was chosen.

    Raises:
        CheckpointError: there is none.
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
    """Whether every entry is a tensor by name, counters of averages aside."""
    if not isinstance(content, Mapping) or not content or not all(isinstance(key, str) for key in content):
        return False
    others = [key for key, value in content.items() if not isinstance(value, Tensor)]
    return len(others) < len(content) and all(key in _COUNTERS or key.endswith("_extra_state") for key in others)


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without counters, and without the prefixes of wrappers that all names share."""
    state = {name: tensor for name, tensor in state.items() if name not in _COUNTERS or tensor.ndim}
    for prefix in PREFIXES * 2:  # in any order, and twice over
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _instead(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = ", ".join(map(repr, list(content)[:5]))
        return (
            f" but a mapping with {keys}{', ...' if len(content) > 5 else ''}" if content else " but an empty mapping"
        )
    return f" but {type(content).__name__}"

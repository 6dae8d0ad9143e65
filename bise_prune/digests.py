"""Digests by which stopped runs, plans and reports recognise the tensors that they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

_CHUNK = 2**26  # bytes that are copied at a time, if a tensor is not contiguous in the main memory


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors in a network's state dict, under all of their names, without what else its modules keep there.

    A module can add anything to the state dict (``get_extra_state``).
    """
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def tensors_digest(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of the names, shapes, dtypes and bytes of tensors, in hexadecimal; their order counts.

    About 1.5 GB a second on a processor with instructions for it.
    """
    found = hashlib.sha256()
    for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        for part in _parts(tensor.detach()):
            found.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _parts(tensor: Tensor) -> Sequence[Tensor]:
    """A tensor in parts along its first dimension, so that not all of it is copied at once."""
    if not tensor.numel():
        return []
    if not tensor.ndim:
        return [tensor]
    rows = max(1, _CHUNK * len(tensor) // (tensor.numel() * tensor.element_size()))
    parts: Sequence[Tensor] = tensor.split(rows)
    return parts

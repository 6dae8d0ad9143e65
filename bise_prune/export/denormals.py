"""Flushing of denormal numbers: weights too small to matter, with which processors compute slowly."""

from __future__ import annotations

import torch
from torch import nn

_DENORMAL = 1e-30


def flush_denormals(model: nn.Module) -> int:
    """Set weights below 1e-30 in magnitude to zero, in place, since processors are slow on them; returns how many."""
    flushed = 0
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tiny = (tensor != 0) & (tensor.abs() < _DENORMAL)
                flushed += int(tiny.sum())
                tensor[tiny] = 0
    return flushed

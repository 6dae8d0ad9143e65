"""Numbers too small to matter, on which processors are slow."""

from __future__ import annotations

import torch
from torch import nn

_DENORMAL = 1e-30


def flush_denormals(model: nn.Module) -> int:
    """Set weights below 1e-30 in magnitude to zero, in place, and count them: processors are slow on such numbers."""
    flushed = 0
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tiny = (tensor != 0) & (tensor.abs() < _DENORMAL)
                flushed += int(tiny.sum())
                tensor[tiny] = 0
    return flushed

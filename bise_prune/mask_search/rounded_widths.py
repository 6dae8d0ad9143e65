"""Widths that are rounded up, as the removal rounds them, in the numbers of channels that a cost is counted by."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tracing import Trace

_ROUNDED = ("mixing", "channelwise", "elementwise")  # kinds of calls whose outputs are rounded by themselves


def round_up(trace: Trace, present: list[Tensor], multiple: int) -> None:
    """Add the channels that fill widths up to a multiple, to how far each channel of each tensor is present.

    A layer's output is as wide as the next multiple, and what follows it is at least as wide. Attention rounds its own
    heads. What is added does not depend on the gates, so that a derivative still says what a single channel costs.

    Args:
        trace: trace of the network.
        present: for each tensor of the trace, how far each of its channels is present, in [0, 1]; changed.
        multiple: multiple that widths are rounded up to, > 1.
    """
    apart = {side.whole for attention in trace.attentions for side in attention.sources}
    added = [torch.zeros_like(channels) for channels in present]
    for call in trace.calls:
        for o, output in enumerate(call.outputs):
            value, room = trace.values[output], 1 - present[output].detach()
            if output in apart or output in trace.outputs or value.dim is None:
                continue
            if call.kind not in ("mixing", "opaque"):
                for k, operand in enumerate(call.operands):
                    mapping = call.maps.get((k, o))
                    if operand is not None and mapping is not None and len(mapping) == len(room):
                        carried = torch.where(mapping >= 0, added[operand][mapping.clamp(min=0)], 0.0)
                        added[output] = torch.maximum(added[output], torch.minimum(carried, room))
            if call.kind in _ROUNDED and value.layer:
                width = float((1 - room + added[output]).sum())
                missing = -(-round(width, 6) // multiple) * multiple - width
                free = room - added[output]
                added[output] += (missing - free.cumsum(0) + free).clamp(min=0).minimum(free)
    for output, more in enumerate(added):
        present[output] = present[output] + more

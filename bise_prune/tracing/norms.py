"""Functions that compute with all channels of a tensor, or of a group of them, at once: norms, and means over channels.

Channels of zeros can be left out of sums and of means, if these are still taken over as many channels as before.
"""

from __future__ import annotations

from typing import Any

from .functions import Slot
from .record import Call, Value

NORMS = {"layer_norm", "group_norm", "rms_norm", "normalize"}
# Norms that leave zeros as they are, and do not change if there are fewer of them, but for the mean.
WITHOUT_MEAN = {"rms_norm", "normalize"}
_POWERS = {"norm", "linalg_vector_norm"}
REDUCTIONS = {"mean", "sum", "amax", "amin"} | _POWERS


def groups_of(call: Call, first: Value) -> int | None:
    """Return the number of groups of channels that a norm computes with at once; None if it cannot be followed.

    Args:
        call: a call of one of ``NORMS``.
        first: the value that it normalises.
    """
    dim = first.dim
    if dim is None:
        return None
    if call.function == "group_norm":
        groups = call.argument(1, "num_groups")
        return groups if dim == 1 and first.shape[1] % groups == 0 else None
    if call.function == "normalize":
        return 1 if normalised_dims(call, len(first.shape)) == [dim] and call.argument(1, "p", 2.0) > 0 else None
    return 1 if dim == len(first.shape) - 1 and len(call.argument(1, "normalized_shape")) == 1 else None


def normalised_dims(call: Call, ndim: int) -> list[int]:
    """Return the dimensions that a call of ``normalize`` runs over."""
    dims = call.argument(2, "dim", 1)
    return [dim % ndim for dim in (dims if isinstance(dims, (tuple, list)) else (dims,))]


def parameters_of(call: Call) -> dict[str, Slot]:
    """Return where the parameters of a norm are among the arguments of its call, by their usual names."""
    if call.function == "normalize":
        return {}
    places = {"weight": 2} if call.function == "rms_norm" else {"weight": 2, "bias": 3}
    found = {name: call.argument(position, name) for name, position in places.items()}
    return {name: slot for name, slot in found.items() if isinstance(slot, Slot)}


def reduced_dims(call: Call, ndim: int) -> list[int] | None:
    """Return the dimensions that a reduction runs over; None if it is not one of sums of powers.

    Args:
        call: a call of one of ``REDUCTIONS``.
        ndim: number of dimensions of the tensor that it reads.
    """
    dims: Any = call.argument(1, "dim")
    if call.function in _POWERS:
        power = call.argument(1, "ord" if call.function == "linalg_vector_norm" else "p", 2)
        dims = call.argument(2, "dim")
        if power not in (None, "fro") and (isinstance(power, str) or power <= 0):
            return None
    if dims is None or dims == ():
        return list(range(ndim))
    return [dim % ndim for dim in (dims if isinstance(dims, (tuple, list)) else (dims,))]

"""Functions over the places of each channel, one channel at a time: extremes, sorting, running sums, deviations."""

from __future__ import annotations

from .record import Call

# Function -> position of the argument "dim", and its default; None = all dimensions.
OVER_PLACES: dict[str, tuple[int, int | None]] = {
    **dict.fromkeys(("max", "min", "median", "nanmedian", "mode", "prod", "nanmean", "nansum"), (1, None)),
    **dict.fromkeys(("std", "var", "std_mean", "var_mean", "aminmax", "logsumexp"), (1, None)),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"), (1, None)),
    **dict.fromkeys(("kthvalue", "topk"), (2, -1)),
    "sort": (1, -1),
}
# Of a channel that is the same everywhere, these return what it is, and a place beside it.
KEEP_CONSTANTS = {
    "max", "min", "median", "nanmedian", "mode", "nanmean", "aminmax", "cummax", "cummin", "kthvalue", "topk", "sort",
}  # fmt: skip
# What these return for a channel of zeros depends on how many places there are.
COUNT_PLACES = {"logsumexp", "logcumsumexp"}


def dims_over(call: Call, ndim: int) -> list[int] | None:
    """Return the dimensions that a call of one of ``OVER_PLACES`` runs over; None for all.

    Args:
        call: the call.
        ndim: number of dimensions of the tensor that it reads.
    """
    position, default = OVER_PLACES[call.function]
    dims = call.argument(position, "dim", default)
    if dims is None or isinstance(dims, bool):  # std(False) runs over all
        return None
    return [dim % ndim for dim in (dims if isinstance(dims, (tuple, list)) else (dims,))]

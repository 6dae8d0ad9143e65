"""The choice of widths by measurement: which multiple the kept channels are rounded up to, and which lowering."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..metrics.cost import AS_FAST, LatencyRatio

MULTIPLES = (1, 4, 8, 16, 32)  # tried in any case
SMALLEST_MULTIPLE = MULTIPLES[1]  # at which runtimes are fast as a rule; a search for a target counts widths at it


@dataclass(frozen=True)
class WidthTrial:
    """A slim network whose widths were rounded up to some multiple, as it was measured.

    Attributes:
        multiple: multiple that the number of kept channels per layer was rounded up to; 1 = no rounding.
        joins: lowering, as in :attr:`bise_prune.pruning.plan.PruningPlan.joins`.
        flops_left: share of the dense network's multiply-accumulates that is left, in [0, 1].
        meets_target: whether it is no larger than the target, but for its tolerance; True without a target.
        ratios: batch size -> latency divided by the dense network's.
    """

    multiple: int
    joins: str
    flops_left: float
    meets_target: bool
    ratios: Mapping[int, LatencyRatio]

    @property
    def is_as_fast(self) -> bool:
        """Whether it is as fast as the dense network at every batch size."""
        return all(ratio.is_as_fast for ratio in self.ratios.values())

    @property
    def mean_ratio(self) -> float:
        """Geometric mean of the ratios over the batch sizes, > 0."""
        return math.exp(sum(math.log(ratio.median) for ratio in self.ratios.values()) / len(self.ratios))


def choose(trials: Sequence[WidthTrial]) -> int:
    """Choose among measured networks of the same masks.

    Networks that are as fast as the dense one at every batch size come first, and of these the ones that still meet the
    target. Of the networks left, the choice is the one with the fewest FLOPs among those whose mean ratio is within 3 %
    of the lowest. If none is as fast as the dense network, it is the one whose worst ratio is the lowest, again among
    those that meet the target if there are any.

    Args:
        trials: the networks, at least one.

    Returns:
        The position of the choice in ``trials``.
    """
    fast = [i for i, trial in enumerate(trials) if trial.is_as_fast]
    left = fast or list(range(len(trials)))
    pool = [i for i in left if trials[i].meets_target] or left
    if not fast:
        return min(pool, key=lambda i: max(ratio.median for ratio in trials[i].ratios.values()))
    longest = AS_FAST * min(trials[i].mean_ratio for i in pool)
    return min((i for i in pool if trials[i].mean_ratio <= longest), key=lambda i: trials[i].flops_left)


def coarser(widest: int) -> Iterator[int]:
    """Yield multiples beyond :data:`MULTIPLES`, each twice the last, up to one that keeps every layer's full width.

    Args:
        widest: largest number of channels of a layer of the dense network.
    """
    multiple = MULTIPLES[-1]
    while multiple < widest:
        multiple *= 2
        yield multiple

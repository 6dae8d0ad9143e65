"""The choice of widths, on measurements that are made up."""

import pytest

from bise_prune.metrics.cost import LatencyRatio
from bise_prune.pruning.widths import WidthTrial, choose, coarser


def trial(multiple, flops_left, *ratios, meets_target=True):
    measured = {size: LatencyRatio(r, r, r, size) for size, r in zip((1, 16), ratios, strict=True)}
    return WidthTrial(multiple, "dense", flops_left, meets_target, measured)


@pytest.mark.parametrize(
    ("trials", "chosen"),
    [
        # The fastest, by the geometric mean of both batch sizes: 0.6 against 0.55.
        ([trial(1, 0.3, 0.9, 0.4), trial(4, 0.35, 0.55, 0.55)], 4),
        # Within 3 % of the fastest, the one with the fewest FLOPs.
        ([trial(4, 0.35, 0.51, 0.51), trial(8, 0.4, 0.5, 0.5), trial(16, 0.5, 0.5, 0.5)], 4),
        ([trial(4, 0.35, 0.52, 0.52), trial(8, 0.4, 0.5, 0.5), trial(16, 0.45, 0.5, 0.5)], 8),
        # One that is slower than the dense network at either batch size is left out, whatever it saves at the other.
        ([trial(1, 0.2, 0.3, 1.1), trial(1, 0.2, 1.1, 0.3), trial(32, 0.8, 0.95, 0.95)], 32),
        # 3 % may be noise.
        ([trial(1, 0.2, 1.02, 1.03), trial(32, 1.0, 1.04, 1.0)], 1),
        # None is as fast: the one whose worst ratio is the lowest.
        ([trial(1, 0.2, 0.5, 1.9), trial(8, 0.5, 1.2, 1.1), trial(32, 0.9, 1.0, 1.3)], 8),
        ([trial(1, 0.5, 1.3, 1.3), trial(8, 0.6, 1.1, 1.1, meets_target=False)], 1),
        # A target comes before speed, among those that are as fast as the dense network.
        ([trial(1, 0.5, 0.9, 0.9), trial(16, 0.6, 0.5, 0.5, meets_target=False)], 1),
        ([trial(1, 0.5, 0.9, 1.2), trial(16, 0.6, 0.5, 0.5, meets_target=False)], 16),
        ([trial(1, 0.5, 1.5, 1.5)], 1),
    ],
)
def test_the_choice(trials, chosen):
    assert trials[choose(trials)].multiple == chosen


@pytest.mark.parametrize(("widest", "multiples"), [(0, []), (32, []), (33, [64]), (64, [64]), (100, [64, 128])])
def test_coarser_multiples_end_at_the_full_width(widest, multiples):
    assert list(coarser(widest)) == multiples

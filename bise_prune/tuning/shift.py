"""One offset per class on the logits (post-hoc logit adjustment), fitted to the accuracy that is to be high."""

# Shape suffixes: N samples, C classes, G groups.

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Figure = Callable[[Tensor], Tensor]

_SWEEPS = 10  # passes over the classes, at most
_TIE = 1e-6  # weight of the mean beside the worst group, which decides between equals


def mean_of_groups(accuracy_G: Tensor) -> Tensor:
    """Mean over the groups, which are the first dimension."""
    return accuracy_G.mean(0)


def worst_of_groups(accuracy_G: Tensor) -> Tensor:
    """Worst of the groups, which are the first dimension; of equals, that with the higher mean."""
    return accuracy_G.amin(0) + _TIE * accuracy_G.mean(0)


def fitted_offsets(logits_NC: Tensor, target_N: Tensor, members_GN: Tensor, figure: Figure = mean_of_groups) -> Tensor:
    """Offsets of the logits by which a figure of the groups' accuracies is as high as possible.

    One class after the other gets the best offset while the others stay: the accuracies change only where a sample
    passes from one class to another, so that each step looks at every possible offset. For two classes the result is
    the best there is; for more, no change of a single offset is better. Offsets that gain nothing stay 0.

    Args:
        logits_NC: logits.
        target_N: class labels, int64.
        members_GN: which samples belong to each group, bool; every group has some.
        figure: function from the groups' accuracies, shape (G, K) for K choices, to the figure, shape (K,).

    Returns:
        Offsets, shape (C,), float64; they sum to 0.

    >>> logits, target = torch.tensor([[0.0, -1.0], [0.0, -0.4], [0.0, 1.0]]), torch.tensor([0, 1, 1])
    >>> fitted_offsets(logits, target, torch.stack([target == 0, target == 1])).round(decimals=2).tolist()
    [-0.35, 0.35]
    """
    logits, num_classes = logits_NC.double(), logits_NC.shape[1]
    share_GN = members_GN.double() / members_GN.sum(1, keepdim=True)
    offsets = torch.zeros(num_classes, dtype=torch.double, device=logits.device)
    best = float(figure(share_GN @ (logits.argmax(1) == target_N).double()[:, None]))
    for _ in range(_SWEEPS):
        before = best
        for label in range(num_classes) if num_classes > 2 else (1,):
            found, offset = _best_offset(logits + offsets, target_N, share_GN, figure, label)
            if found > best + 1e-12:
                best = found
                offsets[label] += offset
        if best <= before:
            break
    return offsets - offsets.mean()


def _best_offset(logits: Tensor, target: Tensor, share: Tensor, figure: Figure, label: int) -> tuple[float, float]:
    """The highest figure that an offset of one class reaches, and of the offsets that reach it one near 0."""
    others = logits.clone()
    others[:, label] = -torch.inf
    rival, second = others.max(1)
    passing, order = (rival - logits[:, label]).sort()  # the offset beyond which each sample passes to the class
    gain = ((target == label).double() - (second == target).double())[order]
    start = share @ (second == target).double()
    reached = torch.cat([start[:, None], start[:, None] + (share[:, order] * gain).cumsum(1)], 1)
    is_interval = torch.ones(len(passing) + 1, dtype=torch.bool, device=logits.device)
    is_interval[1:-1] = passing[1:] > passing[:-1]  # between equal offsets there is none
    figures = figure(reached).masked_fill(~is_interval, -torch.inf)
    middles = torch.cat([passing[:1] - 1, (passing[1:] + passing[:-1]) / 2, passing[-1:] + 1])
    highest = figures.max()
    choices = middles[figures >= highest - 1e-12]
    return float(highest), float(choices[choices.abs().argmin()])

"""The data that a search learns masks on: the training set, or half of the validation set.

Masks learn from the bias-conflicting samples that the network gets wrong. A trained network has memorised many of those
that it was trained on: by their losses, they are solved already, and say little about which channels carry the bias. So
a balanced validation set of some hundreds of samples has more to say than many a training set, while one that is as
biased as the training set, and smaller, has less. What counts is where the network makes more of these mistakes; one on
a sample that it was not trained on counts twice, since what is still wrong after training is not typical.

A search on half of the validation set leaves the other half for selection, so that masks are never selected on samples
that they were learned on. Nor need the training set have bias labels then.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import RunConfig
from ..data import BatchLoader, BiasedDataset, DataSplits
from ..errors import ConfigError, DataError
from ..metrics.accuracy import predictions
from ..metrics.subgroups import is_aligned

LEAST_CONFLICTING = 20  # bias-conflicting validation samples of each class, from which on "auto" may search on half
_WORTH = 2.0  # mistakes on training samples that one on a sample of the validation set is worth
_MOST = 2000  # bias-conflicting samples of a set that are looked at
_BATCH = 256


def halves_for(
    config: RunConfig, splits: DataSplits, aligned: Tensor, dense: nn.Module
) -> tuple[BiasedDataset, BiasedDataset] | None:
    """Halves of the validation set for learning masks and for selecting them, as the setting ``search_on`` says.

    Args:
        config: settings of the run.
        splits: data set.
        aligned: bias value that each class is aligned with, shape (classes, K).
        dense: dense network, on any device.

    Returns:
        The halves; None if masks are learned on the training set.

    Raises:
        ConfigError: there is no validation set with bias labels to search on.
        DataError: it has too few bias-conflicting samples for two halves.
    """
    val, is_asked = splits.val, config.search_on == "validation"
    if config.criterion != "learned" or config.unsupervised or config.search_on == "training":
        return None
    if val is None or not val.has_bias:
        if is_asked:
            raise ConfigError("search_on 'validation' needs a validation split with bias labels; there is none")
        return None
    halves = halved(val)
    if is_asked or not splits.train.has_bias:
        numbers = [int(conflicting_per_class(half, aligned).sum()) for half in halves]
        if not min(numbers):
            other = "use --search-on training" if splits.train.has_bias else "label more of it, or pass --unsupervised"
            raise DataError(
                "masks are to be learned on half of the validation split, which needs bias-conflicting samples in both "
                f"halves; they have {numbers[0]} and {numbers[1]}: {other}"
            )
        return halves
    is_plain = config.search.is_gradual and config.search.rho is None and not config.bias_noise
    has_enough = int(conflicting_per_class(val, aligned).min()) >= LEAST_CONFLICTING
    if not is_plain or not has_enough:
        return None
    held_out, trained_on = (mistakes(dense, data, aligned) for data in (halves[0], splits.train))
    return halves if _WORTH * held_out >= trained_on else None


def mistakes(model: nn.Module, data: BiasedDataset, aligned: Tensor) -> float:
    """About how many bias-conflicting samples a model gets wrong: all of them are looked at, or 2,000 at random."""
    rows = (~is_aligned(data.target, data.bias, aligned).all(1)).nonzero().flatten()
    if not len(rows):
        return 0.0
    seen = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:_MOST]]
    predicted, target, _ = predictions(model, BatchLoader(data.subset(seen), _BATCH))
    return len(rows) * float((predicted != target).double().mean())


def conflicting_per_class(data: BiasedDataset, aligned: Tensor) -> Tensor:
    """Bias-conflicting samples of each class, shape (classes,); those count that conflict with any of the biases."""
    return torch.bincount(data.target[~is_aligned(data.target, data.bias, aligned).all(1)], minlength=len(aligned))


def halved(data: BiasedDataset) -> tuple[BiasedDataset, BiasedDataset]:
    """Divide data into two halves with the same number of samples of each subgroup, give or take one.

    Samples that were made from one object stay together; then it is the number of objects by the subgroup of their
    first sample. The division depends on the data alone, so that all runs on them have the same.
    """
    origin = torch.arange(len(data)) if data.origin is None else data.origin.cpu()
    _, made_from = origin.unique(return_inverse=True)
    first = torch.full((int(made_from.max()) + 1,), len(data)).scatter_reduce(
        0, made_from, torch.arange(len(data)), "amin"
    )
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(0))
    labels = torch.cat([data.target[:, None], data.bias], 1).cpu()[first[order]]
    order = order[labels.unique(dim=0, return_inverse=True)[1].argsort(stable=True)]
    is_second = torch.zeros(len(first), dtype=torch.bool)
    is_second[order[1::2]] = True
    rows = is_second[made_from]
    return data.subset((~rows).nonzero().flatten()), data.subset(rows.nonzero().flatten())

"""A check before any long work that the dense network works at all, which a wrong order of classes would prevent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ..data import BatchLoader, BiasedDataset
from ..errors import counted
from ..metrics.accuracy import predictions
from ..metrics.chance import against_chance
from .session import Session

_MOST, _FEWEST = 2000, 50  # samples that are looked at, and fewer than which tell nothing
_CHUNK = 250
_ANYWAY = "or pass --force to go on with it"
_CLEAR = 4.0  # standard errors above chance at which no more samples are looked at
_FAR_BELOW = 0.1  # accuracy on training samples below the one that the checkpoint says at which something is wrong
_REORDERED = 0.25  # accuracy above chance that another order of the outputs must give to be named


@dataclass(frozen=True)
class Baseline:
    """How the dense network does on training samples.

    Attributes:
        words: its accuracy on the samples that were looked at.
        doubt: why a search would have nothing to go by, with what to check; "" if there is no such reason.
    """

    words: str
    doubt: str = ""


def baseline_of(session: Session) -> Baseline:
    """Look whether the dense network does better than chance on training samples, and what its checkpoint says of it.

    These are mostly bias-aligned, so that a network which has learned nothing but the bias does well on them. Most
    networks are clear after the first few hundred samples. Small training sets give no reason to doubt.
    """
    train = session.splits.train
    model = session.on_device(session.dense)
    parts = []
    for rows in _sample(train).split(_CHUNK):
        parts.append(_predicted(model, train.subset(rows)))
        predicted, target = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        if against_chance(predicted, target).is_above(_CLEAR):
            break
    found = against_chance(predicted, target)
    words = f"the dense network is right on {found.accuracy:.1%} of {counted(len(target), 'training sample')}"
    if len(train) < _FEWEST:
        return Baseline(words)
    said = session.checkpoint.accuracy
    if said is not None and found.accuracy < said - _FAR_BELOW:
        doubt = f"{words}, but its checkpoint says {said:.1%}: {_hint(session, predicted, target)}"
        return Baseline(words, f"{doubt}; {_ANYWAY}")
    if found.is_above():
        return Baseline(words)
    others = {"train": found.accuracy}
    for name, data in session.splits.by_name.items():
        if name != "train" and data is not None:
            others[name] = against_chance(*_predicted(model, data.subset(_sample(data)))).accuracy
    figures = ", ".join(f"{name} {accuracy:.1%}" for name, accuracy in others.items())
    what = "predicts one class for every sample" if found.is_constant else "does no better than chance"
    return Baseline(
        words,
        f"the dense network {what} (accuracy on up to {_MOST:,} samples: {figures}; chance {found.chance:.1%}), so "
        f"that there is nothing to prune: {_hint(session, predicted, target)}; {_ANYWAY}",
    )


def _sample(data: BiasedDataset) -> Tensor:
    """Indices of samples in a fixed random order, at most ``_MOST`` of them."""
    return torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:_MOST]


def _predicted(model: nn.Module, data: BiasedDataset) -> tuple[Tensor, Tensor]:
    """Predicted classes and class labels, shape (N,) each."""
    return predictions(model, BatchLoader(data, _CHUNK))[:2]


def _hint(session: Session, predicted: Tensor, target: Tensor) -> str:
    """What to look at, by the predictions and the kind of data."""
    classes = f" ({', '.join(session.splits.classes[:10])})" if len(session.splits.classes) else ""
    counts = torch.zeros(session.num_classes, session.num_classes, dtype=torch.int64)
    counts.index_put_((predicted, target), torch.ones_like(target), accumulate=True)
    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    best = int(counts[torch.as_tensor(rows), torch.as_tensor(columns)].sum()) / len(target)
    if best > against_chance(predicted, target).chance + _REORDERED and len(predicted.unique()) > 1:
        names, order = session.splits.classes, [int(column) for column in columns]
        is_named = len(names) == len(order) and not all(str(name).isdigit() for name in names)
        how = f"pass --classes {','.join(names[y] for y in order)}" if is_named else "number the labels accordingly"
        return (
            f"with its outputs in another order it would be right for {best:.1%}, so check the order of the classes"
            f"{classes}: the labels in the data must be the numbers of the network's outputs; {how}, if that is it"
        )
    train = session.splits.train
    if not isinstance(train.inputs, Tensor):
        return (
            f"check that its classifier head was trained on these classes{classes}, and that the tokenizer is its own"
        )
    shape = " x ".join(map(str, train.inputs.shape[2:]))
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (train.mean, train.std))
    return (
        f"check the order of the classes{classes}, how images are normalised (--mean, now {mean or 'none'}; --std, now "
        f"{std or 'none'}), their size and crop (--size, now {shape}; --crop), and that the checkpoint is the trained "
        "one"
    )

"""A classifier head that is fitted to the present masks, on a balanced sample of the training set.

Closing channels shifts what the head reads, and much of what is lost that way is undone by a new head. How well one
does is told for each round of a gradual search.
"""

# Shape suffixes: N samples, D features, C classes.

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from ..config import SearchConfig
from ..data.batch import Batch, input_map
from ..distributed import world
from .training_data import Part, Position, TrainingData, TrainingLabels

_PENALTY = 1e-2  # weight of the squared norm of the refitted head's weights, on standardised features
_ITERATIONS = 100  # of L-BFGS
_LEAST_VARIANCE = 1e-6  # added to that of standardised features, which may depend on each other
_BATCH = 50  # samples in a part of the balanced sample
_SAMPLE, _REFITTED_SAMPLE = 600, 2_000  # samples of the balanced sample, at most; those to which heads are fitted


class Sample(NamedTuple):
    """A sample of the training set in which a sample may be found more than once.

    Attributes:
        parts: this process's part of it, in batches between which gradients are compared.
        numbers: for each batch, numbers that tell its samples apart from all others, those of other processes included;
            copies of a sample have the same number.
        batches: the same samples in the same order, in batches as large as the loader's if these are larger, which
            pass faster.
    """

    parts: list[Part]
    numbers: list[Tensor]
    batches: list[Part]


def sample_size(config: SearchConfig, num_samples: int) -> int:
    """Number of samples of the balanced sample by which masks are judged, of a training set of so many.

    >>> [sample_size(SearchConfig(refit=refit), 5_000) for refit in ("none", "head")]
    [600, 2000]
    """
    return min(num_samples, _REFITTED_SAMPLE if config.refit == "head" else _SAMPLE)


def balanced_sample(
    data: TrainingData, labels: TrainingLabels, position: Position, generator: torch.Generator, size: int
) -> Sample:
    """Draw a sample of the training set in which every sample is found in proportion to its weight r.

    The draw is systematic: a sample is found as often as its expected number says, rounded up or down. So a set of that
    size whose samples weigh the same is its own sample. A loader that is not in memory is passed once.

    Args:
        data: the training set.
        labels: its labels and weights.
        position: position of the search in its data.
        generator: source of the draw.
        size: expected number of samples.
    """
    rank, processes = world()
    known = labels.known.weight.double()
    rate, start = size / float(known.sum()), float(torch.rand(1, generator=generator))
    if data.in_memory is not None:
        rows = _drawn(known * rate, start)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        size = max(1, min(_BATCH, len(rows) // processes))  # every process has a batch
        parts = list(rows.split(size)[rank::processes])
        return Sample(list(parts), parts, list(torch.cat(parts).split(max(size, data.in_memory.batch_size))))
    found, passed = Sample([], [], []), 0
    for part in data.next_pass(position):
        batch, expected = data.batch(part), labels.of(part).weight.double() * rate
        rows = _drawn(expected, start)
        start = (start + float(expected.sum())) % 1
        if len(rows):
            found.parts.append(_rows_of(batch, rows))
            found.batches.append(found.parts[-1])
            found.numbers.append((passed + rows) * processes + rank)
        passed += len(expected)
    return found


def _rows_of(batch: Batch, rows: Tensor) -> Batch:
    """Some samples of a batch."""
    inputs = input_map(batch.input, lambda tensor: tensor[rows.to(tensor.device)])
    return Batch(inputs, batch.target[rows.to(batch.target.device)], batch.bias[rows.to(batch.bias.device)])


def _drawn(expected: Tensor, start: float) -> Tensor:
    """Numbers of the drawn samples, each as often as whole numbers are passed when its expected number is added."""
    passed = (start + expected.detach().cpu().cumsum(0)).floor().long()
    return torch.arange(len(passed)).repeat_interleave(passed.diff(prepend=torch.zeros(1, dtype=torch.long)))


def refitted_head(
    features_ND: Tensor, target_N: Tensor, num_classes: int, weight_N: Tensor | None = None, penalty: float = _PENALTY,
    iterations: int = _ITERATIONS,
) -> Tensor:  # fmt: skip
    """Logistic regression with an L2 penalty on standardised features (last-layer retraining, Kirichenko et al., 2023).

    It minimises the mean cross-entropy, weighted, plus ``penalty / 2`` times the squared norm of the weights of the
    standardised features; the additive bias is not penalised. L-BFGS looks for the minimum in coordinates in which the
    features are uncorrelated, where it needs far fewer iterations, if there are no more features than samples.

    Args:
        features_ND: bottleneck features.
        target_N: class labels, int64.
        num_classes: number C of classes.
        weight_N: weights of the samples; None = 1 for all.
        penalty: weight of the squared norm, > 0.
        iterations: of L-BFGS, at most.

    Returns:
        Weights with the additive bias in the last column, shape (C, D + 1), in the precision of the features.
    """
    weights = torch.ones(len(target_N), device=features_ND.device) if weight_N is None else weight_N
    weights = weights.double() / weights.double().sum()
    features = features_ND.double()
    mean = weights @ features
    scale = (weights @ (features - mean).square()).sqrt() + 1e-5
    inputs = (features - mean) / scale
    way_back = _decorrelating(inputs, weights, num_classes * penalty)
    if way_back is not None:
        inputs = inputs @ way_back.T
    weight = torch.zeros(num_classes, inputs.shape[1], dtype=torch.double, device=inputs.device, requires_grad=True)
    offset = torch.zeros(num_classes, dtype=torch.double, device=inputs.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, offset], max_iter=iterations, line_search_fn="strong_wolfe")

    def standardised() -> Tensor:
        """The weights of the standardised features."""
        return weight if way_back is None else weight @ way_back

    def closure() -> Tensor:
        """The penalised loss, with its gradient."""
        optimizer.zero_grad()
        losses = cross_entropy(linear(inputs, weight, offset), target_N, reduction="none")
        loss = weights @ losses + penalty / 2 * standardised().square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    slope = standardised().detach() / scale
    return torch.cat([slope, (offset.detach() - slope @ mean)[:, None]], 1).to(features_ND.dtype)


def _decorrelating(inputs_ND: Tensor, weight_N: Tensor, more: float) -> Tensor | None:
    """Matrix (D, D) that makes features of mean 0 uncorrelated; None if there are more of them than samples.

    Args:
        inputs_ND: the features.
        weight_N: weights of the samples, of sum 1.
        more: variance that is added to that of each feature, >= 0.
    """
    count, width = inputs_ND.shape
    if width > count:
        return None
    identity = torch.eye(width, dtype=inputs_ND.dtype, device=inputs_ND.device)
    covariance = (inputs_ND * weight_N[:, None]).T @ inputs_ND
    factor, failed = torch.linalg.cholesky_ex(covariance + (more + _LEAST_VARIANCE) * identity)
    return None if failed else torch.linalg.solve_triangular(factor, identity, upper=False)

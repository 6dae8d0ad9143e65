"""Fairness of the dense and the slim network side by side, by the usual definitions, with confidence intervals.

Demographic parity and equalised odds are those of Hardt et al. (2016) and of Fairlearn, one class against the rest;
with two classes both give the same figures, with more classes each class has its own.
"""

# Shape suffixes: N samples, U distinct rows of labels and predictions, R resamples, G subgroups, B bias values,
# C classes, K biases.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse, stats
from torch import Tensor

from .accuracy import subgroup_members
from .subgroups import is_aligned

Array = NDArray[Any]

RESAMPLES = 1000
LEVEL = 0.95
_CHUNK = 100  # resamples that are computed at a time


def fairness_record(
    dense_N: Tensor,
    slim_N: Tensor,
    target_N: Tensor,
    bias_NK: Tensor,
    aligned: Tensor,
    origin_N: Tensor | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare what the dense and the slim network predict for each subgroup, as the fairness part of the report record.

    Figures of a whole set have percentile bootstrap intervals. Samples are resampled within each subgroup, the same
    ones for both networks, so that "change" is paired; samples of one origin are resampled together, within each class.
    The accuracy of a subgroup has a Wilson interval, and the bounds of the worst group are the lowest of these, since a
    bootstrap of 0 right out of 5 would be a point. If all resamples give the same figure, there are too few samples for
    an interval. A figure that no samples define is None.

    Args:
        dense_N: classes that the dense network predicts, shape (N,), int64.
        slim_N: classes that the slim network predicts, shape (N,), int64.
        target_N: class labels, shape (N,), int64.
        bias_NK: bias labels, shape (N, K), int64; with K = 0 (none known), the classes are the subgroups.
        aligned: the bias value that each class is aligned with, shape (classes, K), int64.
        origin_N: number of the object that each sample was made from, see :class:`bise_prune.data.BiasedDataset`; None
            = all samples are independent.
        resamples: number of bootstrap resamples.
        level: confidence level of the intervals, in (0, 1).
        seed: random seed of the resamples.

    Returns:
        ``n``, ``origins`` (number of origins; None if all samples are independent), ``interval`` (how intervals were
        computed), ``groups`` (per subgroup its size, both accuracies, and how many predictions changed), and under
        ``dense``, ``slim`` and ``change`` every figure as ``{"value", "low", "high"}``: ``accuracy``,
        ``unbiased_accuracy``, ``worst_group_accuracy`` and per entry of ``biases`` the ``aligned_conflicting_gap``, the
        ``accuracy_gap`` between bias values, ``demographic_parity_difference`` and ``equalized_odds_difference``, which
        are the largest over the classes, with each class's own figures in ``by_class``.
    """
    rows = torch.cat([torch.stack([target_N, dense_N, slim_N], 1), bias_NK], 1)
    distinct, place_N, counts = rows.unique(dim=0, return_inverse=True, return_counts=True)
    target, dense, slim, bias = distinct[:, 0], distinct[:, 1], distinct[:, 2], distinct[:, 3:]
    members = [(name, mask) for name, mask in subgroup_members(target, bias, aligned) if mask.any()]
    subgroup = torch.stack([mask for _, mask in members]).int().argmax(0)
    on_side = is_aligned(target, bias, aligned) if bias.shape[1] else bias.bool()
    classes = rows[:, :3].unique()  # that occur as labels or predictions
    table = _Table(target.numpy(), bias.numpy(), subgroup.numpy(), on_side.numpy(), classes.numpy())
    if origin_N is None:
        draws = _resampled(counts.numpy(), subgroup.numpy(), resamples, seed)
    else:
        draws = _resampled_by_origin(place_N.numpy(), origin_N.numpy(), target_N.numpy(), resamples, seed)
    parts: dict[str, list[dict[str, Array]]] = {"dense": [], "slim": []}
    changes = []
    for weights_RU in draws:
        for name, predicted in (("dense", dense), ("slim", slim)):
            parts[name].append(table.figures(weights_RU, predicted.numpy()))
        gain = (slim == target).numpy().astype(float) - (dense == target).numpy()
        with np.errstate(invalid="ignore"):
            changes.append(table.by(weights_RU * gain, table.subgroup) / table.by(weights_RU, table.subgroup))
    series = {
        name: {key: np.concatenate([part[key] for part in chunks]) for key in chunks[0]}
        for name, chunks in parts.items()
    }
    series["change"] = {key: series["slim"][key] - series["dense"][key] for key in series["dense"]}
    change_RG = np.concatenate(changes)
    groups: list[dict[str, Any]] = []
    for g, (name, mask) in enumerate(members):
        n = counts[mask]
        right = {key: int((n * (p == target)[mask]).sum()) for key, p in (("dense", dense), ("slim", slim))}
        groups.append(
            {
                "name": name,
                "n": int(n.sum()),
                "aligned": on_side[mask][0].tolist(),  # per bias
                **{key: _wilson(value, int(n.sum()), level) for key, value in right.items()},
                "change": _interval(change_RG[:, g], level),
                "fixed": int((n * ((dense != target) & (slim == target))[mask]).sum()),
                "broken": int((n * ((dense == target) & (slim != target))[mask]).sum()),
                "changed": int((n * (dense != slim)[mask]).sum()),
            }
        )
    drawn = "samples within subgroups" if origin_N is None else "what samples were made of, within classes"
    record: dict[str, Any] = {
        "n": len(target_N),
        "origins": None if origin_N is None else len(origin_N.unique()),
        "interval": {
            "level": level,
            "method": f"percentile bootstrap of {drawn}, {resamples} resamples, seed {seed}; Wilson for the accuracy "
            "of a subgroup",
        },
        "groups": groups,
        **{name: table.record(figures, level, counts.numpy()) for name, figures in series.items()},
    }
    for name in ("dense", "slim"):
        for bound in ("low", "high"):
            record[name]["worst_group_accuracy"][bound] = min(group[name][bound] for group in groups)
    return record


class _Table:
    """The distinct rows of labels and predictions, and figures that are computed from them under weights (R, U)."""

    def __init__(self, target_U: Array, bias_UK: Array, subgroup_U: Array, aligned_UK: Array, classes: Array) -> None:
        self.target, self.subgroup, self.aligned, self.classes = target_U, subgroup_U, aligned_UK, classes
        self.values = [np.unique(column, return_inverse=True) for column in bias_UK.T]  # per bias, with indices

    def by(self, weights_RU: Array, index_U: Array, size: int = 0) -> Array:
        """Sum weights (R, U) by the index (U,) of their row: shape (R, size)."""
        size = size or int(index_U.max()) + 1
        selector = sparse.csr_matrix((np.ones(len(index_U)), (np.arange(len(index_U)), index_U)), (len(index_U), size))
        return np.asarray(weights_RU @ selector)

    def figures(self, weights_RU: Array, predicted_U: Array) -> dict[str, Array]:
        """Every figure of a classifier, with one value per resample; NaN if it is undefined."""
        right = weights_RU * (predicted_U == self.target)
        with np.errstate(invalid="ignore"):
            groups_RG = self.by(right, self.subgroup) / self.by(weights_RU, self.subgroup)
        found = {
            "accuracy": right.sum(1) / weights_RU.sum(1),
            "unbiased_accuracy": np.nanmean(groups_RG, axis=1),
            "worst_group_accuracy": np.nanmin(groups_RG, axis=1),
        }
        num_classes = int(self.classes.max()) + 1
        for k, (values, place_U) in enumerate(self.values):
            size, shape = len(values) * num_classes, (-1, len(values), num_classes)
            on_side = self.aligned[:, k]
            with np.errstate(invalid="ignore", divide="ignore"):
                sides = [(right * side).sum(1) / (weights_RU * side).sum(1) for side in (on_side, ~on_side)]
                members_RB1 = self.by(weights_RU, place_U, len(values))[:, :, None]
                accuracy_RB = self.by(right, place_U, len(values)) / members_RB1[:, :, 0]
                chosen = self.by(weights_RU, place_U * num_classes + predicted_U, size).reshape(shape)
                positive = self.by(weights_RU, place_U * num_classes + self.target, size).reshape(shape)
                hits = self.by(right, place_U * num_classes + self.target, size).reshape(shape)
                selection, recall = _spread(chosen / members_RB1), _spread(hits / positive)
                false_alarms = _spread((chosen - hits) / (members_RB1 - positive))
            found[f"{k} aligned_conflicting_gap"] = sides[0] - sides[1]
            found[f"{k} accuracy_gap"] = _spread(accuracy_RB[:, :, None])[:, 0]
            odds = np.maximum(recall, false_alarms)
            for name, each in (("demographic_parity_difference", selection), ("equalized_odds_difference", odds)):
                of_classes = each[:, self.classes]
                found[f"{k} {name}"] = np.where(
                    np.isnan(of_classes).all(1), np.nan, np.nan_to_num(of_classes, nan=-1.0).max(1)
                )
                for c in self.classes:
                    found[f"{k} {name} {c}"] = each[:, c]
        return found

    def record(self, series: Mapping[str, Array], level: float, counts_U: Array) -> dict[str, Any]:
        """The figures in the form of the report record."""
        plain = {key: _interval(values, level) for key, values in series.items() if not key[0].isdigit()}
        biases = []
        for k, (values, place_U) in enumerate(self.values):
            names = ("aligned_conflicting_gap", "accuracy_gap", "demographic_parity_difference",
                     "equalized_odds_difference")  # fmt: skip
            cells = {(int(b), int(y)) for b, y in zip(place_U, self.target, strict=True)}
            positive_classes = self.classes[-1:] if len(self.classes) == 2 else self.classes
            by_class: list[dict[str, Any]] = [
                {
                    "class": int(c),
                    "undefined_cells": sum((b, int(c)) not in cells for b in range(len(values))),
                    **{name: _interval(series[f"{k} {name} {c}"], level) for name in names[2:]},
                }
                for c in positive_classes
            ]
            sides = [int((counts_U * side).sum()) for side in (self.aligned[:, k], ~self.aligned[:, k])]
            biases.append(
                {
                    "values": [int(value) for value in values],
                    "n_by_value": np.bincount(place_U, counts_U, len(values)).astype(int).tolist(),
                    "n_aligned": sides[0],
                    "n_conflicting": sides[1],
                    "undefined_cells": sum(entry["undefined_cells"] for entry in by_class),
                    **{name: _interval(series[f"{k} {name}"], level) for name in names},
                    "by_class": by_class,
                }
            )
        return {**plain, "biases": biases}


def _resampled(counts_U: Array, subgroup_U: Array, resamples: int, seed: int) -> Any:
    """Yield weights (R, U) in chunks: first the counts themselves, then draws within each subgroup."""
    generator = np.random.default_rng(seed)
    yield counts_U[None].astype(float)
    for start in range(0, resamples, _CHUNK):
        weights = np.zeros((min(_CHUNK, resamples - start), len(counts_U)))
        for g in np.unique(subgroup_U):
            places = np.flatnonzero(subgroup_U == g)
            n = counts_U[places].sum()
            weights[:, places] = generator.multinomial(n, counts_U[places] / n, len(weights))
        yield weights


def _resampled_by_origin(place_N: Array, origin_N: Array, target_N: Array, resamples: int, seed: int) -> Any:
    """Yield weights as :func:`_resampled` does, but draw whole origins, within each class."""
    generator = np.random.default_rng(seed)
    origins, first, which_N = np.unique(origin_N, return_index=True, return_inverse=True)
    cells = sparse.coo_matrix(
        (np.ones(len(place_N)), (which_N, place_N)), (len(origins), int(place_N.max()) + 1)
    ).tocsr()
    yield np.asarray(np.ones((1, len(origins))) @ cells)
    for start in range(0, resamples, _CHUNK):
        drawn = np.zeros((min(_CHUNK, resamples - start), len(origins)))
        for label in np.unique(target_N[first]):
            places = np.flatnonzero(target_N[first] == label)
            drawn[:, places] = generator.multinomial(len(places), np.full(len(places), 1 / len(places)), len(drawn))
        yield np.asarray(drawn @ cells)


def _spread(rates_RBC: Array) -> Array:
    """Largest difference between bias values that have a rate; NaN if fewer than two have one."""
    known = ~np.isnan(rates_RBC)
    highest = np.where(known, rates_RBC, -np.inf).max(1)
    lowest = np.where(known, rates_RBC, np.inf).min(1)
    return np.where(known.sum(1) > 1, highest - lowest, np.nan)


def _interval(series_R: Array, level: float) -> dict[str, float | None]:
    """The first value of a series, and the percentiles of the others if they differ."""
    value, others = series_R[0], series_R[1:]
    others = others[~np.isnan(others)]
    if np.isnan(value) or not len(others) or np.ptp(others) < 1e-12:
        return {"value": None if np.isnan(value) else float(value), "low": None, "high": None}
    low, high = np.quantile(others, [(1 - level) / 2, (1 + level) / 2])
    return {"value": float(value), "low": float(low), "high": float(high)}


def _wilson(right: int, n: int, level: float) -> dict[str, float | None]:
    """Accuracy of ``right`` correct predictions out of ``n``, with its Wilson interval."""
    bounds = stats.binomtest(right, n).proportion_ci(level, "wilson")
    return {"value": right / n, "low": float(bounds.low), "high": float(bounds.high)}

"""What a refitted last layer gains without bias labels, on the dense networks of the zoo, by how samples are weighed.

    python benchmarks/zoo.py --data-root data --work FOLDER
    python benchmarks/unlabelled.py --data-root data --work FOLDER

Refits the last layer of each cell's dense network on its validation split, which the vanilla training has not seen, by
logistic regression with L2 .01 on standardised features. Equal weights: of each class; of each pair of class and class
that the dense network predicts; of each subgroup, for which bias labels are needed and which is the bar. AFR: weights
exp(-p) or exp(-4 p), where p is the dense network's probability of the true class, then of equal sum for each class
(automatic feature reweighting, Qiu et al., 2023, without its pull to the old layer). NeuronTune: features whose median
over the misclassified samples of a class exceeds that over its correct ones, for every class that has both, are set to
zero, then equal weights of each class (Zheng et al., 2025, on the validation split for both of its steps). Balanced:
the zoo's validation split, even over the subgroups. Biased, for two classes and one bias: the same with as many
bias-conflicting samples left as the training set has for each aligned one, each dropped or kept by chance. Seed 0;
accuracies are those on the test split. Writes benchmarks/records/unlabelled.json, in place of what the record had of
these cells; ``benchmarks/results.py`` writes the page of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import zoo
from records import RECORDS, base_record, commits_of
from torch import Tensor, nn
from torch.nn.functional import linear

from bise_prune.data import BiasedDataset
from bise_prune.files import write_json
from bise_prune.gates.bottleneck import head_name
from bise_prune.mask_search.refitted import refitted_head
from bise_prune.metrics.accuracy import score
from bise_prune.tracing import trace
from bise_prune.tuning.features import bottleneck_features

_OUTPUT = RECORDS / "unlabelled.json"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    zoo.add_arguments(parser)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    protocol = " ".join((__doc__ or "").split("Refits ")[1].split(" Writes")[0].split())
    about = base_record([0], f"Refits {protocol}", "cpu")
    before = json.loads(_OUTPUT.read_text())["cells"] if _OUTPUT.exists() else {}
    for cell in zoo.chosen(arguments.cells):
        if (arguments.work / cell.name / "about.json").exists():
            before[cell.name] = {"commit": about["commit"], **_refitted(cell, arguments.work)}
            print(f"{cell.name}: {before[cell.name]}", flush=True)
    cells = {cell.name: before[cell.name] for cell in zoo.CELLS if cell.name in before}
    write_json(_OUTPUT, {**about, "cells": cells})
    return 0


def _refitted(cell: zoo.Cell, work: Path) -> dict[str, Any]:
    """Accuracies of a cell's dense network with each refitted last layer, by validation split and way."""
    session = zoo.session_of(cell, work, work / cell.name / "unused")
    val, test = session.splits.val, session.splits.test
    assert val is not None and test is not None
    name = head_name(session.dense, trace(session.dense, session.example))
    layer = session.dense.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    own = torch.cat([layer.weight, torch.zeros(len(layer.weight), 1) if layer.bias is None else layer.bias[:, None]], 1)
    tested = bottleneck_features(session.dense, [name], test)

    def figures(head: Tensor) -> dict[str, float]:
        """Accuracies on the test split with a last layer."""
        predicted = linear(tested, head[:, :-1], head[:, -1]).argmax(1)
        evaluation = score(predicted, test.target, test.bias, session.aligned)
        names = ("unbiased_accuracy", "worst_group_accuracy")
        return {figure: round(getattr(evaluation, figure), 4) for figure in names}

    found: dict[str, Any] = {"dense": figures(own.detach())}
    splits = {"balanced": val}
    if session.num_classes == 2 and val.bias.shape[1] == 1:
        splits["biased"] = val.subset(_as_biased(val, session.aligned, cell.rho))
    for split, data in splits.items():
        features = bottleneck_features(session.dense, [name], data)
        held = _Held(features, data, own.detach())
        about = {"samples": len(data), "features": features.shape[1], "dropped": int(held.dropped.sum())}
        found[split] = {**about, **{way: figures(head_of(held)) for way, head_of in WAYS.items()}}
    return found


def _as_biased(val: BiasedDataset, aligned: Tensor, rho: float) -> Tensor:
    """Numbers of the validation samples that are left where as many conflict as in the training set."""
    conflicting = val.bias[:, 0] != aligned[val.target, 0]
    chances = torch.rand(len(val), generator=torch.Generator().manual_seed(0))
    return (~conflicting | (chances < (1 - rho) / rho)).nonzero().flatten()


# -- the ways ------------------------------------------------------------------------------------


class _Held:
    """Held-out samples, as a dense network sees them.

    Args:
        features: what the last layer reads, shape (N, D).
        data: the samples.
        head: the last layer with its additive bias in the last column, shape (C, D + 1).
    """

    def __init__(self, features: Tensor, data: BiasedDataset, head: Tensor) -> None:
        self.features, self.data, self.num_classes = features, data, len(head)
        self.target = data.target.cpu()
        self.logits = linear(features, head[:, :-1], head[:, -1])
        self.predicted = self.logits.argmax(1)
        self.dropped = biased_features(features, self.target, self.predicted != self.target)

    def fitted(self, weight: Tensor, features: Tensor | None = None) -> Tensor:
        """A last layer that is fitted with weights (N,) of the samples, shape (C, D + 1)."""
        return refitted_head(self.features if features is None else features, self.target, self.num_classes, weight)


def equal_weights(*labels: Tensor) -> Tensor:
    """Weights (N,) by which each combination of labels has the same sum."""
    _, group, counts = torch.stack(labels, 1).unique(dim=0, return_inverse=True, return_counts=True)
    return 1 / counts[group].double()


def biased_features(features: Tensor, target: Tensor, is_wrong: Tensor) -> Tensor:
    """Features that are higher, in the median, where the network is wrong about a class, whichever it is.

    Args:
        features: what the last layer reads, shape (N, D).
        target: class labels, shape (N,).
        is_wrong: whether the network's prediction is wrong, bool of shape (N,).

    Returns:
        Bool of shape (D,). A class whose predictions are all right, or all wrong, says nothing.
    """
    found = []
    for label in target.unique():
        wrong, right = features[(target == label) & is_wrong], features[(target == label) & ~is_wrong]
        if len(wrong) and len(right):
            found.append(wrong.median(0).values > right.median(0).values)
    return torch.stack(found).all(0) if found else torch.zeros(features.shape[1], dtype=torch.bool)


def _afr(held: _Held, sharpness: float) -> Tensor:
    """A last layer by the weights of automatic feature reweighting."""
    right = held.logits.double().softmax(1)[torch.arange(len(held.target)), held.target]
    weight = (-sharpness * right).exp()
    sums = torch.zeros(held.num_classes, dtype=torch.double).index_add_(0, held.target, weight)
    return held.fitted(weight / sums[held.target])


def _neurontune(held: _Held) -> Tensor:
    """A last layer that reads only the features that are not found to be biased."""
    head = held.fitted(equal_weights(held.target), held.features * ~held.dropped)
    head[:, :-1][:, held.dropped] = 0
    return head


WAYS: Mapping[str, Callable[[_Held], Tensor]] = {
    "classes": lambda held: held.fitted(equal_weights(held.target)),
    "AFR, 1": partial(_afr, sharpness=1.0),
    "AFR, 4": partial(_afr, sharpness=4.0),
    "NeuronTune": _neurontune,
    "classes and predictions": lambda held: held.fitted(equal_weights(held.target, held.predicted)),
    "subgroups": lambda held: held.fitted(equal_weights(held.target, *held.data.bias.cpu().T)),
}

# -- the page ------------------------------------------------------------------------------------

PAGE = RECORDS.parents[1] / "docs" / "pages" / "evidence" / "unlabelled.md"
_RECORD_URL = "https://github.com/bise-prune/bise-prune/blob/main/benchmarks/records/unlabelled.json"


def markdown(record: Mapping[str, Any]) -> str:
    """The record as a page."""
    cells = record["cells"]
    lines = [
        "# The last layer without bias labels",
        "",
        "This page compares ways to weigh held-out samples without bias labels when the last layer of a dense network "
        "is refitted, on small biased networks of the kinds that users bring. No channel is closed.",
        "",
        f"**How it was measured.** {record['protocol']} Command: `{record['command']}`, {commits_of(record)}, "
        f"[record]({_RECORD_URL}).",
        "",
    ]
    for split in ("balanced", "biased"):
        known = {name: cell for name, cell in cells.items() if split in cell}
        lines += [
            f"## {split.capitalize()} validation split, {len(known)} networks",
            "",
            "Median unbiased accuracy and that of the worst subgroup in %, and where a way is ahead of equal weights "
            "of each class, level within half a point, or behind.",
            "",
            *_summary(known, split),
            "",
            "Unbiased accuracy, and in brackets the worst subgroup's:",
            "",
            *_table(known, split),
            "",
            f"[Record]({_RECORD_URL}).",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _summary(cells: Mapping[str, Any], split: str) -> list[str]:
    """A row per way."""
    lines = ["| way | unbiased | worst subgroup | ahead | level | behind |", "| --- |" + " ---: |" * 5]
    for way in ("dense", *WAYS):
        found = [_of(cell, split, way) for cell in cells.values()]
        gains = [
            figures["unbiased_accuracy"] - cell[split]["classes"]["unbiased_accuracy"]
            for figures, cell in zip(found, cells.values(), strict=True)
        ]
        ahead, behind = sum(gain > 0.005 for gain in gains), sum(gain < -0.005 for gain in gains)
        counts = ["–"] * 3 if way == "classes" else [str(ahead), str(len(gains) - ahead - behind), str(behind)]
        row = [_told(way), *(f"{100 * statistics.median(each[name] for each in found):.1f}" for name in found[0])]
        lines.append(f"| {' | '.join([*row, *counts])} |")
    return lines


def _table(cells: Mapping[str, Any], split: str) -> list[str]:
    """A row per network."""
    ways = ("dense", *WAYS)
    lines = [f"| network | {' | '.join(map(_told, ways))} |", "| --- |" + " ---: |" * len(ways)]
    for name, cell in cells.items():
        figures = (_of(cell, split, way) for way in ways)
        row = [f"{100 * each['unbiased_accuracy']:.1f} ({100 * each['worst_group_accuracy']:.1f})" for each in figures]
        lines.append(f"| {' | '.join([name, *row])} |")
    return lines


def _of(cell: Mapping[str, Any], split: str, way: str) -> Mapping[str, float]:
    """The figures of a way, or of the network as it is."""
    found: Mapping[str, float] = cell["dense"] if way == "dense" else cell[split][way]
    return found


def _told(way: str) -> str:
    """A way in a table."""
    return {"dense": "as it is", "subgroups": "subgroups, by bias labels"}.get(way, way)


if __name__ == "__main__":
    sys.exit(main())

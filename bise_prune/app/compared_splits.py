"""A comparison of the splits, cell by cell, so that what a split lacks is known before any work."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..data import BiasedDataset, DataSplits
from ..errors import DataError, counted
from ..metrics.subgroups import is_aligned

_WORDS = {"train": "training", "val": "validation", "test": "test"}
_NAMED = 5  # cells that a warning names


def compared(splits: DataSplits, aligned: Tensor) -> DataSplits:
    """The splits with a warning for each that lacks classes, bias values or subgroups which others have.

    A validation or test split in which every sample is bias-aligned loses its bias labels: accuracies by subgroup would
    be those of the aligned ones, and look like unbiased ones. If the validation split alone has bias labels, it keeps
    them.

    Args:
        splits: data set.
        aligned: bias value that each class is aligned with, shape (classes, K).
    """
    warnings = list(splits.warnings)
    for name, data in splits.by_name.items():
        is_needed = name == "train" or (name == "val" and not splits.train.has_bias)
        if data is None or not data.has_bias or is_needed:
            continue
        if bool(is_aligned(data.target.cpu(), data.bias.cpu(), aligned).all()):
            without = data.with_bias(data.bias[:, :0])
            is_val = name == "val"
            splits = dataclasses.replace(splits, val=without) if is_val else dataclasses.replace(splits, test=without)
            warnings.append(
                f"the {_WORDS[name]} split has no bias-conflicting sample, so that its bias labels say nothing about "
                "the bias: they are left out, and its figures are by class"
            )
    warnings += _of_classes(splits)
    for k in range(splits.train.bias.shape[1]):
        warnings += _of_cells(splits, k)
    return dataclasses.replace(splits, warnings=warnings)


def _of_classes(splits: DataSplits) -> list[str]:
    """A warning for each split that lacks classes which others have.

    Raises:
        DataError: a split has a single class.
    """
    present = {name: set(data.target.unique().tolist()) for name, data in splits.by_name.items() if data is not None}
    every = set().union(*present.values())
    if single := [name for name, found in present.items() if len(found) == 1 and len(every) > 1]:
        (only,) = present[single[0]]
        raise DataError(
            f"the {_WORDS[single[0]]} split has samples of {_class(splits, only)} alone, so its accuracies say "
            "nothing: divide the data anew, or leave that split out"
        )
    return [
        f"the {_WORDS[name]} split has no sample of {_listed([_class(splits, y) for y in sorted(every - found)])}"
        for name, found in present.items()
        if every - found
    ]


def _of_cells(splits: DataSplits, k: int) -> list[str]:
    """A warning for each split that lacks subgroups of one bias which others have."""
    present = {
        name: _cells(data, k) for name, data in splits.by_name.items() if data is not None and data.bias.shape[1] > k
    }
    every = set().union(*present.values())
    warnings = []
    for name, found in present.items():
        classes = {y for y, _ in found}
        lacking = sorted((y, b) for y, b in every - found if y in classes)  # other classes are named already
        if lacking:
            cells = [f"{_class(splits, y)} with {_value(splits, k, b)}" for y, b in lacking]
            warnings.append(
                f"the {_WORDS[name]} split has no sample of {counted(len(cells), 'subgroup')} that the others have: "
                f"{_listed(cells)}"
            )
    return warnings


def _cells(data: BiasedDataset, k: int) -> set[tuple[int, int]]:
    """The pairs of a class and a value of one bias that occur."""
    pairs = torch.stack([data.target.cpu(), data.bias[:, k].cpu()], 1).unique(dim=0)
    return {(int(y), int(b)) for y, b in pairs.tolist()}


def _class(splits: DataSplits, y: int) -> str:
    """Name of a class, or its number if it has none."""
    return str(splits.classes[y]) if y < len(splits.classes) and not str(splits.classes[y]).isdigit() else f"class {y}"


def _value(splits: DataSplits, k: int, b: int) -> str:
    """Name of a bias and of its value."""
    name, value = splits.bias_name(k), splits.bias_value(k, b)
    return f"{name} = {value.removeprefix('b = ')}"


def _listed(names: list[str]) -> str:
    """The first names, and how many there are beyond them."""
    more = len(names) - _NAMED
    return "; ".join(names[:_NAMED]) + (f"; and {more} more" if more > 0 else "")

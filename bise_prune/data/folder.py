"""A folder of images with a ``metadata.csv``: label, bias, split and file per row."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import DataError
from .loader import BiasedDataset, DataSplits

# Column names in use, in order of preference.
COLUMNS = {
    "label": ("label", "y", "target"),
    "bias": ("bias", "b", "a", "place", "spurious", "attribute"),
    "split": ("split",),
    "file": ("file", "filename", "img_filename", "file_name", "path"),
}
LARGEST_LABEL = 99_999  # a guard against identifiers taken for labels
SPLIT_VALUES = {"0": "train", "1": "val", "2": "test", "train": "train", "val": "val", "valid": "val", "test": "test"}


def load_folder(root: Path, preprocessing: Mapping[str, Any]) -> DataSplits:
    """Read ``root/metadata.csv`` and its images.

    Columns: label, split (train, val, test or 0, 1, 2), file (relative to ``root``) and bias: common other names are
    understood. Several biases are columns "bias_..."; without a column they are unknown. Labels are integers from 0, or
    names, which are numbered in alphabetical order. All rows and files are checked, and every image decoded once into
    a temporary file-backed array, before anything else happens.

    Args:
        root: the folder.
        preprocessing: ``mean`` and ``std`` per channel (ImageNet's if missing) and ``size`` (height, width) to
            resize to (the images' own if missing; they must then agree).

    Raises:
        DataError: everything wrong with the folder, the first ten problems by name.
    """
    rows, columns = _read_rows(root / "metadata.csv")
    problems: list[str] = []
    splits = [SPLIT_VALUES.get(row[columns["split"]].strip().lower()) for row in rows]
    unknown = sorted({row[columns["split"]] for row, split in zip(rows, splits, strict=True) if split is None})
    if unknown:
        problems.append(f"unknown split values {', '.join(map(repr, unknown[:10]))}; use train, val, test or 0, 1, 2")
    labels, classes = encode_labels([row[columns["label"]] for row in rows], "label", problems)
    columns_of_bias = [encode_labels([row[name] for row in rows], name, problems)[0] for name in _bias_columns(rows[0])]
    files = [root / row[columns["file"]] for row in rows]
    repeated = len(files) - len(set(files))
    if repeated:
        problems.append(f"{repeated} files are listed more than once")
    if "train" not in splits and not unknown:
        problems.append("no row of the training split")
    stop_at_problems(root, problems)
    biases = torch.stack(columns_of_bias, 1) if columns_of_bias else torch.zeros(len(rows), 0, dtype=torch.long)
    images = decode_images(root, files, preprocessing.get("size"))
    mean = tuple(preprocessing.get("mean", (0.485, 0.456, 0.406)))
    std = tuple(preprocessing.get("std", (0.229, 0.224, 0.225)))
    notes = [f"folder {root.name}: {len(rows)} images of {images.shape[2]}x{images.shape[3]}"]
    if not columns_of_bias:
        notes.append(f"no column of bias labels among {', '.join(rows[0])}")

    def part(split: str) -> BiasedDataset | None:
        chosen = torch.tensor([i for i, value in enumerate(splits) if value == split], dtype=torch.long)
        if not len(chosen):
            return None
        # Splits that are contiguous stay views of the file-backed array.
        first, last = int(chosen[0]), int(chosen[-1])
        inputs = images[first : last + 1] if last - first + 1 == len(chosen) else images[chosen]
        return BiasedDataset(inputs, labels[chosen], biases[chosen], mean, std)

    train = part("train")
    assert train is not None
    return DataSplits(train, part("val"), part("test"), classes, notes)


def _read_rows(path: Path) -> tuple[list[dict[str, str]], dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = list(reader.fieldnames or [])
            rows = list(reader)
    except FileNotFoundError as error:
        raise DataError(
            f"no metadata.csv in {path.parent}; it needs the columns label, bias, split and file"
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    columns = {
        wanted: next((name for name in aliases if name in names), "")
        for wanted, aliases in COLUMNS.items()
        if wanted != "bias"
    }
    missing = [wanted for wanted, name in columns.items() if not name]
    if missing:
        raise DataError(f"{path} has no column for {', '.join(missing)}; it has {', '.join(names) or 'none'}")
    if not rows:
        raise DataError(f"{path} has no rows")
    ragged = [i for i, row in enumerate(rows, start=2) if None in row]
    if ragged:
        raise DataError(f"{path}: {len(ragged)} rows have more fields than the header, first in line {ragged[0]}")
    columns |= {name: name for name in _bias_columns(rows[0])}
    short = [i for i, row in enumerate(rows, start=2) if any(row[name] in (None, "") for name in columns.values())]
    if short:
        raise DataError(f"{path}: {len(short)} rows lack a value, first in line {short[0]}")
    return rows, columns


def _bias_columns(row: Mapping[str, str]) -> list[str]:
    """The columns of bias labels: every one called "bias..." where there are several, else one by its usual names."""
    several = [name for name in row if name == "bias" or name.startswith("bias_")]
    return several or [name for name in (next((n for n in COLUMNS["bias"] if n in row), None),) if name]


def encode_labels(values: Sequence[str], what: str, problems: list[str]) -> tuple[Tensor, list[str]]:
    """Labels (N,) int64 and their names; integers stand for themselves, names are numbered in alphabetical order.

    Args:
        values: as they are written.
        what: their column.
        problems: gets a sentence for each thing that is wrong.
    """
    try:
        numbers = [int(value) for value in values]
    except ValueError:
        names = sorted(set(values))
        lookup = {name: i for i, name in enumerate(names)}
        return torch.tensor([lookup[value] for value in values]), names
    if min(numbers) < 0 or max(numbers) > LARGEST_LABEL:
        wrong = min(numbers) if min(numbers) < 0 else max(numbers)
        problems.append(f"{what} values must be names or integers from 0 to {LARGEST_LABEL}, found {wrong}")
        return torch.zeros(len(numbers), dtype=torch.long), []
    return torch.tensor(numbers), [str(i) for i in range(max(numbers) + 1)]


def decode_images(root: Path, files: Sequence[Path], size: Sequence[int] | None) -> Tensor:
    """All images as (N, 3, H, W) uint8, in a temporary file of their own that vanishes with the tensor."""
    try:
        with Image.open(files[0]) as first:
            shape = tuple(size) if size is not None else (first.height, first.width)
    except (OSError, ValueError, UnidentifiedImageError):
        shape = tuple(size) if size is not None else (1, 1)  # the first file is reported below with the others
    with tempfile.TemporaryFile() as file:
        array = np.memmap(file, np.uint8, "w+", shape=(len(files), 3, *shape))

    def read(i: int) -> str | None:
        try:
            with Image.open(files[i]) as image:
                if size is None and (image.height, image.width) != shape:
                    return f"{files[i].name} is {image.height}x{image.width}, the first image {shape[0]}x{shape[1]}"
                rgb = image.convert("RGB")
                if size is not None and rgb.size != (shape[1], shape[0]):
                    rgb = rgb.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
                array[i] = np.asarray(rgb).transpose(2, 0, 1)
        except FileNotFoundError:
            return f"{files[i].name} is missing"
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f"{files[i].name} is unreadable ({type(error).__name__})"
        return None

    with ThreadPoolExecutor() as pool:
        problems = [problem for problem in pool.map(read, range(len(files))) if problem]
    stop_at_problems(root, problems)
    return torch.from_numpy(array)


def stop_at_problems(root: Path, problems: Sequence[str]) -> None:
    """Raise a DataError that names the first ten problems, if there are any."""
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise DataError(f"data in {root}: {'; '.join(problems[:10])}{more}")

"""CelebA (Liu et al., 2015): hair colour is the class label, gender the bias label."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .images import decode_images
from .loader import BiasedDataset, DataSplits
from .table import Table

TARGET = "Blond_Hair"
CLASSES = ("not blond", "blond")
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
VALIDATION_PER_SUBGROUP = 277
_TRAIN, _VALID = "0", "1"
_LISTS = ("list_attr_celeba", "list_eval_partition")
_SUBGROUPS = [(y, b) for y in range(2) for b in range(2)]


def load_celeba(root: Path, seed: int = 0, size: int = 224) -> DataSplits:
    """Load CelebA with y = Blond_Hair and b = 1 - Male, with the splits of the paper's table.

    The validation split has 277 images of each (y, b) subgroup of the official training split, or half of the smallest
    subgroup if that is fewer; they are removed from the training split. The test split is the official *valid* split,
    of which each subgroup is cut down to the size of the smallest (182 images each, 728 in all). The official test
    split is not used. Images are decoded once, into a temporary file (24.6 GB at 224x224).

    Args:
        root: folder with ``img_align_celeba`` (which may hold another folder of that name with the images), and with
            ``list_attr_celeba`` and ``list_eval_partition`` as ``.txt`` or ``.csv``.
        seed: random seed for the draw of the validation and test images.
        size: images are resized to size x size pixels.

    Raises:
        ConfigError: ``size`` is not positive.
        DataError: a file is missing or damaged, or a subgroup is too small.
    """
    if size < 1:
        raise ConfigError(f"celeba: size={size}; expected at least 1")
    attributes, partition = _find_lists(root)
    names, target, bias = _read_attributes(attributes)
    splits = _read_partition(partition, names)
    generator = torch.Generator().manual_seed(seed)
    cell = 2 * target + bias
    train, valid = (_rows_per_subgroup(splits, split, cell) for split in (_TRAIN, _VALID))
    _check_subgroups(root, train, valid)
    smallest = min(map(len, train))
    held_out, tested = min(VALIDATION_PER_SUBGROUP, smallest // 2), min(map(len, valid))
    val_rows, test_rows = _draw(train, held_out, generator), _draw(valid, tested, generator)
    train_rows = torch.cat(train).sort().values
    train_rows = train_rows[~torch.isin(train_rows, val_rows)]
    parts = (train_rows, val_rows, test_rows)
    rows = torch.cat(parts)
    images = decode_images(root, _find_images(root, [names[i] for i in rows.tolist()]), (size, size))
    notes = [
        f"CelebA, y = {TARGET}, b = 1 - Male, {size}x{size}, seed {seed}; validation: {held_out} training images of "
        f"each subgroup; test: the official valid split, {tested} images of each subgroup"
    ]
    if held_out < VALIDATION_PER_SUBGROUP:
        notes.append(
            f"the smallest training subgroup has {smallest} images: validation takes {held_out} of each, not "
            f"{VALIDATION_PER_SUBGROUP}"
        )
    train_data, val_data, test_data = (
        BiasedDataset(inputs, target[part], bias[part, None], MEAN, STD)
        for inputs, part in zip(images.split([len(part) for part in parts]), parts, strict=True)
    )
    return DataSplits(
        train=train_data,
        val=val_data,
        test=test_data,
        classes=CLASSES,
        notes=notes,
        bias_values=[("male", "female")],
        bias_names=["sex"],
    )


def has_attribute_lists(root: Path) -> bool:
    """Whether a folder holds CelebA's lists of attributes and of splits, as they are distributed."""
    return all(any((root / f"{name}.{end}").is_file() for end in ("txt", "csv")) for name in _LISTS)


def attribute_table(root: Path) -> tuple[Table, Path]:
    """Read CelebA's lists as one table.

    Args:
        root: folder for which :func:`has_attribute_lists` is true.

    Returns:
        The table, with the columns "image_id", all attributes (-1 and 1) and "split"; and the folder of the images.

    Raises:
        DataError: a list is damaged.
    """
    attributes, partition = _find_lists(root)
    header, body = _attribute_rows(attributes)
    columns = {name: [row[place] for row in body] for place, name in enumerate(header)}
    columns["split"] = _read_partition(partition, columns["image_id"])
    return Table(attributes, [row[0] for row in body], columns), _folder_of_images(root)


def _find_lists(root: Path) -> tuple[Path, Path]:
    """Paths of the attribute list and of the partition list."""
    found = []
    missing = []
    for name in _LISTS:
        path = next((path for end in ("txt", "csv") if (path := root / f"{name}.{end}").is_file()), None)
        if path:
            found.append(path)
        else:
            missing.append(f"{name}.txt (or .csv)")
    if missing:
        raise DataError(f"no CelebA in {root}: {' and '.join(missing)} missing")
    return found[0], found[1]


def _read_rows(path: Path) -> list[list[str]]:
    """The fields of all lines that are not empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file) if path.suffix == ".csv" else (line.split() for line in file)
            rows = [line for line in lines if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    return rows


def _attribute_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header of the list of attributes, "image_id" first, and its rows."""
    rows = _read_rows(path)
    is_csv = path.suffix == ".csv"
    header = ["image_id", *(rows[0][1:] if is_csv else rows[1])] if len(rows) > 1 else []  # .txt: their number first
    body = rows[1 if is_csv else 2 :]
    wrong = [f"'{row[0]}'" for row in body if len(row) != len(header)]
    if wrong or not body:
        raise DataError(
            f"{path}: {len(wrong)} of {len(body)} rows are damaged, first {', '.join(wrong[:10]) or 'none'}; expected "
            f"a file name and {max(0, len(header) - 1)} values of 1 or -1"
        )
    return header, body


def _read_attributes(path: Path) -> tuple[list[str], Tensor, Tensor]:
    """File names, class labels (Blond_Hair) and bias labels (1 - Male); the file's values are 1 and -1 (or 0)."""
    header, body = _attribute_rows(path)
    absent = [name for name in (TARGET, "Male") if name not in header]
    if absent:
        raise DataError(f"{path} has no column {', '.join(absent)}")
    target, male = header.index(TARGET), header.index("Male")
    wrong = [f"'{row[0]}'" for row in body if not {row[target], row[male]} <= {"1", "-1", "0"}]
    if wrong:
        raise DataError(
            f"{path}: {len(wrong)} of {len(body)} rows are damaged, first {', '.join(wrong[:10])}; expected values of "
            "1 or -1"
        )
    values = torch.tensor([[row[target] == "1", row[male] != "1"] for row in body], dtype=torch.long)
    return [row[0] for row in body], values[:, 0], values[:, 1]


def _read_partition(path: Path, names: Sequence[str]) -> list[str]:
    """The official split of each image: "0" = train, "1" = valid, "2" = test."""
    rows = _read_rows(path)
    listed = {row[0]: row[1] for row in rows[1 if path.suffix == ".csv" else 0 :] if len(row) == 2}
    unknown = [name for name in names if listed.get(name) not in ("0", "1", "2")]
    if unknown:
        raise DataError(f"{path} has no split 0, 1 or 2 for {len(unknown)} images, first {', '.join(unknown[:10])}")
    return [listed[name] for name in names]


def _rows_per_subgroup(splits: Sequence[str], split: str, cell: Tensor) -> list[Tensor]:
    """The rows of one official split for each subgroup, in the order of ``_SUBGROUPS``."""
    chosen = torch.tensor([value == split for value in splits])
    return [(chosen & (cell == 2 * y + b)).nonzero().flatten() for y, b in _SUBGROUPS]


def _draw(subgroups: Sequence[Tensor], size: int, generator: torch.Generator) -> Tensor:
    """Draw ``size`` random rows of each subgroup, in file order."""
    drawn = [rows[torch.randperm(len(rows), generator=generator)[:size]] for rows in subgroups]
    return torch.cat(drawn).sort().values


def _check_subgroups(root: Path, train: Sequence[Tensor], valid: Sequence[Tensor]) -> None:
    """Raise a DataError if validation (half of a training subgroup at most) or test would have an empty subgroup."""
    problems = [
        f"{len(rows)} {split} images with {TARGET}={y}, Male={1 - b} (at least {least})"
        for split, groups, least in (("training", train, 2), ("valid", valid, 1))
        for rows, (y, b) in zip(groups, _SUBGROUPS, strict=True)
        if len(rows) < least
    ]
    if problems:
        raise DataError(f"CelebA in {root} is too small: {'; '.join(problems)}")


def _folder_of_images(root: Path) -> Path:
    """The folder of the images, also in the layout of Kaggle's zip archive, which has it twice."""
    folder = root / "img_align_celeba"
    return folder / folder.name if (folder / folder.name).is_dir() else folder


def _find_images(root: Path, names: Sequence[str]) -> list[Path]:
    """The paths of the images; the error lists the first ten that are missing."""
    folder = _folder_of_images(root)
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    missing = [name for name in names if name not in present]
    if missing:
        shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise DataError(f"{len(missing)} of {len(names)} images are missing in {folder}: {shown}")
    return [folder / name for name in names]

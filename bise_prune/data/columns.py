"""Find the columns of a user's table by name, and convert their values to labels and splits."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError
from .table import Table

# Usual column names, in order of preference; upper and lower case are the same.
ALIASES = {
    "text": ("text", "comment_text", "sentence", "content", "tweet", "comment"),
    "file": ("file", "filename", "img_filename", "file_name", "path", "image"),
    "label": ("label", "y", "target", "toxic", "toxicity", "hateful", "class"),
    "bias": ("bias", "b", "a", "place", "identity_any", "identity", "spurious", "attribute"),
    "split": ("split",),
}
SPLITS = {
    "0": "train", "1": "val", "2": "test", "train": "train", "training": "train", "val": "val", "valid": "val",
    "validation": "val", "dev": "val", "test": "test",
}  # fmt: skip
PARTS = ("train", "val", "test")
LARGEST_LABEL = 99_999  # larger numbers are probably identifiers, not labels
_UNKNOWN = -1  # bias label of a training sample, if only the other splits have some


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a user's table; a column whose name is None is found by the usual names.

    Attributes:
        label: column of the class labels.
        bias: columns of the bias labels, one per bias; an empty sequence means that there are none.
        split: column that says train, val or test.
        file: column of the image files.
        text: column of the texts.
    """

    label: str | None = None
    bias: Sequence[str] | None = None
    split: str | None = None
    file: str | None = None
    text: str | None = None

    def chosen(self, names: Sequence[str], where: object, content: str) -> Chosen:
        """Choose the columns to read from a table.

        Args:
            names: names of all columns of the table.
            where: the table's file, for error messages.
            content: "file" or "text": the column that the table must have besides the class label.

        Returns:
            The chosen columns.

        Raises:
            DataError: a column is missing, or is given for more than one purpose.
        """
        own = self.file if content == "file" else self.text
        given = [name for name in (own, self.label, *(self.bias or ()), self.split) if name is not None]
        twice = sorted({name for name in given if given.count(name) > 1})
        if twice:
            raise DataError(f"{where}: column {', '.join(map(repr, twice))} is given for more than one purpose")
        free = {name.strip().lower(): name for name in reversed(names) if name not in given}

        def find(what: str) -> str | None:
            return next((free[alias] for alias in ALIASES[what] if alias in free), None)

        own, label, split = own or find(content), self.label or find("label"), self.split or find("split")
        biases = self.bias
        if biases is None:
            several = [name for key, name in free.items() if key == "bias" or key.startswith("bias_")]
            biases = sorted(several, key=list(names).index) or [name for name in (find("bias"),) if name is not None]
        missing = [f"'{name}'" for name in given if name not in names]
        missing += [
            f"{what} ({', '.join(ALIASES[what])})" for what, name in ((content, own), ("label", label)) if not name
        ]
        if missing or own is None or label is None:
            flags = f"--{content}-column, --label-column, --bias-column and --split-column"
            raise DataError(
                f"{where} has no column {', no column '.join(missing)}; it has {', '.join(names) or 'none'}: name them "
                f"with {flags}"
            )
        return Chosen(own, label, tuple(biases), split)


@dataclass(frozen=True)
class Chosen:
    """The columns to read from a table.

    Attributes:
        content: column of the files or texts.
        label: column of the class labels.
        biases: columns of the bias labels, one per bias.
        split: column of the splits; None if there is none.
    """

    content: str
    label: str
    biases: tuple[str, ...]
    split: str | None

    @property
    def names(self) -> list[str]:
        """Names of all chosen columns."""
        return [self.content, self.label, *self.biases, *([self.split] if self.split else [])]

    def __str__(self) -> str:
        parts = [f"label '{self.label}'", *(f"bias '{name}'" for name in self.biases)]
        return ", ".join(parts + ([f"split '{self.split}'"] if self.split else []))


@dataclass(frozen=True)
class Labels:
    """Class and bias labels of the N samples of a table; they are all zero if the table has problems.

    Attributes:
        target: class labels, shape (N,), int64.
        bias: bias labels, shape (N, K), int64; see :func:`known_bias`.
        classes: class names.
        notes: how the columns were interpreted, for the report.
        bias_values: per bias the names of its values; () for a bias whose values are numbers.
        bias_names: names of the bias columns.
    """

    target: Tensor
    bias: Tensor
    classes: list[str]
    notes: list[str]
    bias_values: tuple[tuple[str, ...], ...] = ()
    bias_names: tuple[str, ...] = ()


def read_labels(table: Table, chosen: Chosen, classes: Sequence[str] = (), parts: Sequence[str] = ()) -> Labels:
    """Read the label and bias columns of a table; problems are added to ``table.problems``.

    Labels are integers from 0; or names, numbered in the order of ``classes``, or alphabetically if there are none; or
    scores in [0, 1], of which 0.5 and above count as 1. If the cells of the bias labels are empty in the whole training
    split and there are other splits, the training samples have no bias labels.

    Args:
        table: the table, with all chosen columns.
        chosen: the columns to read.
        classes: class names of the checkpoint, if it has any.
        parts: split of each row; empty if the splits are not known.
    """
    target, found, notes = _read_column(table, chosen.label, classes)
    columns, bias_values = [], list[tuple[str, ...]]()
    unlabelled = _unlabelled(table, chosen, parts)
    for name in chosen.biases:
        values, meanings, remarks = _read_column(table, name, without=unlabelled)
        columns.append(values)
        notes += remarks
        named = meanings != [str(i) for i in range(len(meanings))]
        bias_values.append(tuple(meanings) if named else ())
        if not remarks and named:
            notes.append(f"bias '{name}': " + ", ".join(f"{i} = {meaning}" for i, meaning in enumerate(meanings)))
    if unlabelled:
        notes.append("the training split has no bias labels, the other splits have them")
    bias = torch.stack(columns, 1) if columns else torch.zeros((len(target), 0), dtype=torch.long)
    return Labels(target, bias, found, notes, tuple(bias_values), chosen.biases)


def known_bias(bias: Tensor) -> Tensor:
    """The bias labels (N, K) of a split; without columns, shape (N, 0), if its samples have none."""
    return bias[:, :0] if bool((bias == _UNKNOWN).any()) else bias


def read_splits(table: Table, column: str) -> list[str]:
    """Read the split of each row: "train", "val" or "test".

    Unknown values (which give "") and a missing training split are added to ``table.problems``.
    """
    parts = [SPLITS.get(value.strip().lower(), "") for value in table.columns[column]]
    unknown = [i for i, part in enumerate(parts) if not part]
    table.report(f"with an unknown '{column}' (use train, val, test or 0, 1, 2)", unknown, column)
    if not unknown and "train" not in parts:
        table.problems.append("no row of the training split")
    return parts


def read_scores(table: Table, column: str, blank: float = math.nan) -> Tensor:
    """Convert a column of scores to labels: 1 for scores of at least 0.5, otherwise 0.

    Args:
        table: the table; scores that are not in [0, 1] are added to its problems.
        column: name of the column.
        blank: score of an empty cell; NaN, the default, makes it a problem.

    Returns:
        Labels, shape (N,), int64.
    """
    scores = [_number(value) if value.strip() else blank for value in table.columns[column]]
    wrong = [i for i, score in enumerate(scores) if not 0 <= score <= 1]
    table.report(f"whose score '{column}' is not in [0, 1]", wrong, column)
    return (torch.tensor(scores, dtype=torch.double) >= 0.5).long()


def split_folders(root: Path) -> list[tuple[Path, str]]:
    """The folders in ``root`` that are named like a split, each with the split ("train", "val" or "test")."""
    found = [(folder, folder.name.lower()) for folder in sorted(root.iterdir()) if folder.is_dir()]
    return [(folder, SPLITS[name]) for folder, name in found if name in SPLITS and not name.isdigit()]


def random_split(keys: Sequence[Hashable], cells: Tensor, seed: int) -> list[str]:
    """Assign samples to splits at random: in every cell 70 % "train", 10 % "val" and 20 % "test".

    Args:
        keys: one key per sample; samples with equal keys get the same split, and count in the cell of the first of
            them.
        cells: labels by which the split is stratified, shape (N, any); a cell is a distinct row.
        seed: random seed of the split.

    Returns:
        The split of each sample.
    """
    first: dict[Hashable, int] = {}
    leader = [first.setdefault(key, i) for i, key in enumerate(keys)]
    leaders = torch.tensor(list(first.values()))
    _, cell = cells[leaders].unique(dim=0, return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    chosen: dict[int, str] = {}
    for value in range(int(cell.max()) + 1):
        rows = leaders[cell == value]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        ends = [(7 * len(rows) + 5) // 10, (8 * len(rows) + 5) // 10]
        for part, members in zip(PARTS, rows.tensor_split(ends), strict=True):
            chosen.update(dict.fromkeys(members.tolist(), part))
    return [chosen[i] for i in leader]


def _unlabelled(table: Table, chosen: Chosen, parts: Sequence[str]) -> frozenset[int]:
    """The rows of the training split, if the bias labels of all of them are empty and there are other splits."""
    rows = {i for i, part in enumerate(parts) if part == "train"}
    others = len(parts) - len(rows)
    is_empty = all(_is_empty(table.columns[name][i]) for name in chosen.biases for i in rows)
    return frozenset(rows) if chosen.biases and rows and others and is_empty else frozenset()


def _is_empty(value: str) -> bool:
    """Whether a cell has no value."""
    return value.strip().lower() in ("", "nan")


def _read_column(
    table: Table, column: str, classes: Sequence[str] = (), without: frozenset[int] = frozenset()
) -> tuple[Tensor, list[str], list[str]]:
    """Labels (N,) int64, the names of their values, and notes; on problems, add them to the table and return zeros.

    Rows that are to have no label get :data:`_UNKNOWN`.
    """
    if without:
        rows = [i for i in range(len(table.lines)) if i not in without]
        part = Table(table.path, [table.lines[i] for i in rows], {column: [table.columns[column][i] for i in rows]})
        known, meanings, notes = _read_column(part, column, classes)
        table.problems += part.problems
        return torch.full((len(table.lines),), _UNKNOWN).index_copy(0, torch.tensor(rows), known), meanings, notes
    values = [value.strip() for value in table.columns[column]]
    numbers = [_number(value) for value in values]
    empty = [i for i, value in enumerate(values) if _is_empty(value)]
    named = sorted({i for i, number in enumerate(numbers) if math.isnan(number)} - set(empty))
    numeric = [i for i, number in enumerate(numbers) if not math.isnan(number)]
    table.report(f"without a value in '{column}'", empty)
    if named and numeric:
        if len(named) <= len(numeric):
            table.report(f"whose '{column}' is a name among numbers", named, column)
        else:
            table.report(f"whose '{column}' is a number among names", numeric, column)
    elif not all(numbers[i].is_integer() for i in numeric):
        wrong = [i for i in numeric if not 0 <= numbers[i] <= 1]
        table.report(f"whose '{column}', a score since it has fractions, is not in [0, 1]", wrong, column)
        scores = torch.tensor(numbers, dtype=torch.double)
        note = f"'{column}' holds scores: 0.5 and above are read as 1"
        return (scores >= 0.5).long(), [f"{column} < 0.5", f"{column} >= 0.5"], [note]
    elif named:
        names = list(classes) or sorted({values[i] for i in named})
        numbered = {name: i for i, name in enumerate(names)}
        foreign = [i for i in named if values[i] not in numbered]
        table.report(f"whose '{column}' is no class of the checkpoint ({', '.join(names[:10])})", foreign, column)
        if not empty and not foreign:
            return torch.tensor([numbered[value] for value in values]), names, []
    else:
        wrong = [i for i in numeric if not 0 <= numbers[i] <= LARGEST_LABEL]
        table.report(f"whose '{column}' is neither a name nor an integer from 0 to {LARGEST_LABEL}", wrong, column)
        if not empty and not wrong:
            found = torch.tensor([int(number) for number in numbers])
            count = int(found.max()) + 1
            return found, list(classes) if len(classes) >= count else [str(i) for i in range(count)], []
    return torch.zeros(len(values), dtype=torch.long), [], []


def _number(value: str) -> float:
    """Convert a cell to a number; NaN if it is none."""
    try:
        return math.nan if "_" in value else float(value)  # Python reads 1_0 as ten
    except ValueError:
        return math.nan

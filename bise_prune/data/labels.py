"""Convert the values of a table's columns to class labels, bias labels and splits."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .columns import Chosen
from .table import Table

PARTS = ("train", "val", "test")
# Usual words for splits, without hyphens and underscores.
SPLITS = {
    "0": "train", "1": "val", "2": "test",
    "train": "train", "training": "train", "trn": "train", "tr": "train",
    "val": "val", "valid": "val", "validation": "val", "validate": "val", "dev": "val", "development": "val",
    "eval": "val", "evaluation": "val",
    "test": "test", "testing": "test", "tst": "test", "holdout": "test", "heldout": "test",
}  # fmt: skip
LARGEST_LABEL = 99_999  # larger numbers are probably identifiers, not labels
_MOST_VALUES = 1_000  # different values of a bias; more of them are probably identifiers
_UNKNOWN = -1  # bias label of a training sample, if only the other splits have some
# Words for 0 and 1; upper and lower case are the same.
_TRUTH = (("no", "yes"), ("false", "true"), ("n", "y"), ("f", "t"), ("absent", "present"), ("negative", "positive"))
_LISTED = 10  # values that a note names


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

    Labels are integers from 0; or -1 and 1, or words such as no and yes, for 0 and 1; or names, numbered in the order
    of ``classes``, or alphabetically if there are none; or scores in [0, 1], of which 0.5 and above count as 1. Bias
    labels may be any integers: those that are negative or large are names. If the cells of the bias labels are empty in
    the whole training split and there are other splits, the training samples have no bias labels.

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
        values, meanings, remarks = _read_column(table, name, without=unlabelled, is_bias=True)
        columns.append(values)
        notes += remarks
        named = meanings != [str(i) for i in range(len(meanings))]
        bias_values.append(tuple(meanings) if named else ())
        if not remarks and named:
            notes.append(f"bias '{name}': {_meanings(meanings)}")
        if len(meanings) > _MOST_VALUES:
            table.problems.append(
                f"column '{name}' has {len(meanings):,} different values, which are more than a bias can have "
                f"({_MOST_VALUES:,}): is it an identifier?"
            )
    if unlabelled:
        notes.append("the training split has no bias labels, the other splits have them")
    bias = torch.stack(columns, 1) if columns else torch.zeros((len(target), 0), dtype=torch.long)
    return Labels(target, bias, found, notes, tuple(bias_values), chosen.biases)


def _meanings(names: Sequence[str]) -> str:
    """Numbers with the names that they stand for, for a note."""
    more = ", ..." if len(names) > _LISTED else ""
    return ", ".join(f"{i} = {name}" for i, name in enumerate(names[:_LISTED])) + more


def known_bias(bias: Tensor) -> Tensor:
    """The bias labels (N, K) of a split; without columns, shape (N, 0), if its samples have none."""
    return bias[:, :0] if bool((bias == _UNKNOWN).any()) else bias


def split_of(value: str) -> str:
    """The split that a word or number stands for: "train", "val" or "test"; "" if it stands for none.

    >>> split_of("Training"), split_of("1.0"), split_of("hold-out"), split_of("test_set"), split_of("fold 3")
    ('train', 'val', 'test', 'test', '')
    """
    number = _number(value)
    if not math.isnan(number):
        return SPLITS.get(str(int(number)), "") if number == int(number) else ""
    word = re.sub(r"[\s_-]", "", value).lower()
    return SPLITS.get(re.sub(r"(set|split)$", "", word), "")


def read_splits(table: Table, column: str) -> list[str]:
    """Read the split of each row: "train", "val" or "test".

    Unknown values (which give "") and a missing training split are added to ``table.problems``.
    """
    known = {value: split_of(value) for value in set(table.columns[column])}
    parts = [known[value] for value in table.columns[column]]
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
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and math.isnan(_number(folder.name)))
    return [(folder, part) for folder in folders if (part := split_of(folder.name))]


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
    table: Table, column: str, classes: Sequence[str] = (), without: frozenset[int] = frozenset(), is_bias: bool = False
) -> tuple[Tensor, list[str], list[str]]:
    """Labels (N,) int64, the names of their values, and notes; on problems, add them to the table and return zeros.

    Rows that are to have no label get :data:`_UNKNOWN`.
    """
    if without:
        rows = [i for i in range(len(table.lines)) if i not in without]
        part = Table(table.path, [table.lines[i] for i in rows], {column: [table.columns[column][i] for i in rows]})
        known, meanings, notes = _read_column(part, column, classes, is_bias=is_bias)
        table.problems += part.problems
        return torch.full((len(table.lines),), _UNKNOWN).index_copy(0, torch.tensor(rows), known), meanings, notes
    cells = [value.strip() for value in table.columns[column]]
    numbers = {value: _number(value) for value in set(cells)}
    empty = [i for i, value in enumerate(cells) if _is_empty(value)]
    table.report(f"without a value in '{column}'", empty)
    values = {value for value in numbers if not _is_empty(value)}
    names = {value for value in values if math.isnan(numbers[value])}
    before = len(table.problems)
    if names and len(names) < len(values):
        named = [i for i, value in enumerate(cells) if value in names]
        numeric = [i for i, value in enumerate(cells) if value in values and value not in names]
        if len(named) <= len(numeric):
            table.report(f"whose '{column}' is a name among numbers", named, column)
        else:
            table.report(f"whose '{column}' is a number among names", numeric, column)
        found = None
    elif names:
        found = _of_names(table, column, cells, names, classes)
    else:
        found = _of_numbers(table, column, cells, {value: numbers[value] for value in values}, classes, is_bias)
    if found is None or empty or len(table.problems) > before:
        return torch.zeros(len(cells), dtype=torch.long), [], []
    numbered, meanings, notes = found
    return torch.tensor([numbered[value] for value in cells]), meanings, notes


_Meaning = tuple[dict[str, int], list[str], list[str]]  # text of a cell -> label, names of the labels, notes


def _of_names(table: Table, column: str, cells: Sequence[str], names: set[str], classes: Sequence[str]) -> _Meaning:
    """Labels of a column of names; names that are none of ``classes`` are added to the table's problems."""
    if not classes:
        folded = {name: name.casefold() for name in names}
        for pair in _TRUTH:
            if set(folded.values()) <= set(pair):
                return {name: pair.index(word) for name, word in folded.items()}, list(pair), []
    meanings = list(classes) or sorted(names)
    numbered = {name: i for i, name in enumerate(meanings)}
    for name in names - numbered.keys():
        if len(same := [other for other in meanings if other.casefold() == name.casefold()]) == 1 and classes:
            numbered[name] = numbered[same[0]]
    foreign = [i for i, value in enumerate(cells) if value in names and value not in numbered]
    table.report(f"whose '{column}' is no class of the checkpoint ({', '.join(meanings[:10])})", foreign, column)
    return numbered, meanings, []


def _of_numbers(
    table: Table, column: str, cells: Sequence[str], numbers: dict[str, float], classes: Sequence[str], is_bias: bool
) -> _Meaning:
    """Labels of a column of numbers; numbers that are no labels are added to the table's problems."""
    if not is_bias and set(numbers) <= set(classes):  # names that happen to be numbers
        return {value: classes.index(value) for value in numbers}, list(classes), []
    values = sorted(set(numbers.values()))
    if not all(value == int(value) for value in values):
        wrong = [i for i, value in enumerate(cells) if value in numbers and not 0 <= numbers[value] <= 1]
        table.report(f"whose '{column}', a score since it has fractions, is not in [0, 1]", wrong, column)
        note = f"'{column}' holds scores: 0.5 and above are read as 1"
        scores = {value: int(number >= 0.5) for value, number in numbers.items()}
        return scores, [f"{column} < 0.5", f"{column} >= 0.5"], [note]
    if values in ([-1, 1], [-1]):
        note = f"'{column}': -1 is read as 0, and 1 as 1"
        meanings = ["-1", "1"] if is_bias else list(classes) or ["0", "1"]
        return {value: int(number > 0) for value, number in numbers.items()}, meanings, [note]
    if is_bias and values and not 0 <= values[0] <= values[-1] < _MOST_VALUES:
        place = {value: i for i, value in enumerate(values)}
        names = [min(text for text, number in numbers.items() if number == value) for value in values]
        return {value: place[number] for value, number in numbers.items()}, names, []
    wrong = [i for i, value in enumerate(cells) if value in numbers and not 0 <= numbers[value] <= LARGEST_LABEL]
    table.report(f"whose '{column}' is neither a name nor an integer from 0 to {LARGEST_LABEL}", wrong, column)
    count = 1 + (0 if wrong or not values else int(values[-1]))
    meanings = list(classes) if len(classes) >= count else [str(i) for i in range(count)]
    return {value: 0 if wrong else int(number) for value, number in numbers.items()}, meanings, []


def _number(value: str) -> float:
    """Convert a cell to a finite number, integers exactly; NaN if it is none."""
    try:
        if re.fullmatch(r"\s*[-+]?[0-9]+\s*", value):
            return int(value)
        number = math.nan if "_" in value else float(value)  # Python reads 1_0 as ten
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan

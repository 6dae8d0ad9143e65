"""Texts from a CSV file: a text, a label, any number of bias labels and a split per row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .folder import LARGEST_LABEL, SPLIT_VALUES, encode_labels, stop_at_problems
from .loader import BiasedDataset, DataSplits
from .table import Table, read_header, read_table

# Column names in use, in order of preference; case does not matter.
COLUMNS = {
    "text": ("text", "comment_text", "sentence", "content", "tweet", "comment"),
    "label": ("label", "y", "target", "toxic", "toxicity", "hateful", "class"),
    "bias": ("bias", "b", "a", "identity_any", "identity", "spurious", "attribute"),
    "split": ("split",),
}
_SPLIT_NAMES = {**SPLIT_VALUES, "validation": "val", "dev": "val"}
_PARTS = ("train", "val", "test")
_CHUNK = 1024  # texts per call of the tokenizer


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    def __call__(
        self, text: list[str], /, *, padding: str, truncation: bool, max_length: int, return_tensors: str
    ) -> Mapping[str, Tensor]:
        """``input_ids`` and ``attention_mask``, both (len(text), max_length), int64, for ``padding="max_length"``."""
        ...


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a Hugging Face model's folder.

    Raises:
        DataError: transformers is not installed, or the folder holds no tokenizer.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise DataError("texts need the package transformers: pip install 'bise-prune[transformers]'") from error
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise DataError(f"no tokenizer in {folder}: {str(error).splitlines()[0]}") from error


def load_text(
    path: Path,
    tokenizer: Tokenizer,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    bias_columns: Sequence[str] | None = None,
    split_column: str | None = None,
    max_length: int = 220,
    seed: int = 0,
) -> DataSplits:
    """Read a CSV file of texts, and tokenise them once.

    Labels and bias labels are integers from 0; or names, numbered in alphabetical order; or scores in [0, 1], of which
    .5 and above are 1. Without a split column, 70 % of the rows are for training, 10 % for validation and 20 % for
    testing, stratified by label and bias labels; texts that are equal up to case and spacing stay together. Every row
    is checked before anything is tokenised.

    Args:
        path: a ``.csv`` or ``.csv.gz`` file in UTF-8, with a header.
        tokenizer: called on lists of texts.
        text_column: of the texts; found among the usual names if None, as are the next three.
        label_column: of the class labels.
        bias_columns: one per bias, may be empty; if None, at most one column is found.
        split_column: train, val or test, or 0, 1, 2.
        max_length: tokens per text, at least 3; what comes after them is cut off.
        seed: of the random split.

    Returns:
        Splits with ``inputs`` of ``input_ids`` and ``attention_mask``, both (N, L), int64, L the longest text's length.

    Raises:
        DataError: everything wrong with the file: how many rows and which, the first ten by line number.
        ConfigError: ``max_length`` is out of range.
    """
    names = read_header(path)
    text, label, biases, split = _choose(path, names, text_column, label_column, bias_columns, split_column)
    table = read_table(path, [text, label, *biases, *([split] if split else [])])
    texts = read_texts(table, text)
    target, classes, notes = _read_labels(table, label)
    columns = []
    for name in biases:
        values, meanings, remarks = _read_labels(table, name)
        columns.append(values)
        notes += remarks
        if not remarks and meanings != [str(i) for i in range(len(meanings))]:
            notes.append(f"bias '{name}': " + ", ".join(f"{i} = {meaning}" for i, meaning in enumerate(meanings)))
    bias = torch.stack(columns, 1) if columns else torch.zeros((len(texts), 0), dtype=torch.long)
    parts = read_splits(table, split) if split else []
    stop_at_problems(path, table.problems)
    if split:
        notes += shared_texts(texts, parts)
    else:
        parts = _split(texts, torch.cat([target[:, None], bias], 1), seed)
        notes.append(
            f"a random split of 70 % train, 10 % val, 20 % test, stratified by label and bias, seed {seed}; texts that "
            "are equal up to case and spacing are in the same split"
        )
    used = [f"text '{text}'", f"label '{label}'", *(f"bias '{name}'" for name in biases)]
    notes = [f"{path.name}: {len(texts)} texts; columns {', '.join(used)}", *notes]
    if not biases:
        notes.append("no bias labels")
    return assemble(texts, tokenizer, max_length, target, bias, parts, classes, notes)


# -- columns --------------------------------------------------------------------------------------


def _choose(
    path: Path,
    names: Sequence[str],
    text: str | None,
    label: str | None,
    biases: Sequence[str] | None,
    split: str | None,
) -> tuple[str, str, list[str], str | None]:
    """The columns of text, label, biases and split: as given, or the first usual name that is not given away."""
    given = [name for name in (text, label, *(biases or ()), split) if name is not None]
    twice = sorted({name for name in given if given.count(name) > 1})
    if twice:
        raise DataError(f"{path}: column {', '.join(map(repr, twice))} is given for more than one purpose")
    free = {name.strip().lower(): name for name in reversed(names) if name not in given}

    def find(what: str) -> str | None:
        return next((free[alias] for alias in COLUMNS[what] if alias in free), None)

    text, label, split = text or find("text"), label or find("label"), split or find("split")
    if biases is None:
        biases = [name for name in (find("bias"),) if name is not None]
    missing = [f"'{name}'" for name in given if name not in names]
    missing += [f"{what} ({', '.join(COLUMNS[what])})" for what, name in (("text", text), ("label", label)) if not name]
    if missing or text is None or label is None:
        raise DataError(
            f"{path} has no column {', no column '.join(missing)}; it has {', '.join(names) or 'none'}: name them with "
            "text_column, label_column, bias_columns and split_column"
        )
    return text, label, list(biases), split


# -- values ---------------------------------------------------------------------------------------


def read_texts(table: Table, column: str) -> list[str]:
    """The texts; empty ones are reported."""
    texts = table.columns[column]
    table.report(f"without text in '{column}'", [i for i, text in enumerate(texts) if not text.strip()])
    return texts


def read_splits(table: Table, column: str) -> list[str]:
    """Train, val or test per row; other values ("") and a missing training split are reported."""
    parts = [_SPLIT_NAMES.get(value.strip().lower(), "") for value in table.columns[column]]
    unknown = [i for i, part in enumerate(parts) if not part]
    table.report(f"with an unknown '{column}' (use train, val, test or 0, 1, 2)", unknown, column)
    if not unknown and "train" not in parts:
        table.problems.append("no row of the training split")
    return parts


def read_scores(table: Table, column: str, blank: float = math.nan) -> Tensor:
    """Whether each score is at least .5: (N,), int64. What is not in [0, 1] is reported; empty ones are ``blank``."""
    scores = [_number(value) if value.strip() else blank for value in table.columns[column]]
    wrong = [i for i, score in enumerate(scores) if not 0 <= score <= 1]
    table.report(f"whose score '{column}' is not in [0, 1]", wrong, column)
    return (torch.tensor(scores, dtype=torch.double) >= 0.5).long()


def _read_labels(table: Table, column: str) -> tuple[Tensor, list[str], list[str]]:
    """Labels (N,) int64, what they mean, and notes; after problems, zeros."""
    values = [value.strip() for value in table.columns[column]]
    numbers = [_number(value) for value in values]
    empty = [i for i, value in enumerate(values) if value.lower() in ("", "nan")]
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
    else:
        wrong = [i for i in numeric if not 0 <= numbers[i] <= LARGEST_LABEL]
        table.report(f"whose '{column}' is neither a name nor an integer from 0 to {LARGEST_LABEL}", wrong, column)
        if not empty and not wrong:
            plain = [str(int(number)) for number in numbers] if numeric else values
            return *encode_labels(plain, column, table.problems), []
    return torch.zeros(len(values), dtype=torch.long), [], []


def _number(value: str) -> float:
    """A value as a number, NaN if it is none."""
    try:
        return float(value)
    except ValueError:
        return math.nan


# -- splits ---------------------------------------------------------------------------------------


def _key(text: str) -> str:
    """Equal for texts that differ in case and spacing only."""
    return " ".join(text.casefold().split())


def shared_texts(texts: Sequence[str], parts: Sequence[str]) -> list[str]:
    """A note on texts that are in more than one split, if there are any."""
    places: dict[str, set[str]] = {}
    for text, part in zip(texts, parts, strict=True):
        places.setdefault(_key(text), set()).add(part)
    shared = sum(len(found) > 1 for found in places.values())
    return [f"{shared} texts, up to case and spacing, are in more than one split"] if shared else []


def _split(texts: Sequence[str], cells: Tensor, seed: int) -> list[str]:
    """Train, val or test per row, 7:1:2 in every cell (row of ``cells``); a text goes with its first occurrence."""
    first: dict[str, int] = {}
    leader = [first.setdefault(_key(text), i) for i, text in enumerate(texts)]
    leaders = torch.tensor(list(first.values()))
    _, cell = cells[leaders].unique(dim=0, return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    chosen: dict[int, str] = {}
    for value in range(int(cell.max()) + 1):
        rows = leaders[cell == value]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        ends = [(7 * len(rows) + 5) // 10, (8 * len(rows) + 5) // 10]
        for part, members in zip(_PARTS, rows.tensor_split(ends), strict=True):
            chosen.update(dict.fromkeys(members.tolist(), part))
    return [chosen[i] for i in leader]


# -- tokens ---------------------------------------------------------------------------------------


def tokenize(texts: Sequence[str], tokenizer: Tokenizer, max_length: int = 220) -> dict[str, Tensor]:
    """Token ids and attention mask of all texts, padded to the longest one.

    Args:
        texts: N texts.
        tokenizer: called on lists of texts.
        max_length: tokens per text, at least 3; what comes after them is cut off.

    Returns:
        ``input_ids`` and ``attention_mask``, both (N, L), int64, L <= ``max_length``.

    Raises:
        ConfigError: ``max_length`` is out of range.
        DataError: the tokenizer cannot pad, or returns no such tensors.
    """
    if max_length < 3:
        raise ConfigError(f"max_length={max_length}; expected at least 3: a token between two special ones")
    chunks: dict[str, list[Tensor]] = {"input_ids": [], "attention_mask": []}
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        try:
            encoded = tokenizer(
                chunk, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt"
            )
        except ValueError as error:
            raise DataError(f"the tokenizer cannot pad and cut texts to {max_length} tokens: {error}") from error
        for name, found in chunks.items():
            value = encoded.get(name)
            if not isinstance(value, Tensor) or value.shape != (len(chunk), max_length):
                what = "x".join(map(str, value.shape)) if isinstance(value, Tensor) else type(value).__name__
                raise DataError(
                    f"the tokenizer's '{name}' must be a tensor of {len(chunk)}x{max_length} (texts x max_length), "
                    f"got {what}"
                )
            found.append(value.long())
    mask = torch.cat(chunks.pop("attention_mask"))
    ids = torch.cat(chunks.pop("input_ids"))
    used = mask.any(0)  # padding may be left or right
    return {"input_ids": ids[:, used], "attention_mask": mask[:, used]}


def assemble(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    max_length: int,
    target: Tensor,
    bias: Tensor,
    parts: Sequence[str],
    classes: Sequence[str],
    notes: Sequence[str],
) -> DataSplits:
    """Tokenise, and sort into splits.

    Args:
        texts: N texts.
        tokenizer: see :func:`tokenize`, also for what it raises.
        max_length: tokens per text.
        target: class labels, (N,), int64.
        bias: bias labels, (N, K), int64.
        parts: train, val or test per text; at least one train.
        classes: class names.
        notes: what is known of the data; tokens cut off are added.
    """
    inputs = tokenize(texts, tokenizer, max_length)
    full = int((inputs["attention_mask"].sum(1) == max_length).sum())
    if full:
        notes = [*notes, f"{full} of {len(texts)} texts fill {max_length} tokens; what may come after is cut off"]
    whole = BiasedDataset(inputs, target, bias)
    found = {}
    for part in _PARTS:
        rows = torch.tensor([i for i, value in enumerate(parts) if value == part], dtype=torch.long)
        found[part] = whole.subset(rows) if len(rows) else None
    train = found["train"]
    assert train is not None
    return DataSplits(train, found["val"], found["test"], classes, notes)

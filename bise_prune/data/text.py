"""Texts from a CSV file: a text, a label, any number of bias labels and a split per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .columns import PARTS, Chosen, Columns, random_split, read_labels, read_splits
from .loader import BiasedDataset, DataSplits
from .table import Table, read_header, read_table, stop_at_problems

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
        return AutoTokenizer.from_pretrained(  # type: ignore[no-any-return]
            folder, local_files_only=True, trust_remote_code=False
        )
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
    classes: Sequence[str] = (),
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
        bias_columns: one per bias, may be empty; if None, all called "bias_...", or one of another usual name.
        split_column: train, val or test, or 0, 1, 2.
        max_length: tokens per text, at least 3; what comes after them is cut off.
        seed: of the random split.
        classes: of the checkpoint, which number names of classes; alphabetical if there are none.

    Returns:
        Splits with ``inputs`` of ``input_ids`` and ``attention_mask``, both (N, L), int64, L the longest text's length.

    Raises:
        DataError: everything wrong with the file: how many rows and which, the first ten by line number.
        ConfigError: ``max_length`` is out of range.
    """
    columns = Columns(label_column, bias_columns, split_column, text=text_column)
    chosen = columns.chosen(read_header(path), path, "text")
    table = read_table(path, chosen.names)
    return text_splits(table, chosen, tokenizer, [], classes=classes, max_length=max_length, seed=seed)


def text_splits(
    table: Table,
    chosen: Chosen,
    tokenizer: Tokenizer,
    parts: Sequence[str],
    *,
    classes: Sequence[str] = (),
    max_length: int = 220,
    seed: int = 0,
) -> DataSplits:
    """:func:`load_text` for a table already read.

    Args:
        table: with the chosen columns.
        chosen: which they are.
        tokenizer: called on lists of texts.
        parts: train, val or test per row where something else than a column says so.
        classes: of the checkpoint.
        max_length: as there.
        seed: as there.
    """
    texts = read_texts(table, chosen.content)
    labels = read_labels(table, chosen, classes)
    if not parts and chosen.split:
        parts = read_splits(table, chosen.split)
    stop_at_problems(table.path, table.problems)
    if parts:
        notes = shared_texts(texts, parts)
    else:
        keys = [_key(text) for text in texts]
        parts = random_split(keys, torch.cat([labels.target[:, None], labels.bias], 1), seed)
        notes = [
            f"a random split of 70 % train, 10 % val, 20 % test, stratified by label and bias, seed {seed}; texts that "
            "are equal up to case and spacing are in the same split"
        ]
    first = f"{table.path.name}: {len(texts)} texts; columns: text '{chosen.content}', {chosen}"
    notes = [first, *labels.notes, *notes]
    if not chosen.biases:
        notes.append("no bias labels")
    return assemble(
        texts, tokenizer, max_length, labels.target, labels.bias, parts, labels.classes, notes, labels.bias_values
    )


def read_texts(table: Table, column: str) -> list[str]:
    """The texts; empty ones are reported."""
    texts = table.columns[column]
    table.report(f"without text in '{column}'", [i for i, text in enumerate(texts) if not text.strip()])
    return texts


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
    bias_values: Sequence[Sequence[str]] = (),
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
        bias_values: names of each bias's values, if known.
    """
    inputs = tokenize(texts, tokenizer, max_length)
    full = int((inputs["attention_mask"].sum(1) == max_length).sum())
    if full:
        notes = [*notes, f"{full} of {len(texts)} texts fill {max_length} tokens; what may come after is cut off"]
    whole = BiasedDataset(inputs, target, bias)
    found = {}
    for part in PARTS:
        rows = torch.tensor([i for i, value in enumerate(parts) if value == part], dtype=torch.long)
        found[part] = whole.subset(rows) if len(rows) else None
    train = found["train"]
    assert train is not None
    return DataSplits(train, found["val"], found["test"], classes, notes, bias_values=bias_values)

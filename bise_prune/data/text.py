"""Load texts from a CSV file: each row has a text, a class label, any number of bias labels and a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .columns import Chosen, Columns
from .labels import PARTS, known_bias, random_split, read_labels, read_splits
from .loader import BiasedDataset, DataSplits
from .table import Table, stop_at_problems
from .tables import Tables

_CHUNK = 1024  # texts per call of the tokenizer


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer's interface that is used."""

    def __call__(
        self, text: list[str], /, *, padding: str, truncation: bool, max_length: int, return_tensors: str
    ) -> Mapping[str, Tensor]:
        """Tokenise texts.

        Returns:
            ``input_ids`` and ``attention_mask``, both (len(text), max_length), int64, for ``padding="max_length"``.
        """
        ...


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer in the folder of a Hugging Face model.

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
    except Exception as error:  # readers of tokenizers raise errors of many kinds, some without a class of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"no tokenizer in {folder} that can be read: {reason}") from error


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
    """Read a CSV file of texts and tokenise them.

    Class and bias labels are integers from 0; or names, of which class names are numbered by ``classes`` and others in
    alphabetical order; or scores in [0, 1], of which 0.5 and above count as 1. Without a split column, 70 % of the rows
    are for training, 10 % for validation and 20 % for testing, stratified by class and bias labels; texts that differ
    only in case and spacing are in the same split. Every row is checked before anything is tokenised.

    Args:
        path: a table; see :func:`bise_prune.data.table.read_table`.
        tokenizer: tokenizer that is called with lists of texts.
        text_column: column of the texts; None for this and the next three = the column is found by its usual names.
        label_column: column of the class labels.
        bias_columns: columns of the bias labels, one per bias, may be empty; if None, all columns called "bias_..." or
            else one column with another usual name.
        split_column: column that says train, val or test, or 0, 1 or 2.
        max_length: number of tokens that longer texts are cut to, at least 3.
        seed: random seed of the split.
        classes: class names of the checkpoint, whose order numbers the classes; alphabetical order if there are none.

    Returns:
        Splits whose ``inputs`` are ``input_ids`` and ``attention_mask``, both (N, L), int64, where L is the length of
        the longest text.

    Raises:
        DataError: the file cannot be used; the message says how many rows are wrong and names the first ten lines.
        ConfigError: ``max_length`` is out of range.
    """
    columns = Columns(label_column, bias_columns, split_column, text=text_column)
    return texts_of(
        Tables([(path, "")]), columns, tokenizer, classes=classes, max_length=max_length, seed=seed
    )  # fmt: skip


def texts_of(
    tables: Tables,
    columns: Columns,
    tokenizer: Tokenizer,
    *,
    classes: Sequence[str] = (),
    max_length: int = 220,
    seed: int = 0,
) -> DataSplits:
    """Read the texts of tables and tokenise them, as :func:`load_text` does for one."""
    chosen = columns.chosen(tables.header(), tables.first, "text")
    table, _, parts = tables.read(chosen.names)
    return text_splits(table, chosen, tokenizer, parts, classes=classes, max_length=max_length, seed=seed)


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
    """Tokenise the texts of a table that was already read, and sort them into splits, as :func:`load_text` does.

    Args:
        table: the table, with the chosen columns.
        chosen: the columns.
        tokenizer: tokenizer that is called with lists of texts.
        parts: split of each row, if it is known from elsewhere than a column; else empty.
        classes: class names of the checkpoint.
        max_length: number of tokens that longer texts are cut to, at least 3.
        seed: random seed of the split, if it is random.
    """
    texts = read_texts(table, chosen.content)
    if not parts and chosen.split:
        parts = read_splits(table, chosen.split)
    labels = read_labels(table, chosen, classes, parts)
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
    notes = [first, *table.notes, *labels.notes, *notes]
    if not chosen.biases:
        notes.append("no bias labels")
    return assemble(
        texts,
        tokenizer,
        max_length,
        labels.target,
        labels.bias,
        parts,
        labels.classes,
        notes,
        labels.bias_values,
        labels.bias_names,
    )


def read_texts(table: Table, column: str) -> list[str]:
    """Return the texts of a column; empty ones are added to the table's problems."""
    texts = table.columns[column]
    table.report(f"without text in '{column}'", [i for i, text in enumerate(texts) if not text.strip()])
    return texts


def _key(text: str) -> str:
    """A key that is equal for texts that differ only in case and spacing."""
    return " ".join(text.casefold().split())


def shared_texts(texts: Sequence[str], parts: Sequence[str]) -> list[str]:
    """Return a note on texts that are in more than one split; an empty list if there are none."""
    places: dict[str, set[str]] = {}
    for text, part in zip(texts, parts, strict=True):
        places.setdefault(_key(text), set()).add(part)
    shared = sum(len(found) > 1 for found in places.values())
    return [f"{shared} texts, up to case and spacing, are in more than one split"] if shared else []


# -- tokens ---------------------------------------------------------------------------------------


def tokenize(texts: Sequence[str], tokenizer: Tokenizer, max_length: int = 220) -> dict[str, Tensor]:
    """Tokenise all texts and pad them to the longest one.

    Args:
        texts: N texts.
        tokenizer: tokenizer that is called with lists of texts.
        max_length: number of tokens that longer texts are cut to, at least 3.

    Returns:
        ``input_ids`` and ``attention_mask``, both (N, L), int64, L <= ``max_length``.

    Raises:
        ConfigError: ``max_length`` is out of range.
        DataError: the tokenizer cannot pad, or does not return such tensors.
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
    used = mask.any(0)  # padding may be on the left or on the right
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
    bias_names: Sequence[str] = (),
) -> DataSplits:
    """Tokenise texts and sort them into splits.

    Args:
        texts: N texts.
        tokenizer: tokenizer; see :func:`tokenize`, also for errors.
        max_length: number of tokens that longer texts are cut to, at least 3.
        target: class labels, shape (N,), int64.
        bias: bias labels, shape (N, K), int64.
        parts: split of each text ("train", "val" or "test"); at least one is "train".
        classes: class names.
        notes: facts about the data for the report; a note on cut texts is added.
        bias_values: names of each bias's values, if known.
        bias_names: names of the biases, if known.
    """
    inputs = tokenize(texts, tokenizer, max_length)
    full = int((inputs["attention_mask"].sum(1) == max_length).sum())
    if full:
        notes = [*notes, f"{full} of {len(texts)} texts fill {max_length} tokens; what may come after is cut off"]
    whole = BiasedDataset(inputs, target, bias)
    found = {}
    for part in PARTS:
        rows = torch.tensor([i for i, value in enumerate(parts) if value == part], dtype=torch.long)
        split = whole.subset(rows)
        found[part] = split.with_bias(known_bias(split.bias)) if len(rows) else None
    train = found["train"]
    assert train is not None
    return DataSplits(
        train, found["val"], found["test"], classes, notes, bias_values=bias_values, bias_names=bias_names
    )

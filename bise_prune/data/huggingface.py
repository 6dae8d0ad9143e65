"""Load parquet files, and data sets that were saved by the package ``datasets``: images or texts, with their labels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from .columns import Columns
from .images import Listing, splits_of
from .labels import read_labels, read_splits, split_of
from .loader import DataSplits
from .table import Table, written
from .text import Tokenizer, text_splits

_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")
_HINT = "pip install 'bise-prune[datasets]'"


@dataclass
class _Rows:
    """The rows of a data set.

    Attributes:
        columns: column name -> one Python value per row.
        parts: split of each row; "" if it is not known.
        unsplit: names of files that do not say which split they are.
        classes: column name -> names of its class labels.
    """

    columns: dict[str, list[Any]] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    unsplit: list[str] = field(default_factory=list)
    classes: dict[str, list[str]] = field(default_factory=dict)


def is_saved_dataset(path: Path) -> bool:
    """Whether ``path`` is a parquet file, a folder of parquet files, or a folder that ``save_to_disk`` wrote."""
    if path.is_file():
        return path.suffix == ".parquet"
    return any((path / name).is_file() for name in _SAVED) or any(path.glob("*.parquet"))


def load_huggingface(
    path: Path,
    preprocessing: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    columns: Columns | None = None,
    classes: Sequence[str] = (),
    skip_bad: bool = False,
) -> DataSplits:
    """Read rows with an image (a struct of bytes and path, or a path) or a text, a class label and bias labels.

    Splits are those of a saved ``DatasetDict``, the first word of the parquet files' names (train-00000-of-00001), or a
    column; if there is none of these, the split is random.

    Args:
        path: a ``.parquet`` file, a folder of parquet files, or a folder written by ``save_to_disk``.
        preprocessing: ``mean``, ``std`` and ``size`` of images; see :func:`bise_prune.data.images.splits_of`.
        tokenizer: tokenizer of texts; None for images.
        columns: names of columns, where they are not the usual ones.
        classes: class names of the checkpoint, whose order numbers the classes.
        skip_bad: whether to continue without images that cannot be read.

    Raises:
        DataError: a package is missing, or the data cannot be used; the message lists the first ten problems.
    """
    columns = columns or Columns()
    saved = path.is_dir() and any((path / name).is_file() for name in _SAVED)
    rows = _saved(path) if saved else _parquet(path)
    texts = tokenizer is not None and columns.file is None
    chosen = columns.chosen(list(rows.columns), path, "text" if texts else "file")
    if not rows.columns[chosen.label]:
        raise DataError(f"{path} has no rows")
    count = len(rows.columns[chosen.label])
    table = Table(path, [f"{i}" for i in range(1, count + 1)], {})
    names = rows.classes.get(chosen.label, [])
    if names and set(names) == set(classes):  # their order may differ
        place = [classes.index(name) for name in names]
        values = rows.columns[chosen.label]
        rows.columns[chosen.label] = [place[v] if v in range(len(place)) else v for v in values]
    elif names:
        classes = names
    for name in chosen.names:
        if name != chosen.content or texts:
            table.columns[name] = [written(value) for value in rows.columns[name]]
    parts = rows.parts if any(rows.parts) else read_splits(table, chosen.split) if chosen.split else []
    if rows.unsplit and any(rows.parts):
        table.problems.append(f"{', '.join(rows.unsplit[:10])} do not say of which split they are, and other files do")
    elif parts and "" not in parts and "train" not in parts and not table.problems:
        table.problems.append("no row of the training split")
    if texts:
        assert tokenizer is not None
        return text_splits(table, chosen, tokenizer, parts, classes=classes)
    labels = read_labels(table, chosen, classes, parts)
    meanings = [f"bias '{name}': {', '.join(f'{i} = {n}' for i, n in enumerate(rows.classes[name]))}"
                for name in chosen.biases if name in rows.classes]  # fmt: skip
    bias_values = [rows.classes.get(name, own) for name, own in zip(chosen.biases, labels.bias_values, strict=True)]
    sources, names = [], []
    for i, value in enumerate(rows.columns[chosen.content]):
        source, name = _source(value, path)
        sources.append(source)
        names.append(name or f"the image of row {i + 1}")
    listing = Listing(
        path, sources, names, labels.target, labels.bias, parts, labels.classes,
        [f"columns: {chosen}", *labels.notes, *meanings], table.problems, bias_values=bias_values,
        bias_names=labels.bias_names,
    )  # fmt: skip
    return splits_of(listing, preprocessing, skip_bad)


def _source(value: Any, path: Path) -> tuple[Path | bytes, str]:
    """The file or the bytes of an image, and its name."""
    folder = path if path.is_dir() else path.parent
    if isinstance(value, Mapping):
        name = str(value.get("path") or "")
        return (value["bytes"], name) if value.get("bytes") else (folder / (name or "without an image"), name)
    if isinstance(value, bytes):
        return value, ""
    return folder / str(value), str(value)


def _parquet(path: Path) -> _Rows:
    """Read a parquet file, or all parquet files of a folder."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path}: parquet files need the package pyarrow: {_HINT}") from error
    rows = _Rows()
    for file in [path] if path.is_file() else sorted(path.glob("*.parquet")):
        try:
            table = pyarrow.parquet.read_table(file)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise DataError(f"cannot read {file}: {str(error).splitlines()[0]}") from error
        word = re.split(r"[-_.]", file.stem.lower())[0]
        part = "" if word.isdigit() else split_of(word)
        rows.unsplit += [] if part else [file.name]
        _extend(rows, table.to_pydict(), part, table.num_rows, file)
        rows.classes |= _class_names((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    return rows


def _class_names(metadata: bytes) -> dict[str, list[str]]:
    """Column name -> names of its class labels, by the metadata of a parquet file; none if these are odd."""
    try:
        features = json.loads(metadata)["info"]["features"]
        named = {name: feature["names"] for name, feature in features.items() if "names" in (feature or {})}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return {}
    return {name: [str(text) for text in names] for name, names in named.items() if isinstance(names, list)}


def _saved(path: Path) -> _Rows:
    """Read a data set or ``DatasetDict`` that ``save_to_disk`` wrote."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{path} was saved by the package datasets, which is needed to read it: {_HINT}") from error
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # the package raises errors of many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"cannot read {path}: {reason}") from error
    rows = _Rows()
    for part, data in found.items() if isinstance(found, dict) else [("", found)]:
        if part and not split_of(part):
            continue  # such as "unsupervised"
        for name, feature in data.features.items():
            if isinstance(feature, datasets.ClassLabel):
                rows.classes[name] = list(feature.names)
            if isinstance(feature, datasets.Image):
                data = data.cast_column(name, datasets.Image(decode=False))
        _extend(rows, data.to_dict(), split_of(part), len(data), path)
    return rows


def _extend(rows: _Rows, columns: Mapping[str, list[Any]], part: str, count: int, where: Path) -> None:
    """Append the columns of one file or split to ``rows``; they must have the same names."""
    if rows.columns and set(rows.columns) != set(columns):
        raise DataError(f"{where} has the columns {', '.join(columns)}, what was read before {', '.join(rows.columns)}")
    for name, values in columns.items():
        rows.columns.setdefault(name, []).extend(values)
    rows.parts += [part] * count

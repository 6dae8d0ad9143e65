"""Load a data set by its specification: a folder, a file, or ``NAME[:PATH][,key=value...]``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from .biased_mnist import load_biased_mnist
from .celeba import load_celeba
from .civilcomments import load_civilcomments
from .columns import ALIASES, Columns
from .corrupted_cifar10 import load_corrupted_cifar10
from .digits import load_digits_demo
from .folder import LAYOUTS, load_folder
from .huggingface import is_saved_dataset, load_huggingface
from .loader import DataSplits
from .multi_color_mnist import load_multi_color_mnist
from .table import is_table
from .tables import Tables, tables_in
from .text import Tokenizer, load_text, texts_of

_NAMED: dict[str, Callable[..., DataSplits]] = {
    "digits": load_digits_demo,
    "biased_mnist": load_biased_mnist,
    "multi_color_mnist": load_multi_color_mnist,
    "corrupted_cifar10": load_corrupted_cifar10,
    "celeba": load_celeba,
    "civilcomments": load_civilcomments,
    "text": load_text,
}
_SOURCES = {"biased_mnist": "MNIST", "multi_color_mnist": "MNIST", "corrupted_cifar10": "CIFAR-10", "celeba": "CelebA"}
_GIVEN = ("root", "path", "tokenizer", "classes")  # parameters of loaders that are no options of a specification


def load_data(
    specification: str,
    preprocessing: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    columns: Columns | None = None,
    classes: Sequence[str] = (),
    skip_bad: bool = False,
    image_folder: Path | None = None,
) -> DataSplits:
    """Load a data set by its specification.

    Args:
        specification: a folder of images or a table of them (see :func:`bise_prune.data.folder.load_folder`), a table
            of texts or a folder of tables (see :func:`bise_prune.data.text.load_text`), parquet files or a folder that
            Hugging Face's ``save_to_disk`` wrote (see :mod:`bise_prune.data.huggingface`); or a built-in
            data set: "digits", "biased_mnist:ROOT", "multi_color_mnist:ROOT", "corrupted_cifar10:ROOT", "celeba:ROOT",
            "civilcomments:ROOT" or "text:FILE", with options such as ",rho=0.95,seed=1"; lists are written "a+b".
        preprocessing: ``mean``, ``std``, ``size``, ``crop`` and ``channels`` of images; see
            :func:`bise_prune.data.images.splits_of`.
        tokenizer: tokenizer of texts; None if there is none.
        columns: names of columns, where they are not the usual ones.
        classes: class names of the checkpoint, whose order numbers the classes; alphabetical order if there are none.
        skip_bad: whether to continue without images that cannot be read.
        image_folder: folder that the files in a table are relative to; None = the table's own.

    Raises:
        DataError: the folder or file does not exist or cannot be used.
        ConfigError: an option is unknown or has a wrong value, or texts are given without a tokenizer.

    >>> len(load_data("digits,samples=1000,seed=3").train)
    1000
    """
    columns = columns or Columns()
    name = _name(specification)
    if is_named(specification):
        if columns != Columns() and name != "text":
            raise ConfigError(f"data set '{name}' has no columns to name")
        return _load_named(specification, tokenizer, columns)
    path = Path(specification)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # a name that no file system accepts
        is_folder = is_file = False
    if not is_folder and not is_file:
        known = ", ".join(f"'{known}'" for known in _NAMED)
        raise DataError(f"no folder or file at '{specification}', and no data set of that name (known: {known})")
    try:
        if is_saved_dataset(path):
            return load_huggingface(path, preprocessing or {}, tokenizer, columns, classes, skip_bad)
        tables = _tables_of(path, columns, tokenizer is not None)
        if tables is not None and _are_of_texts(tables, columns, tokenizer is not None):
            return _load_texts(tables, tokenizer, columns, classes)
        if is_folder or tables is not None:
            return load_folder(path, preprocessing or {}, columns, classes, skip_bad, image_folder)
    except PermissionError as error:
        raise DataError(f"cannot read {error.filename or specification}: {error.strerror}") from error
    raise DataError(f"{specification} is neither a table nor a parquet file, nor a folder with {LAYOUTS}")


def is_named(specification: str) -> bool:
    """Whether a specification names a built-in data set, and not a folder or file, which may have such a name."""
    try:
        return _name(specification) in _NAMED and not Path(specification).exists()
    except (OSError, ValueError):  # a name that no file system accepts
        return True


def _name(specification: str) -> str:
    """The part of a specification in front of the first colon or comma."""
    return specification.partition(",")[0].partition(":")[0]


def _tables_of(path: Path, columns: Columns, has_tokenizer: bool) -> Tables | None:
    """The tables of a data set; None if it has none, or is a folder in a layout without tables."""
    if path.is_file():
        return Tables([(path, "")]) if is_table(path) else None
    return tables_in(path, columns, "text") if has_tokenizer else None


def _are_of_texts(tables: Tables, columns: Columns, has_tokenizer: bool) -> bool:
    """Whether tables hold texts and do not list images.

    With a tokenizer, they do if they have a column of texts or none of files; without one, if they have a column of
    texts and none of files.
    """
    names = {name.strip().lower() for name in tables.header()}
    texts = columns.text is not None or bool(names.intersection(ALIASES["text"]))
    files = columns.file is not None or bool(names.intersection(ALIASES["file"]))
    return texts or not files if has_tokenizer else texts and not files


def _load_texts(
    tables: Tables, tokenizer: Tokenizer | None, columns: Columns, classes: Sequence[str]
) -> DataSplits:  # fmt: skip
    """Load texts from tables."""
    if tokenizer is None:
        raise ConfigError(
            f"{tables.first} holds texts, which need the tokenizer of a Hugging Face model: give its folder as the "
            "checkpoint; if it lists images, name their column with --file-column"
        )
    return texts_of(tables, columns, tokenizer, classes=classes)


def _load_named(specification: str, tokenizer: Tokenizer | None, columns: Columns) -> DataSplits:
    """Load a built-in data set with the path and the options in its specification."""
    head, *options = specification.split(",")
    name, _, root = head.partition(":")
    loader = _NAMED[name]
    parameters = inspect.signature(loader).parameters
    arguments: dict[str, Any] = {}
    if place := next((key for key in ("root", "path") if key in parameters), None):
        if not root:
            what = "folder" if place == "root" else "file"
            source = _SOURCES.get(name, "its texts")
            raise ConfigError(f"data set '{name}' needs the {what} of {source}: {name}:{what.upper()}")
        arguments[place] = Path(root)
    if "tokenizer" in parameters:
        if tokenizer is None:
            raise ConfigError(
                f"data set '{name}' holds texts, which need the tokenizer of a Hugging Face model: give its folder as "
                "the checkpoint"
            )
        arguments["tokenizer"] = tokenizer
    if name == "text":
        named = {"text": columns.text, "label": columns.label, "split": columns.split}
        arguments |= {f"{key}_column": value for key, value in named.items()}
        arguments["bias_columns"] = columns.bias
    for option in options:
        key, _, value = option.partition("=")
        if key not in parameters or key in _GIVEN:
            near = difflib.get_close_matches(key, [p for p in parameters if p not in _GIVEN], n=1, cutoff=0)
            raise ConfigError(f"data set '{name}' has no option '{key}': did you mean {near[0]}?")
        arguments[key] = _parsed(name, key, value, parameters[key].default)
    return loader(**arguments)


def _parsed(name: str, key: str, value: str, default: Any) -> Any:
    """Convert the text of an option to the type of the option's default."""
    if key == "bias_columns":
        return [column for column in value.split("+") if column]
    kind = str if default is None else type(default)
    try:
        return kind(value)
    except ValueError as error:
        raise ConfigError(f"data set '{name}': {key}={value!r} is no {kind.__name__}") from error

"""A data set by its specification: a folder, a CSV file of texts, or ``NAME[:PATH][,key=value...]``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from .biased_mnist import load_biased_mnist
from .celeba import load_celeba
from .civilcomments import load_civilcomments
from .corrupted_cifar10 import load_corrupted_cifar10
from .digits import load_digits_demo
from .folder import load_folder
from .loader import DataSplits
from .multi_color_mnist import load_multi_color_mnist
from .text import Tokenizer, load_text

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
_GIVEN = ("root", "path", "tokenizer")  # what is no option


def load_data(
    specification: str, preprocessing: Mapping[str, Any] | None = None, tokenizer: Tokenizer | None = None
) -> DataSplits:
    """Load a data set.

    Args:
        specification: a folder with ``metadata.csv`` (see :func:`bise_prune.data.folder.load_folder`), a ``.csv`` or
            ``.csv.gz`` file of texts (see :func:`bise_prune.data.text.load_text`), or one of "digits",
            "biased_mnist:ROOT", "multi_color_mnist:ROOT", "corrupted_cifar10:ROOT", "celeba:ROOT",
            "civilcomments:ROOT", "text:FILE", with options such as ",rho=0.95,seed=1"; lists are written "a+b".
        preprocessing: ``mean``, ``std`` and ``size`` for a folder's images.
        tokenizer: for texts.

    Raises:
        DataError: there is no such folder, or it is unfit.
        ConfigError: an unknown option, or texts without a tokenizer.

    >>> len(load_data("digits,samples=1000,seed=3").train)
    1000
    """
    if specification.endswith((".csv", ".csv.gz")) and not specification.startswith("text:"):
        specification = f"text:{specification}"
    head, *options = specification.split(",")
    name, _, root = head.partition(":")
    if name not in _NAMED:
        try:
            is_folder = Path(specification).is_dir()
        except (OSError, ValueError):  # a name that no file system takes
            is_folder = False
        if not is_folder:
            known = ", ".join(f"'{known}'" for known in _NAMED)
            raise DataError(f"no folder at '{specification}', and no data set of that name (known: {known})")
        return load_folder(Path(specification), preprocessing or {})
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
    for option in options:
        key, _, value = option.partition("=")
        if key not in parameters or key in _GIVEN:
            near = difflib.get_close_matches(key, [p for p in parameters if p not in _GIVEN], n=1, cutoff=0)
            raise ConfigError(f"data set '{name}' has no option '{key}': did you mean {near[0]}?")
        arguments[key] = _parsed(name, key, value, parameters[key].default)
    return loader(**arguments)


def _parsed(name: str, key: str, value: str, default: Any) -> Any:
    if key == "bias_columns":
        return [column for column in value.split("+") if column]
    kind = str if default is None else type(default)
    try:
        return kind(value)
    except ValueError as error:
        raise ConfigError(f"data set '{name}': {key}={value!r} is no {kind.__name__}") from error

"""A data set by its specification: a folder, or ``NAME[:ROOT][,key=value...]``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from .biased_mnist import load_biased_mnist
from .digits import load_digits_demo
from .folder import load_folder
from .loader import DataSplits
from .multi_color_mnist import load_multi_color_mnist

_NAMED: dict[str, Callable[..., DataSplits]] = {
    "digits": load_digits_demo,
    "biased_mnist": load_biased_mnist,
    "multi_color_mnist": load_multi_color_mnist,
}


def load_data(specification: str, preprocessing: Mapping[str, Any] | None = None) -> DataSplits:
    """Load a data set.

    Args:
        specification: a folder with ``metadata.csv`` (see :func:`bise_prune.data.folder.load_folder`), or one of
            "digits", "biased_mnist:ROOT", "multi_color_mnist:ROOT", with options such as ",rho=0.95,seed=1".
        preprocessing: ``mean``, ``std`` and ``size`` for a folder's images.

    Raises:
        DataError: there is no such folder, or it is unfit.
        ConfigError: an unknown option.

    >>> len(load_data("digits,samples=1000,seed=3").train)
    1000
    """
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
    if "root" in parameters:
        if not root:
            raise ConfigError(f"data set '{name}' needs the folder of MNIST: {name}:FOLDER")
        arguments["root"] = Path(root)
    for option in options:
        key, _, value = option.partition("=")
        if key not in parameters or key == "root":
            near = difflib.get_close_matches(key, [p for p in parameters if p != "root"], n=1, cutoff=0)
            raise ConfigError(f"data set '{name}' has no option '{key}': did you mean {near[0]}?")
        kind = type(parameters[key].default)
        try:
            arguments[key] = kind(value)
        except ValueError as error:
            raise ConfigError(f"data set '{name}': {key}={value!r} is no {kind.__name__}") from error
    return loader(**arguments)

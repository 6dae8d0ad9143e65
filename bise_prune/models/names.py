"""Parse the names by which users give an architecture.

``NAME``, ``torchvision:NAME``, ``timm:NAME``, ``hf:PATH`` or ``package.module:factory``, each optionally followed by
arguments of its constructor, ``NAME(key=value, ...)``.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from ..errors import ConfigError

TORCHVISION, TIMM, HUGGING_FACE = "torchvision", "timm", "hf"


def parse_architecture(text: str) -> tuple[str, dict[str, Any]]:
    """Split the text that a user gave for an architecture into a name and constructor arguments.

    Raises:
        ConfigError: the text does not have this form, or there is no configuration at the PATH of ``hf:PATH``.

    >>> parse_architecture("timm:resnet18(drop_rate=0.1)")
    ('timm:resnet18', {'drop_rate': 0.1})
    """
    name, bracket, inside = text.strip().partition("(")
    arguments: dict[str, Any] = {}
    if bracket:
        try:
            call = ast.parse(f"f({inside}", mode="eval").body
            if not isinstance(call, ast.Call) or call.args:
                raise ValueError("arguments are key=value")
            arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
            json.dumps(arguments)  # they will be written into files
        except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError) as error:
            raise ConfigError(f"'{text}' is no architecture: write NAME(key=value, ...) with plain values") from error
    name = _as_module(name)
    prefix, _, rest = name.partition(":")
    if ":" in name and not (prefix and rest):
        raise ConfigError(f"'{text}' is no architecture: something is missing beside the colon")
    if prefix == HUGGING_FACE:
        return "transformers", {"config": {**_configuration(Path(rest)), **arguments}}
    return name, arguments


def _as_module(name: str) -> str:
    """The name of a factory whose module was given as a file, ``./net.py:Net``, or with a dot, ``net.Net``.

    >>> _as_module("./models/net.py:Net"), _as_module("resnet18")
    ('models.net:Net', 'resnet18')
    """
    place, colon, factory = name.partition(":")
    if colon and place.endswith(".py"):
        path = Path(place)
        if path.is_absolute() and path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        if path.is_absolute() or ".." in path.parts:
            raise ConfigError(f"'{name}' lies outside of the current folder: start the command in {path.parent}")
        return f"{'.'.join(path.with_suffix('').parts)}:{factory}"
    module, _, last = name.rpartition(".")
    if not colon and module and Path(*module.split(".")).with_suffix(".py").is_file():
        return f"{module}:{last}"
    return name


def is_factory(name: str) -> bool:
    """Whether a name has the form ``package.module:factory``, a function in the user's own code."""
    return ":" in name and name.partition(":")[0] not in (TORCHVISION, TIMM, HUGGING_FACE)


def _configuration(folder: Path) -> dict[str, Any]:
    """Read a Hugging Face ``config.json``, without its private keys."""
    path = folder / "config.json" if folder.is_dir() else folder
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or "model_type" not in config:
            raise ValueError("it has no model_type")
    except (OSError, RecursionError, ValueError) as error:
        raise ConfigError(f"no Hugging Face configuration at {path}: {error}") from error
    return {key: value for key, value in config.items() if not key.startswith("_")}

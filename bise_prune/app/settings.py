"""Settings as one flat table: the names that a file and the command line share, and the configuration they make."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import FinetuneConfig, RunConfig, SearchConfig
from ..errors import ConfigError
from ..files import atomic_path

SEARCH = tuple(field.name for field in dataclasses.fields(SearchConfig) if field.name != "budget")
_FINETUNE = tuple(field.name for field in dataclasses.fields(FinetuneConfig) if field.name != "epochs")
_OTHERS = ("search", "finetune", "resume")  # not one setting, or none of the run's
RUN = tuple(field.name for field in dataclasses.fields(RunConfig) if field.name not in _OTHERS)
FINETUNE = {f"finetune_{name}": name for name in _FINETUNE}
SETTINGS = (*RUN, *SEARCH, "finetune", *FINETUNE)
_SHARED = ("weighting", "rho", "select")  # which finetuning takes over from the search


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """The configuration of settings by their flat names; what is missing has its default.

    Args:
        values: among :data:`SETTINGS`, and ``resume``; ``finetune`` is the number of epochs, 0 for none.

    Raises:
        ConfigError: a value is out of range, or contradicts another.
    """
    unused = [key for key in FINETUNE if values.get(key) not in (None, _default_of(FINETUNE[key]))]
    if unused and not values.get("finetune"):
        raise ConfigError(f"{unused[0]} has no use without finetuning: give finetune, the number of epochs")
    search = SearchConfig(**{name: values[name] for name in SEARCH if name in values})
    finetune = None
    if values.get("finetune"):
        own = {name: values[key] for key, name in FINETUNE.items() if values.get(key) is not None}
        shared = {name: getattr(search, name) for name in _SHARED if name != "rho" or "weighting" not in own}
        finetune = FinetuneConfig(epochs=values["finetune"], **{**shared, **own})
    return RunConfig(
        **{name: values[name] for name in (*RUN, "resume") if name in values}, search=search, finetune=finetune
    )


def _default_of(name: str) -> Any:
    return {field.name: field.default for field in dataclasses.fields(FinetuneConfig)}[name]


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The inverse of :func:`run_config`, without what is None and without the folders that a run writes to."""
    values = {name: getattr(config, name) for name in RUN if name not in ("output", "triton", "log")}
    values |= {name: getattr(config.search, name) for name in SEARCH}
    if config.finetune is not None:
        values["finetune"] = config.finetune.epochs
        values |= {key: getattr(config.finetune, name) for key, name in FINETUNE.items()}
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in values.items() if value is not None
    }


def read_settings(path: Path) -> dict[str, Any]:
    """Settings from a TOML or YAML file, by flat name; hyphens count as underscores.

    Raises:
        ConfigError: the file is missing or unreadable, or a name is unknown.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise ConfigError(f"cannot read the settings in {path}: {reason}") from error
    if path.suffix in (".yaml", ".yml"):
        found = _yaml(path, text)
    elif path.suffix == ".toml":
        try:
            found = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is no TOML: {error}") from error
    else:
        raise ConfigError(f"{path}: expected a .toml or .yaml file of settings")
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds {type(found).__name__}, expected a table of settings")
    values = {str(name).replace("-", "_"): value for name, value in found.items()}
    for name, value in values.items():
        if name not in SETTINGS:
            near = difflib.get_close_matches(name, SETTINGS, n=1)
            hint = f": did you mean '{near[0]}'?" if near else "; see bise-prune --help for what there is"
            raise ConfigError(f"{path}: unknown setting '{name}'{hint}")
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value)):
            raise ConfigError(f"{path}: '{name}' is nested; settings are names with a value or a list of values")
    return values


def write_settings(path: Path, config: RunConfig) -> None:
    """Write a configuration as TOML that :func:`read_settings` reads."""
    lines = [f"{name} = {_toml(value)}\n" for name, value in settings_of(config).items()]
    text = "# Settings of this run. Again, elsewhere: bise-prune --config config.toml --output FOLDER\n" + "".join(
        lines
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # of a path that is no text


def _yaml(path: Path, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

"""Settings by their flat names: merged from defaults, a file and the command line, and made a configuration of."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import FinetuneConfig, RunConfig, SearchConfig
from ..errors import ConfigError
from ..files import atomic_path
from .options import FINETUNE_PREFIX, SETTINGS

_TARGETS = ("target_sparsity", "target_flops", "target_latency", "targets", "plan")  # of which one is given
_SHARED = ("weighting", "rho", "select")  # which finetuning takes over from the search
_OF_OTHER_PLACES = ("output", "triton", "log")  # folders that a run writes to


def merged(given: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    """The settings of a command line over those of a file over the defaults.

    Args:
        given: what stands on the command line, by name.
        file: settings as TOML or YAML, if there is one.

    Raises:
        ConfigError: the file is missing, unreadable, or holds a wrong value.
    """
    from_file = {} if file is None else read_settings(file)
    if any(name in given for name in _TARGETS):  # one target takes the place of another
        from_file = {name: value for name, value in from_file.items() if name not in _TARGETS}
    defaults = {name: setting.default for name, setting in SETTINGS.items() if name not in _FINETUNE}
    return {**defaults, **from_file, **given}


_FINETUNE = tuple(name for name, setting in SETTINGS.items() if name.startswith(FINETUNE_PREFIX))


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """The configuration of settings by their flat names; what is missing has its default.

    Args:
        values: among :data:`bise_prune.app.options.SETTINGS`, and ``resume``; ``finetune`` is the number of epochs, 0
            for none.

    Raises:
        ConfigError: a value is out of range, or contradicts another.
    """
    epochs = values.get("finetune")
    unused = [name for name in _FINETUNE if values.get(name) not in (None, SETTINGS[name].default)]
    if unused and not epochs:
        raise ConfigError(f"{unused[0]} has no use without finetuning: give finetune, the number of epochs")
    search = SearchConfig(**_fields(values, SearchConfig))
    finetune = None
    if epochs:
        own = {SETTINGS[name].field: values[name] for name in _FINETUNE if values.get(name) is not None}
        shared = {name: getattr(search, name) for name in _SHARED if name != "rho" or "weighting" not in own}
        finetune = FinetuneConfig(epochs=epochs, **{**shared, **own})
    fields = _fields(values, RunConfig)
    if fields.get("bias_columns") is not None:
        fields["bias_columns"] = tuple(fields["bias_columns"])
    if "resume" in values:
        fields["resume"] = values["resume"]
    return RunConfig(**fields, search=search, finetune=finetune)


def _fields(values: Mapping[str, Any], config: type) -> dict[str, Any]:
    """Those of the values that are fields of a configuration."""
    return {name: values[name] for name, setting in SETTINGS.items() if setting.config is config and name in values}


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The inverse of :func:`run_config`, without what is None and without the folders that a run writes to."""
    parts = {RunConfig: config, SearchConfig: config.search, FinetuneConfig: config.finetune}
    values = {
        name: getattr(parts[setting.config], setting.field)
        for name, setting in SETTINGS.items()
        if name not in _OF_OTHER_PLACES and parts[setting.config] is not None
    }
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
    return {name: _read(path, name, value) for name, value in _known(path, found).items()}


def _known(path: Path, found: Mapping[Any, Any]) -> dict[str, Any]:
    values = {str(name).replace("-", "_"): value for name, value in found.items()}
    for name in values:
        if name not in SETTINGS:
            near = difflib.get_close_matches(name, SETTINGS, n=1)
            hint = f": did you mean '{near[0]}'?" if near else "; see bise-prune --help for what there is"
            raise ConfigError(f"{path}: unknown setting '{name}'{hint}")
    return values


def _read(path: Path, name: str, value: Any) -> Any:
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value)):
        raise ConfigError(f"{path}: '{name}' is nested; settings are names with a value or a list of values")
    reader = SETTINGS[name].reader
    try:
        return reader.from_value(value)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{path}: {name} = {value!r} {reader.refusal}") from error


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

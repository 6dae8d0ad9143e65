"""Settings by name: merged from defaults, settings file and command line, turned into a configuration, and written."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import STRONG, FinetuneConfig, RunConfig, SearchConfig
from ..errors import ConfigError
from .options import FINETUNE_PREFIX, SETTINGS

_TARGETS = ("target_sparsity", "target_flops", "target_latency", "targets", "plan")  # only one is given
_SHARED = ("weighting", "rho", "select")  # finetuning takes them over from the search
_OF_OTHER_PLACES = ("output", "triton", "log")  # places that a run writes to


def merged(given: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    """Merge settings: those of the command line before those of the file before the defaults.

    Args:
        given: settings on the command line, by name.
        file: settings file in TOML or YAML; None for none.

    Raises:
        ConfigError: the file is missing, unreadable, or holds a wrong value.
    """
    from_file = {} if file is None else read_settings(file)
    if any(name in given for name in _TARGETS):  # one target replaces another
        from_file = {name: value for name, value in from_file.items() if name not in _TARGETS}
    defaults = {name: setting.default for name, setting in SETTINGS.items() if name not in _FINETUNE}
    return {**defaults, **from_file, **given}


_FINETUNE = tuple(name for name, setting in SETTINGS.items() if name.startswith(FINETUNE_PREFIX))


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run from its settings by name; a setting that is missing gets its default.

    Args:
        values: settings by their name in :data:`bise_prune.app.options.SETTINGS`, and ``resume``; ``finetune`` is the
            number of epochs of finetuning, 0 for none.

    Raises:
        ConfigError: a value is out of range, or contradicts another one.
    """
    is_strong = values.get("tune") == "all"
    epochs = values.get("finetune")
    if is_strong and epochs == 0:
        raise ConfigError(
            f"tune 'all' finetunes, and finetune is 0: give the number of epochs, or leave it out for {STRONG.epochs}"
        )
    epochs = epochs or (STRONG.epochs if is_strong else 0)
    unused = [name for name in _FINETUNE if values.get(name) not in (None, SETTINGS[name].default)]
    if unused and not epochs:
        raise ConfigError(f"{unused[0]} has no use without finetuning: give finetune, the number of epochs")
    search = SearchConfig(**_fields(values, SearchConfig))
    finetune = None
    if epochs:
        own = {SETTINGS[name].field: values[name] for name in _FINETUNE if values.get(name) is not None}
        shared = {name: getattr(search, name) for name in _SHARED if name != "rho" or "weighting" not in own}
        base = STRONG if is_strong else FinetuneConfig()
        finetune = dataclasses.replace(base, epochs=epochs, **{**shared, **own})
    fields = _fields(values, RunConfig)
    if fields.get("bias_columns") is not None:
        fields["bias_columns"] = tuple(fields["bias_columns"])
    if "resume" in values:
        fields["resume"] = values["resume"]
    return RunConfig(**fields, search=search, finetune=finetune)


def _fields(values: Mapping[str, Any], config: type) -> dict[str, Any]:
    """Those values that belong to a configuration class, by the names of its fields."""
    return {
        setting.field: values[name] for name, setting in SETTINGS.items() if setting.config is config and name in values
    }


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The settings of a configuration by name, the inverse of :func:`run_config`.

    Settings that are None and the places that a run writes to are left out.
    """
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
    """Read settings from a TOML or YAML file, by name; hyphens in names count as underscores.

    Raises:
        ConfigError: the file is missing or unreadable, a name is unknown, or a value is wrong.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise OSError(0, "it is no file")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise ConfigError(f"cannot read the settings in {path}: {reason}") from error
    if path.suffix.lower() in (".yaml", ".yml"):
        found = _yaml(path, text)
    elif path.suffix.lower() == ".toml":
        try:
            found = tomllib.loads(text)
        except (RecursionError, ValueError) as error:  # also integers of thousands of digits
            raise ConfigError(f"{path} is no TOML: {error}") from error
    else:
        raise ConfigError(f"{path}: expected a .toml or .yaml file of settings")
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds {type(found).__name__}, expected a table of settings")
    return {name: _read(path, name, value) for name, value in _known(path, found).items()}


def _known(path: Path, found: Mapping[Any, Any]) -> dict[str, Any]:
    """The settings with underscores in their names; an unknown name is an error that suggests the nearest one."""
    values = {str(name).replace("-", "_"): value for name, value in found.items()}
    if len(values) < len(found):
        raise ConfigError(f"{path}: a setting stands there twice, with hyphens and with underscores")
    for name in values:
        if name not in SETTINGS:
            near = difflib.get_close_matches(name, SETTINGS, n=1)
            hint = f": did you mean '{near[0]}'?" if near else "; see bise-prune --help for what there is"
            raise ConfigError(f"{path}: unknown setting '{name}'{hint}")
    return values


def _read(path: Path, name: str, value: Any) -> Any:
    """The value of one setting in a file."""
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value)):
        raise ConfigError(f"{path}: '{name}' is nested; settings are names with a value or a list of values")
    reader = SETTINGS[name].reader
    try:
        return reader.from_value(value)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{path}: {name} = {value!r} {reader.refusal}") from error


def write_settings(path: Path, config: RunConfig) -> None:
    """Write the settings of a configuration as TOML, which :func:`read_settings` reads."""
    lines = [f"{name} = {_toml(value)}\n" for name, value in settings_of(config).items()]
    text = "# Settings of this run. Again, elsewhere: bise-prune --config config.toml --output FOLDER\n" + "".join(
        lines
    )
    from ..files import atomic_path  # not needed for --help

    with atomic_path(path) as temporary:
        temporary.write_text(
            text, encoding="utf-8", errors="backslashreplace"
        )  # a path may hold bytes that are no text


def _yaml(path: Path, text: str) -> Any:
    """The content of a YAML file."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a name that stands there twice, of which the last one would count."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value]
            if twice := [name for name in names if names.count(name) > 1]:
                raise yaml.YAMLError(f"'{twice[0]}' stands there twice")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader) or {}
    except (RecursionError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from error


def _toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

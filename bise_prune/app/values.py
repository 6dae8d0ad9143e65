"""Readers for the values of settings, from the text of the command line and from the values in a settings file."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

_LARGEST = 10**15  # what a setting counts


@dataclass(frozen=True)
class Reader:
    """Reads the values of one kind of setting.

    Attributes:
        refusal: end of the error message about a value that cannot be read; the value stands before it.
        metavar: placeholder for the value in the help; empty for a switch, which takes no value.
        from_text: function that reads the text of the command line; raises ValueError.
        from_value: function that reads the value in a TOML or YAML file; raises ValueError.
        choices: values that are allowed; empty if any may be given.
    """

    refusal: str
    metavar: str
    from_text: Callable[[str], Any]
    from_value: Callable[[Any], Any]
    choices: tuple[str, ...] = ()

    @property
    def is_switch(self) -> bool:
        """Whether the setting is on or off, so that its flag takes no value."""
        return not self.metavar


def reader_of(hint: Any) -> Reader:
    """The reader for a field of a configuration, chosen by the type of the field.

    >>> reader_of(float | Literal["auto"]).from_text("0.5"), reader_of(tuple[float, ...] | None).from_value([1, 2])
    (0.5, (1.0, 2.0))
    """
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not types.NoneType]
        words = tuple(word for part in parts if get_origin(part) is Literal for word in get_args(part))
        kinds = [part for part in parts if get_origin(part) is not Literal]
        reader = reader_of(kinds[0]) if kinds else _choice(words)
        return _or_word(reader, words[0]) if words and kinds else reader
    if get_origin(hint) is Literal:
        return _choice(get_args(hint))
    if get_origin(hint) is tuple:
        return _SEQUENCES[get_args(hint)[0]]
    return _SCALARS[hint]


def _choice(words: Sequence[str]) -> Reader:
    """A reader that accepts one of the given words."""

    def read(value: Any) -> str:
        """The word, if it is one of the choices."""
        if value not in words:
            raise ValueError(value)
        return str(value)

    return Reader(f"is none of {', '.join(words)}", "NAME", read, read, tuple(words))


def _or_word(reader: Reader, word: str) -> Reader:
    """A reader of numbers that also accepts one word, such as "auto"."""
    return Reader(
        f"is neither '{word}' nor {'an integer' if reader.metavar == 'N' else 'a number'}",
        f"{word}|{reader.metavar}",
        lambda text: word if text == word else reader.from_text(text),
        lambda value: word if value == word else reader.from_value(value),
    )


def _number(kind: type[int] | type[float], value: Any) -> Any:
    """A number from a text or from a number of the right type; raises ValueError for anything else."""
    if isinstance(value, str):
        return kind(value)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        raise ValueError(value)
    return kind(value)


def _integer(value: Any) -> int:
    """An integer from a text or an integer."""
    number = int(_number(int, value))
    if abs(number) > _LARGEST:
        raise ValueError(value)
    return number


def _float(value: Any) -> float:
    """A float from a text or a number."""
    return float(_number(float, value))


def _text(value: Any) -> str:
    """A text; numbers in a file are accepted as text, lists and tables are not."""
    if isinstance(value, (bool, list, dict)) or value is None or "\0" in str(value):
        raise ValueError(value)
    return str(value)


def _path(value: Any) -> Path:
    """A path, which is a text in a file as well."""
    if not isinstance(value, str) or not value:
        raise ValueError(value)
    return Path(_text(value))


def _switch(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


def _several(read: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    """A function that reads a list, or a text with commas between its parts."""

    def read_all(value: Any) -> tuple[Any, ...]:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        return tuple(read(part.strip() if isinstance(part, str) else part) for part in parts)

    return read_all


def _names(value: Any) -> tuple[str, ...]:
    """Names from a list or a text with commas; empty ones are dropped."""
    return tuple(name for name in _several(_text)(value) if name)


def _size(value: Any) -> tuple[int, ...]:
    """Height and width; a single number is both."""
    sizes = _several(_integer)(value)
    return sizes * 2 if len(sizes) == 1 else sizes


_SCALARS: dict[Any, Reader] = {
    bool: Reader("is neither true nor false", "", _switch, _switch),
    int: Reader(f"is no integer of at most {_LARGEST:,}", "N", _integer, _integer),
    float: Reader("is no number", "X", _float, _float),
    str: Reader("is no text", "TEXT", _text, _text),
    Path: Reader("is no path", "PATH", _path, _path),
}
_SEQUENCES: dict[Any, Reader] = {
    int: Reader("is no size such as 224 or 224,160", "N[,N]", _size, _size),
    float: Reader("is no list of numbers such as 0.3,0.5,0.7", "X,...", _several(_float), _several(_float)),
    str: Reader("is no list of names", "NAME,...", _names, _names),
}

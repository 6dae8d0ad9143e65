"""How the value of a setting is read: from the text of a command line, and from the value in a file."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True)
class Reader:
    """Reads the values of one kind of setting.

    Attributes:
        refusal: what is said of a value that cannot be read, after the value.
        metavar: what stands for a value in the help; empty where there is none to give.
        from_text: reads what the command line holds; raises ValueError.
        from_value: reads what a TOML or YAML file holds; raises ValueError.
        choices: the values that there are; empty for any.
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
    """The reader for a field of a configuration, by its type.

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
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(value)
        return str(value)

    return Reader(f"is none of {', '.join(words)}", "NAME", read, read, tuple(words))


def _or_word(reader: Reader, word: str) -> Reader:
    """A reader of numbers that takes a word, such as "auto", besides."""
    return Reader(
        f"is neither '{word}' nor {'an integer' if reader.metavar == 'N' else 'a number'}",
        f"{word}|{reader.metavar}",
        lambda text: word if text == word else reader.from_text(text),
        lambda value: word if value == word else reader.from_value(value),
    )


def _number(kind: type[int] | type[float], value: Any) -> Any:
    if isinstance(value, str):
        return kind(value)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        raise ValueError(value)
    return kind(value)


def _integer(value: Any) -> int:
    return int(_number(int, value))


def _float(value: Any) -> float:
    return float(_number(float, value))


def _text(value: Any) -> str:
    if isinstance(value, (bool, list, dict)) or value is None:
        raise ValueError(value)
    return str(value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


def _several(read: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Reads a list, or a text with commas between its parts."""

    def read_all(value: Any) -> tuple[Any, ...]:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        return tuple(read(part.strip() if isinstance(part, str) else part) for part in parts)

    return read_all


def _names(value: Any) -> tuple[str, ...]:
    return tuple(name for name in _several(_text)(value) if name)


def _size(value: Any) -> tuple[int, ...]:
    """Height and width, or one number for both."""
    sizes = _several(_integer)(value)
    return sizes * 2 if len(sizes) == 1 else sizes


_SCALARS: dict[Any, Reader] = {
    bool: Reader("is neither true nor false", "", _switch, _switch),
    int: Reader("is no integer", "N", _integer, _integer),
    float: Reader("is no number", "X", _float, _float),
    str: Reader("is no text", "TEXT", _text, _text),
    Path: Reader("is no path", "PATH", Path, lambda value: Path(_text(value))),
}
_SEQUENCES: dict[Any, Reader] = {
    int: Reader("is no size such as 224 or 224,160", "N[,N]", _size, _size),
    float: Reader("is no list of numbers such as 0.3,0.5,0.7", "X,...", _several(_float), _several(_float)),
    str: Reader("is no list of names", "NAME,...", _names, _names),
}

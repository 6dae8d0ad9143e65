"""Read columns of a table in a text file as text, and collect everything that is wrong with it."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from ..errors import DataError, counted

LINES, TABS = ".jsonl", ".tsv"
SUFFIXES = (".csv", TABS, LINES, ".csv.gz", ".tsv.gz", ".jsonl.gz")
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_EXCEL = "sep="  # first line of some files, in front of the separator
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # first bytes -> encoding
_FALLBACK = ("cp1252", "Windows-1252")
_LONGEST_HEADER, _LONGEST_FIELD = 2**20, 2**24  # characters
_CHUNK = 2**20  # characters that are looked at at a time


@dataclass
class Table:
    """Columns of a file as text, and the problems found in them.

    Attributes:
        path: the file.
        lines: per row the number of the line that it starts in, from 1, with the file's name if there are several
            files.
        columns: column name -> the text of each row.
        problems: what is wrong with the table, one sentence each.
        notes: how the file was read, if not as a CSV file with commas in UTF-8.
    """

    path: Path
    lines: list[str]
    columns: dict[str, list[str]]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def report(self, what: str, rows: Sequence[int], column: str | None = None) -> None:
        """Add a problem of some rows, if there are any.

        Args:
            what: what is wrong with the rows, as it follows "N rows" in a sentence.
            rows: indices of the rows; the message names the first ten by their lines.
            column: name of a column whose values are added to the message.
        """
        if rows:
            where = [self.lines[i] for i in rows[:10]]
            if column is not None:
                values = [self.columns[column][i][:40] for i in rows[:10]]
                where = [f"{line} ({value!r})" for line, value in zip(where, values, strict=True)]
            self.problems.append(_counted(what, where, len(rows)))


def is_table(path: Path) -> bool:
    """Whether a file has the name of a table that can be read."""
    return path.name.lower().endswith(SUFFIXES)


def stop_at_problems(where: object, problems: Sequence[str]) -> None:
    """Raise a DataError that lists the first ten problems, if there are any.

    Args:
        where: the file or folder, for the message.
        problems: one sentence each.

    Raises:
        DataError: there are problems.
    """
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise DataError(f"data in {where}: {'; '.join(problems[:10])}{more}")


def _counted(what: str, where: Sequence[str], count: int) -> str:
    """Describe a problem of ``count`` rows, the first of which are named in ``where``."""
    more = f" and {count - len(where)} more" if count > len(where) else ""
    return f"{counted(count, 'row')} {what}: line {', '.join(where)}{more}"


# -- the text of a file ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Dialect:
    """How a file is written.

    Attributes:
        encoding: Python's name of its encoding.
        separator: separator of its fields; "" for a file of JSON lines.
        has_first_line: whether the first line gives the separator, and the header follows.
        notes: sentences on what is unusual.
    """

    encoding: str
    separator: str
    has_first_line: bool
    notes: tuple[str, ...] = ()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A context in which whatever is wrong with a file is a DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"no file at {path}; expected a CSV file with a header") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _opened(path: Path, encoding: str) -> IO[str]:
    """Open a file, which may be compressed, as text."""
    if path.suffix.lower() == ".gz":
        return cast(IO[str], gzip.open(path, "rt", newline="", encoding=encoding))
    return path.open(newline="", encoding=encoding)


def _dialect_of(path: Path) -> _Dialect:
    """Find out the encoding and the separator of a file.

    Raises:
        DataError: the file is missing or unreadable, or in an encoding that is not known.
    """
    with _reading(path):
        encoding, notes = _encoding_of(path)
        with _opened(path, encoding) as file:
            header = file.readline(_LONGEST_HEADER)
    if "\0" in header:
        raise DataError(f"cannot read {path}: it holds zero bytes, so it is no text in UTF-8; save it as UTF-8")
    if path.name.lower().removesuffix(".gz").endswith(LINES):
        return _Dialect(encoding, "", False, notes)
    if header.startswith(_EXCEL) and len(header.strip("\r\n")) == len(_EXCEL) + 1:
        return _Dialect(encoding, header[len(_EXCEL)], True, notes)
    separator = _separator_of(header)
    if separator != ",":
        notes = (*notes, f"the fields of {path.name} are separated by a {_SEPARATORS[separator]}")
    return _Dialect(encoding, separator, False, notes)


def _encoding_of(path: Path) -> tuple[str, tuple[str, ...]]:
    """The encoding of a file, and notes on it."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rb") as file:
        start = file.read(3)
    if (marked := next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)) is not None:
        return marked, ()
    wrong = _undecodable(path, "utf-8")
    if wrong is None:
        return "utf-8", ()
    if _undecodable(path, _FALLBACK[0]) is not None:
        raise DataError(f"cannot read {path}: it is not in UTF-8 ({wrong}); save it as UTF-8")
    return _FALLBACK[0], (f"{path.name} is not in UTF-8 and was read as {_FALLBACK[1]}",)


def _undecodable(path: Path, encoding: str) -> str | None:
    """Why a file is not in an encoding; None if it is."""
    try:
        with _opened(path, encoding) as file:
            while file.read(_CHUNK):
                pass
    except UnicodeDecodeError as error:
        return f"byte {error.object[error.start]:#04x}"
    return None


def _rows(path: Path, dialect: _Dialect) -> Iterator[tuple[int, list[str]]]:
    """Yield the line that each row starts in, and the row's fields; the header comes first.

    Raises:
        DataError: the file is unreadable.
    """
    first = line = 1 + dialect.has_first_line
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        with _reading(path), _opened(path, dialect.encoding) as file:
            if not dialect.separator:
                yield from _json_rows(path, file)
                return
            if dialect.has_first_line:
                file.readline()
            reader = csv.reader(file, delimiter=dialect.separator, strict=True)
            for fields in reader:
                if fields:
                    yield line, fields
                line = first + reader.line_num
    except csv.Error as error:
        raise DataError(f"cannot read {path}: the row that starts in line {line}: {error}") from error
    finally:
        csv.field_size_limit(before)


def _separator_of(header: str) -> str:
    """The separator that divides a header into the most fields; a comma if there is none."""
    numbers = {}
    for separator in _SEPARATORS:
        try:
            numbers[separator] = len(next(csv.reader([header.rstrip("\r")], delimiter=separator), []))
        except csv.Error:
            numbers[separator] = 0
    return max(numbers, key=lambda separator: numbers[separator])  # of equal ones the first, the comma


def _json_rows(path: Path, file: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the fields of each row of a file of JSON objects, one per line; the header comes first."""
    found: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is no JSON object")
        except (RecursionError, ValueError) as error:
            raise DataError(f"cannot read {path}: line {number}: {str(error).splitlines()[0]}") from error
        found.append((number, row))
    names = list(dict.fromkeys(name for _, row in found for name in row))
    yield 1, names
    for number, row in found:
        yield number, [written(row.get(name)) for name in names]


def written(value: Any) -> str:
    """Convert a cell to the text that a CSV file would hold."""
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)


# -- its columns ----------------------------------------------------------------------------------


def read_header(path: Path) -> list[str]:
    """Read the column names of a table; see :data:`SUFFIXES` for its kinds.

    Raises:
        DataError: the file is missing or unreadable.
    """
    return next(_rows(path, _dialect_of(path)), (1, []))[1]


def read_table(path: Path, names: Sequence[str]) -> Table:
    """Read some columns of a table as text.

    The encoding (UTF-8, UTF-16 with its mark, otherwise Windows-1252) and the separator (comma, semicolon, tab or bar)
    are found out. Rows with more or fewer fields than the header are left out and added to the table's problems.

    Args:
        path: a ``.csv``, ``.tsv`` or ``.jsonl`` file, perhaps with ``.gz``, with a header or names in every line.
        names: names of the columns to read.

    Raises:
        DataError: the file is unreadable or has no rows, or a column is missing or there twice.
    """
    dialect = _dialect_of(path)
    rows = _rows(path, dialect)
    _, header = next(rows, (1, []))
    unclear = [name for name in dict.fromkeys(names) if header.count(name) != 1]
    if unclear:
        missing = ", ".join(repr(name) for name in unclear)
        raise DataError(f"{path} must have one column each of {missing}; it has {', '.join(header) or 'none'}")
    places = {name: header.index(name) for name in names}
    table, ragged = Table(path, [], {name: [] for name in names}, notes=list(dialect.notes)), []
    for line, fields in rows:
        if len(fields) != len(header):
            ragged.append(line)
            continue
        table.lines.append(str(line))
        for name, place in places.items():
            table.columns[name].append(fields[place])
    if ragged:
        what = "with another number of fields than the header"
        table.problems.append(_counted(what, [str(line) for line in ragged[:10]], len(ragged)))
    if not table.lines:
        stop_at_problems(path, table.problems)
        raise DataError(f"{path} has no rows")
    return table

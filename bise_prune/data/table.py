"""Read columns of a CSV file as text, and collect everything that is wrong with it."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError, counted


@dataclass
class Table:
    """Columns of a file as text, and the problems found in them.

    Attributes:
        path: the file.
        lines: per row the number of the line that it starts in, from 1, with the file's name if there are several
            files.
        columns: column name -> the text of each row.
        problems: what is wrong with the table, one sentence each.
    """

    path: Path
    lines: list[str]
    columns: dict[str, list[str]]
    problems: list[str] = field(default_factory=list)

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


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line that each row starts in, and the row's fields; the header comes first."""
    line = 1
    try:
        with (
            gzip.open(path, "rt", newline="", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(newline="", encoding="utf-8-sig")
        ) as file:
            reader = csv.reader(file, strict=True)
            for fields in reader:
                if fields:
                    yield line, fields
                line = reader.line_num + 1
    except FileNotFoundError as error:
        raise DataError(f"no file at {path}; expected a CSV file with a header") from error
    except csv.Error as error:
        raise DataError(f"cannot read {path}: the row that starts in line {line}: {error}") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def read_header(path: Path) -> list[str]:
    """Read the column names of a ``.csv`` or ``.csv.gz`` file.

    Raises:
        DataError: the file is missing or unreadable.
    """
    return next(_rows(path), (1, []))[1]


def read_table(path: Path, names: Sequence[str]) -> Table:
    """Read some columns of a CSV file as text.

    Rows with more or fewer fields than the header are left out and added to the table's problems.

    Args:
        path: a ``.csv`` or ``.csv.gz`` file in UTF-8, with a header.
        names: names of the columns to read.

    Raises:
        DataError: the file is unreadable or has no rows, or a column is missing or there twice.
    """
    rows = _rows(path)
    _, header = next(rows, (1, []))
    unclear = [name for name in dict.fromkeys(names) if header.count(name) != 1]
    if unclear:
        missing = ", ".join(repr(name) for name in unclear)
        raise DataError(f"{path} must have one column each of {missing}; it has {', '.join(header) or 'none'}")
    places = {name: header.index(name) for name in names}
    table, ragged = Table(path, [], {name: [] for name in names}), []
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

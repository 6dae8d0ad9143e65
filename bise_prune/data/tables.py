"""The tables of a data set: one file, one for each split, or several that are joined by a column."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .columns import ALIASES, Columns
from .labels import split_folders, split_of
from .table import SUFFIXES, Table, is_table, read_header, read_table

_METADATA = "metadata"


@dataclass(frozen=True)
class Tables:
    """The tables of a data set.

    Attributes:
        files: the files, each with its split; "" if a column says it.
        key: column by which several files without a split are joined; "" if their rows follow each other.
    """

    files: Sequence[tuple[Path, str]]
    key: str = ""

    @property
    def first(self) -> Path:
        """The first file, for messages."""
        return self.files[0][0]

    def header(self) -> list[str]:
        """Names of all columns."""
        headers = [read_header(path) for path, _ in self.files]
        return list(dict.fromkeys(name for header in headers for name in header)) if self.key else headers[0]

    def read(self, names: Sequence[str]) -> tuple[Table, list[Path], list[str]]:
        """Read some columns.

        Returns:
            One table; the folder of the file that each row is from; and the split of each row, empty if the files do
            not say it.

        Raises:
            DataError: a file is unreadable, or a column is missing.
        """
        if self.key:
            table = self._joined(names)
            return table, [self.first.parent] * len(table.lines), []
        whole = Table(self.first, [], {name: [] for name in names})
        folders, parts = list[Path](), list[str]()
        for path, part in self.files:
            table = read_table(path, names)
            where = f"{path.parent.name}/{path.name}" if path.stem == _METADATA else path.name
            whole.lines += [f"{line} of {where}" if part else line for line in table.lines]
            for name, values in whole.columns.items():
                values += table.columns[name]
            whole.problems += table.problems
            whole.notes += table.notes
            folders += [path.parent] * len(table.lines)
            parts += [part] * len(table.lines) if part else []
        if parts and "train" not in parts:
            whole.problems.append("no row of the training split")
        return whole, folders, parts

    def _joined(self, names: Sequence[str]) -> Table:
        """Read columns of several files whose rows belong together by the key; those of the first file count."""
        headers = {path: read_header(path) for path, _ in self.files}
        main = next(path for path in headers if any(name in headers[path] for name in names if name != self.key))
        whole = read_table(main, list(dict.fromkeys([self.key, *(n for n in names if n in headers[main])])))
        for path, header in headers.items():
            wanted = [name for name in names if name in header and name not in whole.columns]
            if path == main or not wanted:
                continue
            other = read_table(path, [self.key, *wanted])
            rows = {value.strip(): i for i, value in enumerate(other.columns[self.key])}
            if len(rows) < len(other.lines):
                raise DataError(f"{path} is to be joined by '{self.key}', whose values occur in it more than once")
            keys = [value.strip() for value in whole.columns[self.key]]
            whole.report(f"whose '{self.key}' is not in {path.name}", [i for i, k in enumerate(keys) if k not in rows])
            for name in wanted:
                whole.columns[name] = [other.columns[name][rows[key]] if key in rows else "" for key in keys]
            whole.problems += other.problems
            whole.notes += [*other.notes, f"{main.name} and {path.name} are joined by '{self.key}'"]
        return whole


def tables_in(root: Path, columns: Columns, content: str) -> Tables | None:
    """The tables of a folder; None if there are none.

    They are ``metadata.csv`` (or ``.tsv``, ``.jsonl``); one in each of the folders ``train``, ``val`` and ``test``; a
    single table of another name, or the single one with the usual columns; one for each split, whose names say which
    (``train.csv``, ``labels_val.csv``); or several with a column in common, by which they are joined.

    Args:
        root: the folder.
        columns: names of columns that were given.
        content: "file" or "text": what each row has beside its labels.

    Raises:
        DataError: there are several tables, and nothing says how they belong together.
    """
    if (metadata := metadata_tables(root)) is not None:
        return metadata
    files = sorted(path for path in root.iterdir() if is_table(path) and path.is_file() and path.name[0] != ".")
    if len(files) < 2:
        return Tables([(files[0], "")]) if files else None
    named = [(path, part) for path in files if (part := _split_in(path))]
    if "train" in (part for _, part in named):
        return Tables(sorted(named, key=lambda pair: ("train", "val", "test").index(pair[1])))
    headers = {path: read_header(path) for path in files}
    fitting = [path for path in files if _fits(headers[path], columns, content)]
    if len(fitting) < 2 and (key := _common_key(headers, fitting, columns, content)):
        return Tables([(path, "") for path in files if key in headers[path]], key)
    if len(fitting) == 1:
        return Tables([(fitting[0], "")])
    if not fitting and content == "file" and any(path.is_dir() for path in root.iterdir()):
        return None  # they may lie beside folders of classes
    raise DataError(
        f"{root} holds {len(files)} tables ({', '.join(path.name for path in files[:5])}): name one of them as the "
        "data, or call them train, val and test, or give all of them a column in common, by which they are joined"
    )


def metadata_tables(root: Path) -> Tables | None:
    """The table called "metadata" in a folder, or those in its folders of the splits; None if there are none."""
    if own := _metadata_in(root):
        return Tables([(own, "")])
    of_splits = [(found, part) for folder, part in split_folders(root) if (found := _metadata_in(folder))]
    return Tables(of_splits) if of_splits else None


def _metadata_in(folder: Path) -> Path | None:
    """The table called "metadata" in a folder."""
    found = sorted(path for path in folder.glob(f"{_METADATA}.*") if is_table(path) and path.is_file())
    return found[0] if found else None


def _split_in(path: Path) -> str:
    """The split that the name of a table says, such as "train" for ``labels_train.csv``; "" if it says none or two."""
    name = path.name.lower()
    stem = name.removesuffix(max((end for end in SUFFIXES if name.endswith(end)), key=len))
    words = re.split(r"[-_. ]", stem)
    found = {part for word in words if not word.isdigit() and (part := split_of(word))}
    return found.pop() if len(found) == 1 else ""


def _fits(header: Sequence[str], columns: Columns, content: str) -> bool:
    """Whether a table has a column of files or texts and one of labels, by the given or the usual names."""
    names = {name.strip().lower() for name in header}
    given = {"file": columns.file, "text": columns.text, "label": columns.label}
    return all(
        given[what] in header if given[what] is not None else bool(names.intersection(ALIASES[what]))
        for what in (content, "label")
    )


def _common_key(
    headers: Mapping[Path, Sequence[str]], fitting: Sequence[Path], columns: Columns, content: str
) -> str:  # fmt: skip
    """The column by which tables are joined: the one of the files or texts, or else one that all have in front.

    Args:
        headers: column names of each table.
        fitting: the table that has files or texts and labels, if one has; others need only share its column.
        columns: names of columns that were given.
        content: "file" or "text".
    """
    given = columns.file if content == "file" else columns.text
    first = fitting[0] if fitting else next(iter(headers))
    wanted = [name for name in headers[first] if name == given or name.strip().lower() in ALIASES[content]]
    if (fitting and given is None) or given in headers[first]:
        key = given or wanted[0]
        return key if sum(key in header for header in headers.values()) > 1 else ""
    common = [name for name in headers[first] if all(header[:1] == [name] for header in headers.values())]
    return (common or [""])[0] if given is None else ""

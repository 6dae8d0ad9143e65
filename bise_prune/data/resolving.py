"""Find the files that a table names, also where the table was made for another folder or another system."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from .formats import image_suffixes, is_image


def resolved(root: Path, folders: Sequence[Path], names: Sequence[str]) -> tuple[list[Path], list[str], list[str]]:
    """Find files by their names in a table.

    A name that is not there as it stands is looked for below ``root``: in other folders, with backslashes for slashes,
    in upper or lower case, and without its ending. It is found if a single file fits that no other row names.

    Args:
        root: folder below which files are looked for.
        folders: per name, the folder that it is relative to.
        names: the names.

    Returns:
        A path per name, as it stands in the table if no file or more than one fits; notes; and problems.
    """
    files = [folder / name for folder, name in zip(folders, names, strict=True)]
    missing = missing_files(files)
    if not missing:
        return files, [], []
    present, taken = _files_below(root), set(files) - {files[i] for i in missing}
    found, unclear = list[int](), list[int]()
    for i in missing if present else ():
        fitting = [file for file in _fitting(names[i], present) if file not in taken]
        if len(fitting) == 1:
            files[i] = fitting[0]
            found.append(i)
        elif fitting:
            unclear.append(i)
    notes, problems = [], []
    if found:
        one = found[0]
        notes.append(
            f"{len(found):,} of {len(files):,} files were found under another path than the table's, such as "
            f"'{names[one]}' as {os.path.relpath(files[one], root)}"
        )
    if unclear:
        problems.append(
            f"{len(unclear):,} files are not there as the table names them, and several fit, first "
            f"'{names[unclear[0]]}'"
        )
    return files, notes, problems


def missing_files(files: Sequence[Path]) -> list[int]:
    """Indices of the files that are not there; every folder is listed once, however many files of it are asked for."""
    listed: dict[str, set[str]] = {}
    missing = []
    for i, file in enumerate(files):
        folder, _, name = str(file).rpartition(os.sep)
        if folder not in listed:
            listed[folder] = _names_in(folder or os.sep)
        if name not in listed[folder]:
            missing.append(i)
    return missing


def _names_in(folder: str) -> set[str]:
    """Names of what a folder holds; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (OSError, ValueError):  # ValueError: a NUL in its name
        return set()


def _files_below(root: Path) -> dict[str, list[tuple[list[str], Path]]]:
    """Name without ending, in lower case -> the parts of the paths of image files with this name, and these files."""
    found = defaultdict(list)
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            if is_image(path):
                found[path.stem.lower()].append(([part.lower() for part in path.relative_to(root).parts], path))
    return found


def _fitting(name: str, present: dict[str, list[tuple[list[str], Path]]]) -> Iterable[Path]:
    """The files that a name may stand for: those that agree with it in the most folders."""
    *folders, last = name.replace("\\", "/").lower().split("/")
    stem, dot, ending = last.rpartition(".")
    has_ending = dot + ending in image_suffixes()
    found = present.get(stem if has_ending else last, ())
    parts = [part for part in folders if part not in ("", ".")]
    fitting = [
        (_common_end(parts, others[:-1]), file) for others, file in found if not has_ending or others[-1] == last
    ]
    most = max((common for common, _ in fitting), default=0)
    return [file for common, file in fitting if common == most]


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    """Number of equal parts at the end of two paths."""
    common = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        common += 1
    return common

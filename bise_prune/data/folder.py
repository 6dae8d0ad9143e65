"""Load a user's folder of images with labels, in any of the usual layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import DataError
from .arrays import is_array_folder, load_arrays
from .columns import Chosen, Columns, read_labels, read_splits, split_folders
from .images import Listing, splits_of
from .loader import DataSplits
from .table import Table, read_header, read_table

_METADATA = "metadata.csv"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
_ALIGNED, _CONFLICTING = "align", "conflict"
LAYOUTS = (
    "a metadata.csv (label, bias, split, file), train/, val/ and test/ with one each, images.npy with attrs.npy, "
    "align/ and conflict/ folders, parquet files, or a folder of images per class"
)


def load_folder(
    root: Path,
    preprocessing: Mapping[str, Any],
    columns: Columns | None = None,
    classes: Sequence[str] = (),
    skip_bad: bool = False,
) -> DataSplits:
    """Read a folder of images; its layout is recognised.

    - ``metadata.csv``, or a single CSV file of another name: one row per image with the columns label, split (train,
      val, test or 0, 1, 2), file (relative to the folder) and bias; other usual names are recognised as well. Several
      biases are columns "bias_..."; without a bias column the bias labels are unknown. Labels are integers from 0, or
      names. The file may also lie in each of the folders ``train``, ``val`` and ``test``; then it needs no split
      column.
    - ``images.npy`` and ``attrs.npy``, see :func:`bise_prune.data.arrays.load_arrays`.
    - folders ``align`` and ``conflict``: class and bias label are the last two fields of a file's name, separated by
      "_"; validation and test images are in the folders ``valid`` and ``test`` beside these or one folder further up.
    - one folder per class, optionally in folders ``train``, ``val`` and ``test``: there are no bias labels.

    Before anything else happens, all rows and files are checked, and every image is decoded once into a temporary
    file-backed array. Data without splits are split at random (see :func:`bise_prune.data.images.splits_of`).

    Args:
        root: the folder, or a CSV file in it.
        preprocessing: ``mean``, ``std`` and ``size``; see :func:`bise_prune.data.images.splits_of`.
        columns: names of columns, for CSV files, or their numbers, for arrays.
        classes: class names of the checkpoint, whose order numbers the classes; alphabetical order if there are none.
        skip_bad: whether to continue without images that cannot be read.

    Raises:
        DataError: the folder cannot be used; the message lists the first ten problems.
    """
    columns = columns or Columns()
    if root.is_file():
        listing = _from_tables(root.parent, [(root, "")], columns, classes)
    elif (root / _METADATA).is_file():
        listing = _from_tables(root, [(root / _METADATA, "")], columns, classes)
    elif tables := [
        (folder / _METADATA, part) for folder, part in split_folders(root) if (folder / _METADATA).is_file()
    ]:
        listing = _from_tables(root, tables, columns, classes)
    elif is_array_folder(root):
        return load_arrays(root, preprocessing, columns)
    elif (root / _ALIGNED).is_dir() and (root / _CONFLICTING).is_dir():
        listing = _from_names(root, classes)
    elif len(found := sorted(root.glob("*.csv"))) == 1:
        listing = _from_tables(root, [(found[0], "")], columns, classes)
    else:
        listing = _from_classes(root, classes)
    return splits_of(listing, preprocessing, skip_bad)


def _subfolders(root: Path) -> list[Path]:
    """All folders in ``root``, sorted by name, without hidden ones."""
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    """All image files in a folder and its subfolders, sorted by path."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())


def _from_tables(root: Path, tables: Sequence[tuple[Path, str]], columns: Columns, classes: Sequence[str]) -> Listing:
    """List the images of one or several CSV files, each given with its split ("" if a column says it)."""
    path = tables[0][0]
    chosen = columns.chosen(read_header(path), path, "file")
    whole, files, fixed = Table(path, [], {name: [] for name in chosen.names}), list[Path](), list[str]()
    for path, part in tables:
        table = read_table(path, chosen.names)
        whole.lines += [f"{line} of {path.parent.name}/{path.name}" if part else line for line in table.lines]
        for name, values in whole.columns.items():
            values += table.columns[name]
        whole.problems += table.problems
        files += [path.parent / name for name in table.columns[chosen.content]]
        fixed += [part] * len(table.lines)
    parts = fixed if fixed[0] else read_splits(whole, chosen.split) if chosen.split else []
    labels = read_labels(whole, chosen, classes, parts)
    whole.report(
        f"without a value in '{chosen.content}'", [i for i, n in enumerate(whole.columns[chosen.content]) if not n]
    )
    seen: dict[Path, int] = {}
    again = [i for i, file in enumerate(files) if seen.setdefault(file, i) != i]
    whole.report("with a file that another row lists, too", again, chosen.content)
    apart = sum(bool(parts) and parts[i] != parts[seen[files[i]]] for i in again)
    if apart:
        whole.problems.append(f"{apart} of these files are in more than one split")
    if fixed[0] and "train" not in fixed:
        whole.problems.append("no row of the training split")
    names = [name or "a row without a file" for name in whole.columns[chosen.content]]
    notes = [f"columns: {chosen}", *labels.notes]
    if not chosen.biases:
        notes.append(f"no column of bias labels among {', '.join(read_header(path))}")
    return Listing(
        root, files, names, labels.target, labels.bias, parts, labels.classes, notes, whole.problems,
        bias_values=labels.bias_values, bias_names=labels.bias_names,
    )  # fmt: skip


def _from_names(root: Path, classes: Sequence[str]) -> Listing:
    """List files named ``..._LABEL_BIAS`` in align/ and conflict/, and in valid/ and test/ beside or above these."""
    files = [(path, "train") for name in (_ALIGNED, _CONFLICTING) for path in _images(root / name)]
    places = {
        part: folder for parent in (root.parent, root) for folder, part in split_folders(parent) if part != "train"
    }
    files += [(path, part) for part, folder in places.items() for path in _images(folder)]
    table = Table(root, [str(path.relative_to(root.parent)) for path, _ in files], {"label": [], "bias": []})
    unnamed = []
    for path, _ in files:
        fields = path.stem.split("_")
        fit = len(fields) > 2 and fields[-1].isdigit() and fields[-2].isdigit()
        unnamed += [] if fit else [path.name]
        table.columns["label"].append(fields[-2] if fit else "0")
        table.columns["bias"].append(fields[-1] if fit else "0")
    if unnamed:
        table.problems.append(
            f"{len(unnamed)} files are not named ID_LABEL_BIAS with numbers for both, first {', '.join(unnamed[:10])}"
        )
    if not files:
        raise DataError(f"no images in {root / _ALIGNED} and {root / _CONFLICTING}")
    labels = read_labels(table, Chosen("file", "label", ("bias",), None), classes)
    notes = ["label and bias are the last two fields of the files' names"]
    return Listing(
        root, [path for path, _ in files], table.lines, labels.target, labels.bias, [part for _, part in files],
        labels.classes, notes, table.problems,
    )  # fmt: skip


def _from_classes(root: Path, classes: Sequence[str]) -> Listing:
    """List the images of one folder per class, optionally in train/, val/ and test/."""
    places = split_folders(root)
    if not places or len(places) < len(_subfolders(root)):  # a class may be called "train"
        places = [(root, "")]
    files = [
        (path, folder.name, part) for place, part in places for folder in _subfolders(place) for path in _images(folder)
    ]
    if not files:
        raise DataError(f"no data in {root}: expected {LAYOUTS}")
    found = sorted({name for _, name, _ in files})
    numbered = {name: i for i, name in enumerate(classes or found)}
    foreign = [name for name in found if name not in numbered]
    problems = []
    if foreign:
        problems.append(
            f"folders {', '.join(foreign[:10])} are no classes of the checkpoint ({', '.join(classes[:10])})"
        )
    parts = [part for _, _, part in files] if places[0][1] else []
    if parts and "train" not in parts:
        problems.append("no image of the training split")
    target = torch.tensor([numbered.get(name, 0) for _, name, _ in files])
    return Listing(
        root, [path for path, _, _ in files], [str(path.relative_to(root)) for path, _, _ in files], target,
        torch.zeros(len(files), 0, dtype=torch.long), parts, list(classes or found),
        ["a folder per class, so no bias labels"], problems, without_bias=True,
    )  # fmt: skip

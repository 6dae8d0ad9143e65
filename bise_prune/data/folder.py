"""Load a user's folder of images with labels, in any of the usual layouts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import DataError, counted
from .arrays import is_array_folder, load_arrays
from .celeba import attribute_table, has_attribute_lists
from .columns import Chosen, Columns
from .formats import is_image
from .images import Listing, splits_of
from .labels import read_labels, read_splits, split_folders
from .loader import DataSplits
from .resolving import resolved
from .table import Table
from .tables import Tables, metadata_tables, tables_in

_ALIGNED, _CONFLICTING = "align", "conflict"
LAYOUTS = (
    "a metadata.csv (label, bias, split, file), train/, val/ and test/ with one each, train.csv, val.csv and test.csv, "
    "images.npy with attrs.npy, align/ and conflict/ folders, parquet files, or a folder of images per class"
)


def load_folder(
    root: Path,
    preprocessing: Mapping[str, Any],
    columns: Columns | None = None,
    classes: Sequence[str] = (),
    skip_bad: bool = False,
    image_folder: Path | None = None,
) -> DataSplits:
    """Read a folder of images; its layout is recognised.

    - ``metadata.csv`` (or another table, see :func:`bise_prune.data.tables.tables_in`): one row per image with the
      columns label, split (train, val, test or 0, 1, 2), file (relative to the folder) and bias; other usual names are
      recognised as well. Several biases are columns "bias_..."; without a bias column the bias labels are unknown.
      Labels are integers from 0, or names. Without a split column, tables of the splits say it.
    - ``images.npy`` and ``attrs.npy``, see :func:`bise_prune.data.arrays.load_arrays`.
    - folders ``align`` and ``conflict``: class and bias label are the last two fields of a file's name, separated by
      "_"; validation and test images are in the folders ``valid`` and ``test`` beside these or one folder further up.
    - CelebA's lists of attributes and of splits, as they are distributed; label and bias are any two attributes.
    - one folder per class, optionally in folders ``train``, ``val`` and ``test``: there are no bias labels.

    Before anything else happens, all rows and files are checked, and every image is decoded once into a temporary
    file-backed array. Data without splits are split at random (see :func:`bise_prune.data.images.splits_of`).

    Args:
        root: the folder, or a table in it.
        preprocessing: ``mean``, ``std``, ``size``, ``crop`` and ``channels``; see
            :func:`bise_prune.data.images.splits_of`.
        columns: names of columns, for tables, or their numbers, for arrays.
        classes: class names of the checkpoint, whose order numbers the classes; alphabetical order if there are none.
        skip_bad: whether to continue without images that cannot be read.
        image_folder: folder that the files in a table are relative to; None = the table's own.

    Raises:
        DataError: the folder cannot be used; the message lists the first ten problems.
    """
    columns = columns or Columns()
    if root.is_file():
        listing = _from_tables(root.parent, Tables([(root, "")]), columns, classes, image_folder)
    elif (tables := metadata_tables(root)) is not None:
        listing = _from_tables(root, tables, columns, classes, image_folder)
    elif is_array_folder(root):
        return load_arrays(root, preprocessing, columns)
    elif (root / _ALIGNED).is_dir() and (root / _CONFLICTING).is_dir():
        listing = _from_names(root, classes)
    elif has_attribute_lists(root):
        listing = _from_attributes(root, columns, classes, image_folder)
    elif (tables := tables_in(root, columns, "file")) is not None:
        listing = _from_tables(root, tables, columns, classes, image_folder)
    else:
        listing = _from_classes(root, classes)
    return splits_of(listing, preprocessing, skip_bad)


def _subfolders(root: Path) -> list[Path]:
    """All folders in ``root``, sorted by name, without hidden ones."""
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    """All image files in a folder and its subfolders, sorted by path."""
    return sorted(path for path in _below(folder) if is_image(path) and path.is_file())


def _below(folder: Path) -> Iterator[Path]:
    """All but folders that lies in a folder and its subfolders, without hidden ones such as ``.ipynb_checkpoints``."""
    for place, folders, names in os.walk(folder):
        yield from (Path(place) / name for name in names)
        yield from (Path(place) / name for name in folders if (Path(place) / name).is_symlink())
        folders[:] = [name for name in folders if not name.startswith(".")]


def _left_out(folders: Sequence[Path]) -> list[str]:
    """Notes on the files in folders that are not taken for images."""
    below = [path for folder in folders for path in _below(folder)]
    files = [path for path in below if path.is_file() and not is_image(path)]
    hidden = sum(path.name.startswith(".") for path in files)
    endings = Counter(path.suffix.lower() or "no ending" for path in files if not path.name.startswith("."))
    notes = [f"{counted(hidden, 'hidden file')} (named ._... or .…) left out"] if hidden else []
    if odd := [path for path in below if not path.is_file()]:
        named = ", ".join(path.name for path in odd[:5])
        notes.append(
            f"{counted(len(odd), 'entry')} left out, links to folders or to nothing, pipes or devices ({named})"
        )
    if endings:
        most = sorted(endings.items(), key=lambda item: (-item[1], item[0]))[:5]
        listed = ", ".join(f"{count:,} {ending}" for ending, count in most)
        notes.append(f"{counted(endings.total(), 'file')} left out, by the ending no images ({listed})")
    return notes


def _from_tables(
    root: Path, tables: Tables, columns: Columns, classes: Sequence[str], image_folder: Path | None
) -> Listing:
    """List the images of tables."""
    header = tables.header()
    chosen = columns.chosen(header, tables.first, "file")
    table, folders, parts = tables.read(chosen.names)
    return _listed(root, table, chosen, folders, parts, header, classes, image_folder)


def _from_attributes(root: Path, columns: Columns, classes: Sequence[str], image_folder: Path | None) -> Listing:
    """List the images of CelebA's lists, by the attributes that the columns name."""
    table, images = attribute_table(root)
    chosen = columns.chosen(list(table.columns), table.path, "file")
    return _listed(
        root, table, chosen, [images] * len(table.lines), [], list(table.columns), classes, image_folder
    )  # fmt: skip


def _listed(
    root: Path, table: Table, chosen: Chosen, folders: Sequence[Path], parts: Sequence[str], header: Sequence[str],
    classes: Sequence[str], image_folder: Path | None,
) -> Listing:  # fmt: skip
    """List the images of a table whose rows are relative to given folders."""
    parts = parts or (read_splits(table, chosen.split) if chosen.split else [])
    labels = read_labels(table, chosen, classes, parts)
    names = table.columns[chosen.content]
    table.report(f"without a value in '{chosen.content}'", [i for i, name in enumerate(names) if not name])
    if image_folder is not None:
        folders = [image_folder] * len(names)
    files, found, problems = resolved(root if image_folder is None else image_folder, folders, names)
    table.problems += problems
    seen: dict[Path, int] = {}
    again = [i for i, file in enumerate(files) if seen.setdefault(file, i) != i]
    table.report("with a file that another row lists, too", again, chosen.content)
    apart = sum(bool(parts) and parts[i] != parts[seen[files[i]]] for i in again)
    if apart:
        table.problems.append(f"{apart} of these files are in more than one split")
    notes = [f"columns: {chosen}", *table.notes, *labels.notes, *found]
    if not chosen.biases:
        notes.append(f"no column of bias labels among {', '.join(header)}")
    return Listing(
        root, files, [name or "a row without a file" for name in names], labels.target, labels.bias, parts,
        labels.classes, notes, table.problems, bias_values=labels.bias_values, bias_names=labels.bias_names,
    )  # fmt: skip


def _from_names(root: Path, classes: Sequence[str]) -> Listing:
    """List files named ``..._LABEL_BIAS`` in align/ and conflict/, and in valid/ and test/ beside or above these."""
    places = {
        part: folder for parent in (root.parent, root) for folder, part in split_folders(parent) if part != "train"
    }
    folders = [(root / name, "train") for name in (_ALIGNED, _CONFLICTING)]
    folders += [(folder, part) for part, folder in places.items()]
    files = [(path, part) for folder, part in folders for path in _images(folder)]
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
            f"{counted(len(unnamed), 'file')} not named ID_LABEL_BIAS with numbers for both, first "
            f"{', '.join(unnamed[:10])}"
        )
    if not files:
        raise DataError(f"no images in {root / _ALIGNED} and {root / _CONFLICTING}")
    labels = read_labels(table, Chosen("file", "label", ("bias",), None), classes)
    notes = ["label and bias are the last two fields of the files' names", *_left_out([f for f, _ in folders])]
    return Listing(
        root, [path for path, _ in files], table.lines, labels.target, labels.bias, [part for _, part in files],
        labels.classes, notes, table.problems,
    )  # fmt: skip


def _from_classes(root: Path, classes: Sequence[str]) -> Listing:
    """List the images of one folder per class, optionally in train/, val/ and test/.

    Folders called like splits are splits if the one of the training split holds a folder per class; whatever lies
    beside them is then left out. Otherwise they are classes.
    """
    places = [(folder, part) for folder, part in split_folders(root) if any(map(_images, _subfolders(folder)))]
    beside = [folder.name for folder in _subfolders(root) if folder not in [place for place, _ in places]]
    if "train" not in (part for _, part in places):
        places, beside = [(root, "")], []
    folders = [(folder, part) for place, part in places for folder in _subfolders(place)]
    files = [(path, folder.name, part) for folder, part in folders for path in _images(folder)]
    notes = ["a folder per class, so no bias labels", *_left_out([folder for folder, _ in folders])]
    if beside:
        notes.append(f"beside the folders of the splits, {', '.join(beside[:10])} left out")
    if not files:
        raise DataError(f"no data in {root}: expected {LAYOUTS}" + "".join(f"; {note}" for note in notes[1:]))
    found = sorted({name for _, name, _ in files})
    numbered = {name: i for i, name in enumerate(classes or found)}
    foreign = [name for name in found if name not in numbered]
    problems = []
    if foreign:
        problems.append(
            f"folders {', '.join(foreign[:10])} are no classes of the checkpoint ({', '.join(classes[:10])})"
        )
    parts = [part for _, _, part in files] if places[0][1] else []
    target = torch.tensor([numbered.get(name, 0) for _, name, _ in files])
    return Listing(
        root, [path for path, _, _ in files], [str(path.relative_to(root)) for path, _, _ in files], target,
        torch.zeros(len(files), 0, dtype=torch.long), parts, list(classes or found), notes, problems,
        without_bias=True,
    )  # fmt: skip

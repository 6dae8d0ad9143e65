"""Load CIFAR-10 (Krizhevsky, 2009) from its Python batches, or from zip files of lossless WebP sheets."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import DataError
from ..files import BoundedUnpickler

CLASSES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZE = 32
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, OverflowError)  # raised by malformed pickles
_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}


def load_cifar10(root: Path, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Load the images and labels of one split of CIFAR-10.

    Samples are in the order of the files: batches 1 to 5, or the sheets of the zip files in alphabetical order. The two
    formats hold the same images in different orders.

    Args:
        root: folder with the files of ``cifar-10-batches-py`` (or with that folder), or with ``cifar10_train*.zip`` and
            ``cifar10_test*.zip``. A sheet is an RGB image of 32x32 tiles, row by row, sorted by class, with equally
            many tiles of each class.
        split: "train" or "test".

    Returns:
        Images, shape (N, 3, 32, 32), uint8, and class labels, shape (N,), int64, numbered as in ``CLASSES``.

    Raises:
        DataError: neither format is found, or a file is missing, damaged or unsafe.
    """
    for folder in (root, root / "cifar-10-batches-py"):
        paths = [folder / name for name in _BATCHES[split]]
        missing = [path.name for path in paths if not path.is_file()]
        if not missing:
            return _join([_read_batch(path) for path in paths])
        if len(missing) < len(paths):
            raise DataError(f"CIFAR-10 in {folder}: {', '.join(missing)} missing")
    zips = sorted(root.glob(f"cifar10_{split}*.zip"))
    if not zips:
        raise DataError(
            f"no CIFAR-10 {split} images in {root}: expected {_BATCHES[split][0]} there or in cifar-10-batches-py "
            f"(cifar-10-python.tar.gz, unpacked), or cifar10_{split}*.zip with WebP sheets"
        )
    _check_complete(root, zips)
    return _join([sheet for path in zips for sheet in _read_zip(path)])


_Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


def _join(parts: list[_Part]) -> tuple[Tensor, Tensor]:
    """Concatenate parts to one tensor of images and one of labels."""
    images, labels = zip(*parts, strict=True)
    return torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels))


def _dtype(kind: object, align: object, copy: object) -> np.dtype[np.uint8]:
    """Stand-in for ``numpy.dtype`` in a pickle: only the type of bytes; a new object, since the pickle changes it."""
    if kind not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"it holds an array of {kind!r}, not of bytes")
    return np.dtype("u1", copy=True)


# The function that rebuilds a pickled array is taken from an array; its module has another name from numpy 2 on.
_REBUILD = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _REBUILD,
    ("numpy._core.multiarray", "_reconstruct"): _REBUILD,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
}


class _ArrayUnpickler(BoundedUnpickler):
    """Unpickler that builds byte arrays and plain containers, and refuses every other callable that a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the allowed object of this name, or raise an UnpicklingError."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR-10 batch needs")
        return _ALLOWED[module, name]


def _read_batch(path: Path) -> _Part:
    """Read one pickled batch: a dict of labels and of pixels (N, 3072), which are the R, G and B planes."""
    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
    except (OSError, EOFError, MemoryError, pickle.UnpicklingError, *_MALFORMED) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    pixels, labels = (_entry(batch, name) for name in ("data", "labels"))
    if not (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and isinstance(labels, list)
        and pixels.shape == (len(labels), 3 * SIZE * SIZE)
        and all(isinstance(label, int) and 0 <= label < len(CLASSES) for label in labels)
    ):
        raise DataError(f"{path} is no CIFAR-10 batch: expected 'data', uint8 (N, 3072), and N 'labels' from 0 to 9")
    return pixels.reshape(-1, 3, SIZE, SIZE), np.array(labels, np.int64)


def _entry(batch: Any, name: str) -> Any:
    """An entry of the batch; its keys are bytes if Python 2 wrote it."""
    return batch.get(name.encode(), batch.get(name)) if isinstance(batch, dict) else None


def _check_complete(root: Path, zips: list[Path]) -> None:
    """Raise a DataError unless all parts are there of zip files that are called ``..._1of2.zip``."""
    found = {(int(match[1]), int(match[2])) for path in zips if (match := re.search(r"_(\d+)of(\d+)\.zip$", path.name))}
    wanted = {(part, total) for _, total in found for part in range(1, total + 1)}
    lacking = [f"{part} of {total}" for part, total in sorted(wanted - found)]
    if lacking:
        raise DataError(f"CIFAR-10 in {root}: beside {zips[0].name}, part {', '.join(lacking)} is missing")


def _read_zip(path: Path) -> list[_Part]:
    """Read the sheets of one zip file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".webp"))
            sheets = [_cut(archive.read(name), f"{path}, {name}") for name in names]
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if not sheets:
        raise DataError(f"{path} holds no WebP sheet")
    return sheets


def _cut(content: bytes, where: str) -> _Part:
    """Cut one sheet into its tiles, equally many of each class."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            sheet = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} is unreadable ({error})") from error
    rows, columns = sheet.shape[0] // SIZE, sheet.shape[1] // SIZE
    tiles, rest = divmod(rows * columns, len(CLASSES))
    if sheet.shape[:2] != (rows * SIZE, columns * SIZE) or rest:
        raise DataError(
            f"{where} is {sheet.shape[0]}x{sheet.shape[1]}: expected {SIZE}x{SIZE} tiles, as many of each of "
            f"{len(CLASSES)} classes"
        )
    images = sheet.reshape(rows, SIZE, columns, SIZE, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, SIZE, SIZE)
    return images, np.arange(len(CLASSES), dtype=np.int64).repeat(tiles)

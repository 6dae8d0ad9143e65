"""Load MNIST from its idx files, plain or gzipped."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_DTYPE_UINT8 = 0x08


def load_mnist(root: Path, split: str) -> tuple[Tensor, Tensor]:
    """Load the images and labels of one split of MNIST.

    Args:
        root: folder with the four files, gzipped or not; torchvision's folder ``MNIST/raw`` in it is found too.
        split: "train" or "test".

    Returns:
        Images, shape (N, 28, 28), uint8, and class labels, shape (N,), int64.

    Raises:
        DataError: a file is missing or damaged.
    """
    images, labels = (_read_idx(_find(root, name)) for name in _FILES[split])
    if images.ndim != 3 or len(images) != len(labels):
        raise DataError(f"MNIST in {root}: {len(images)} images of shape {images.shape[1:]}, {len(labels)} labels")
    return torch.from_numpy(images), torch.from_numpy(labels).long()


def _find(root: Path, name: str) -> Path:
    """Path of a file, plain or gzipped, in ``root`` or ``MNIST/raw``."""
    for folder in (root, root / "MNIST" / "raw"):
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise DataError(f"no MNIST file {name}[.gz] in {root} (or its MNIST/raw)")


def _read_idx(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The array in an idx file: two zero bytes, type, number of dimensions, big-endian sizes, values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    rank = content[3] if len(content) > 4 else 0
    header = 4 + 4 * rank
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    if content[:3] != bytes([0, 0, _DTYPE_UINT8]) or len(content) - header != int(np.prod(shape)):
        raise DataError(f"{path} is no idx file of bytes, or it is truncated")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()

"""Load images and labels from two NumPy arrays, the format of the data sets of LfF and DebiAN."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import DataError
from .columns import LARGEST_LABEL, PARTS, Columns, random_split, split_folders
from .images import MEAN, STD
from .loader import BiasedDataset, DataSplits
from .table import stop_at_problems

_IMAGES, _ATTRIBUTES = "images.npy", "attrs.npy"
_CHUNK = 1024  # images that are converted at a time


def is_array_folder(root: Path) -> bool:
    """Whether ``root``, or a folder in it that is named like a split, holds ``images.npy`` and ``attrs.npy``."""
    return bool(_places(root))


def load_arrays(root: Path, preprocessing: Mapping[str, Any], columns: Columns | None = None) -> DataSplits:
    """Read ``images.npy`` and ``attrs.npy`` from ``root``, or from its folders ``train``, ``valid`` and ``test``.

    Images have shape (N, H, W), (N, H, W, C) or (N, C, H, W). Images of dtype uint8 are divided by 255 and normalised;
    floating-point images are given to the network unchanged. Attributes are integers of shape (N, A): column 0 is the
    class label and column 1 the bias label, unless ``columns`` gives other column numbers.

    Args:
        root: the folder.
        preprocessing: ``mean``, ``std`` and ``size``, the (height, width) that uint8 images are resized to (bilinear).
        columns: the columns of ``attrs.npy`` to read, given by number.

    Raises:
        DataError: the arrays cannot be used; the message lists the first ten problems.
    """
    columns = columns or Columns()
    problems: list[str] = []
    read = [(_read(place, columns, preprocessing, problems), part) for place, part in _places(root).items()]
    stop_at_problems(root, problems)
    parts = [(data, part) for data, part in read if data is not None]
    notes = [f"{root.resolve().name}: {sum(len(data) for data, _ in parts)} images from arrays"]
    if not parts[0][0].mean:
        notes.append("the images are floating-point numbers, which are fed as they are: no size, mean or std applies")
    found: dict[str, BiasedDataset] = {part: data for data, part in parts if part}
    if not found:
        data = parts[0][0]
        cells = torch.cat([data.target[:, None], data.bias], 1)
        chosen = random_split(range(len(data)), cells, seed=0)
        rows = {part: torch.tensor([i for i, p in enumerate(chosen) if p == part], dtype=torch.long) for part in PARTS}
        found = {part: data.subset(some) for part, some in rows.items() if len(some)}
        notes.append("a random split of 70 % train, 10 % val, 20 % test, stratified by label and bias, seed 0")
    if "train" not in found:
        raise DataError(f"data in {root}: no folder 'train' with {_IMAGES} and {_ATTRIBUTES}")
    return DataSplits(found["train"], found.get("val"), found.get("test"), (), notes)


def _places(root: Path) -> dict[Path, str]:
    """Folders that hold both files, each with the name of its split ("" for ``root`` itself)."""
    folders = [(root, ""), *split_folders(root)]
    found = {f: part for f, part in folders if (f / _IMAGES).is_file() and (f / _ATTRIBUTES).is_file()}
    return {root: ""} if root in found else found


def _read(place: Path, columns: Columns, preprocessing: Mapping[str, Any], problems: list[str]) -> BiasedDataset | None:
    """Read one split; on problems, add them to ``problems`` and return None."""
    arrays = {}
    for name in (_IMAGES, _ATTRIBUTES):
        try:
            arrays[name] = np.load(place / name, mmap_mode="r" if name == _IMAGES else None, allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            objects = any(word in str(error) for word in ("pickle", "Python objects"))
            reason = "it holds pickled objects" if objects else str(error).splitlines()[0]
            problems.append(f"{place / name} cannot be read: {reason}")
    if len(arrays) < 2:
        return None
    before = len(problems)
    images, attributes = arrays[_IMAGES], arrays[_ATTRIBUTES]
    attributes = attributes[:, None] if attributes.ndim == 1 else attributes
    labels = _columns(place / _ATTRIBUTES, attributes, columns, problems)
    if images.ndim not in (3, 4) or not (images.dtype == np.uint8 or np.issubdtype(images.dtype, np.floating)):
        problems.append(
            f"{place / _IMAGES} is {images.dtype} of shape {images.shape}; expected uint8 or floats, (N, H, W), "
            "(N, H, W, C) or (N, C, H, W)"
        )
    elif len(images) != len(attributes) or not len(images):
        problems.append(f"{place}: {len(images)} images, but {len(attributes)} rows of attributes")
    if len(problems) > before or labels is None:
        return None
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[1] not in (1, 3) and images.shape[3] in (1, 3, 4):
        images = images.transpose(0, 3, 1, 2)
    if images.shape[1] not in (1, 3, 4):
        problems.append(f"{place / _IMAGES} of shape {arrays[_IMAGES].shape} has neither 1 nor 3 nor 4 channels")
        return None
    images = images[:, :3]
    if np.issubdtype(images.dtype, np.floating):
        inputs = torch.from_numpy(np.array(images, dtype=np.float32, order="C"))
        finite = torch.isfinite(inputs.flatten(1)).all(1)
        if not bool(finite.all()):
            first = int((~finite).nonzero()[0])
            problems.append(
                f"{place / _IMAGES}: {int((~finite).sum())} images have NaN or infinity, first image {first}"
            )
            return None
        return BiasedDataset(inputs, labels[0], labels[1])
    inputs = _resized(images, preprocessing.get("size"))
    mean, std = tuple(preprocessing.get("mean", MEAN)), tuple(preprocessing.get("std", STD))
    return BiasedDataset(inputs, labels[0], labels[1], mean, std)


def _columns(path: Path, attributes: np.ndarray, columns: Columns, problems: list[str]) -> tuple[Tensor, Tensor] | None:
    """Class labels (N,) and bias labels (N, K), int64; on problems, add them to ``problems`` and return None."""
    label = "0" if columns.label is None else columns.label
    others = [place for place in ("1", "0") if place != label][:1] if attributes.shape[1:] > (1,) else []
    wanted = [label, *(others if columns.bias is None else columns.bias)]
    if attributes.ndim != 2 or not np.issubdtype(attributes.dtype, np.integer):
        problems.append(f"{path} is {attributes.dtype} of shape {attributes.shape}; expected integers, (N, attributes)")
        return None
    unknown = [w for w in wanted if not w.isdecimal() or int(w) >= attributes.shape[1]]
    if unknown:
        problems.append(f"{path} has columns 0 to {attributes.shape[1] - 1}, not {', '.join(unknown)}")
        return None
    if len({int(w) for w in wanted}) < len(wanted):
        problems.append(f"{path}: a column is given for more than one purpose ({', '.join(wanted)})")
        return None
    values = torch.from_numpy(attributes[:, [int(w) for w in wanted]].astype(np.int64))
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) <= LARGEST_LABEL:
        problems.append(
            f"{path}: labels run from {int(values.min())} to {int(values.max())}, expected 0 to {LARGEST_LABEL}"
        )
        return None
    return values[:, 0], values[:, 1:]


def _resized(images: np.ndarray, size: Any) -> Tensor:
    """Convert and resize uint8 images to shape (N, 3, H, W); grey images get three equal channels."""
    shape = tuple(images.shape[2:]) if size is None else (int(size[0]), int(size[1]))
    found = torch.empty((len(images), 3, *shape), dtype=torch.uint8)
    for start in range(0, len(images), _CHUNK):
        part = torch.from_numpy(np.array(images[start : start + _CHUNK], order="C"))
        if tuple(part.shape[2:]) != shape:
            part = interpolate(part.float(), shape, mode="bilinear", antialias=True).round_().clamp_(0, 255).byte()
        found[start : start + len(part)] = part
    return found

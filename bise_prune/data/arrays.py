"""Load images and labels from two NumPy arrays, the format of the data sets of LfF and DebiAN."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import DataError
from .columns import Columns
from .images import scale_of
from .labels import LARGEST_LABEL, PARTS, random_split, split_folders
from .loader import BiasedDataset, DataSplits
from .table import stop_at_problems

_IMAGES, _ATTRIBUTES = "images.npy", "attrs.npy"
_CHUNK = 1024  # images that are converted at a time


def is_array_folder(root: Path) -> bool:
    """Whether ``root``, or a folder in it that is named like a split, holds ``images.npy`` and ``attrs.npy``."""
    return bool(_places(root))


def load_arrays(root: Path, preprocessing: Mapping[str, Any], columns: Columns | None = None) -> DataSplits:
    """Read ``images.npy`` and ``attrs.npy`` from ``root``, or from its folders ``train``, ``valid`` and ``test``.

    Images have shape (N, H, W), (N, H, W, C) or (N, C, H, W), where C is the number of channels that the network takes;
    grey is made of colours and colours of grey, and a fourth channel beside colours is dropped. Images of dtype uint8
    are divided by 255 and normalised; floating-point images are given to the network unchanged. Attributes are integers
    of shape (N, A): column 0 is the class label and column 1 the bias label, unless ``columns`` gives other column
    numbers; -1 and 1 stand for 0 and 1.

    Args:
        root: the folder.
        preprocessing: ``mean``, ``std``, ``channels`` (3 if missing) and ``size``, the (height, width) that uint8
            images are resized to (bilinear).
        columns: the columns of ``attrs.npy`` to read, given by number.

    Raises:
        DataError: the arrays cannot be used; the message lists the first ten problems.
    """
    columns = columns or Columns()
    problems: list[str] = []
    remarks: dict[str, None] = {}
    read = [(_read(place, columns, preprocessing, problems, remarks), part) for place, part in _places(root).items()]
    stop_at_problems(root, problems)
    parts = [(data, part) for data, part in read if data is not None]
    notes = [f"{root.resolve().name}: {sum(len(data) for data, _ in parts)} images from arrays"]
    notes += remarks
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


def _read(
    place: Path, columns: Columns, preprocessing: Mapping[str, Any], problems: list[str], remarks: dict[str, None]
) -> BiasedDataset | None:
    """Read one split, adding to ``problems`` and ``remarks``; None if there are problems."""
    arrays = {}
    for name in (_IMAGES, _ATTRIBUTES):
        try:
            with (place / name).open("rb") as file:
                if file.read(2) == b"PK":
                    raise ValueError("it is an archive (.npz), not an array")
            found = np.load(place / name, mmap_mode="r", allow_pickle=False)  # not larger than the file
            if not isinstance(found, np.ndarray) or not found.ndim:
                raise ValueError("it is no array of samples")
            arrays[name] = found
        except Exception as error:  # NumPy raises anything for a header of any content
            objects = any(word in str(error) for word in ("pickle", "Python objects"))
            reason = "it holds pickled objects" if objects else (str(error) or type(error).__name__).splitlines()[0]
            problems.append(f"{place / name} cannot be read: {reason[:200]}")
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
    channels = int(preprocessing.get("channels") or 3)
    if images.shape[1] not in (channels, 1, 3) and images.shape[3] in (channels, 1, 3, 4):
        images = images.transpose(0, 3, 1, 2)
    convert = _conversion(images.shape[1], channels)
    if convert is None:
        problems.append(
            f"{place / _IMAGES} of shape {arrays[_IMAGES].shape} has images of other than {channels} channels, which "
            "the network takes"
        )
        return None
    if convert.note:
        remarks[convert.note] = None
    if np.issubdtype(images.dtype, np.floating):
        with np.errstate(over="ignore"):  # what is too large becomes infinity
            inputs = convert.of(torch.from_numpy(np.array(images, dtype=np.float32, order="C")))
        finite = torch.isfinite(inputs.flatten(1)).all(1)
        if not bool(finite.all()):
            first = int((~finite).nonzero()[0])
            problems.append(
                f"{place / _IMAGES}: {int((~finite).sum())} images have NaN or infinity, first image {first}"
            )
            return None
        return BiasedDataset(inputs, labels[0], labels[1])
    inputs = _resized(images, preprocessing.get("size"), channels, convert)
    return BiasedDataset(inputs, labels[0], labels[1], *scale_of(preprocessing, channels))


@dataclass(frozen=True)
class _Conversion:
    """Makes images of so many channels as the network takes.

    Attributes:
        of: function from images (N, C, H, W) to images (N, channels, H, W), of floats or uint8.
        note: what it does, for the report; "" if nothing.
    """

    of: Callable[[Tensor], Tensor]
    note: str = ""


def _conversion(present: int, channels: int) -> _Conversion | None:
    """What makes images of some channels of images of others; None if nothing can."""
    if present == channels:
        return _Conversion(lambda images: images)
    if (present, channels) == (4, 3):
        return _Conversion(lambda images: images[:, :3], "the images have a fourth channel, which was dropped")
    if present == 1 and channels == 3:
        return _Conversion(
            lambda images: images.expand(-1, 3, -1, -1), "the images are grey, and were made three equal channels"
        )
    if present in (3, 4) and channels == 1:
        return _Conversion(_grey, "the images are coloured, and were made grey, which is what the network takes")
    return None


def _grey(images: Tensor) -> Tensor:
    """The luminance of images (N, 3 or 4, H, W) by ITU-R 601, shape (N, 1, H, W)."""
    grey = torch.einsum("nchw,c->nhw", images[:, :3].float(), torch.tensor([0.299, 0.587, 0.114]))[:, None]
    return grey if images.is_floating_point() else grey.round_().to(images.dtype)


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
    signs = (values == -1).any(0) & (values.abs() == 1).all(0)  # columns of -1 and 1 alone
    values = torch.where(signs, (values + 1) // 2, values)
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) <= LARGEST_LABEL:
        problems.append(
            f"{path}: labels run from {int(values.min())} to {int(values.max())}, expected 0 to {LARGEST_LABEL}"
        )
        return None
    return values[:, 0], values[:, 1:]


def _resized(images: np.ndarray, size: Any, channels: int, convert: _Conversion) -> Tensor:
    """Convert and resize uint8 images to shape (N, channels, H, W)."""
    shape = tuple(images.shape[2:]) if size is None else (int(size[0]), int(size[1]))
    found = torch.empty((len(images), channels, *shape), dtype=torch.uint8)
    for start in range(0, len(images), _CHUNK):
        part = convert.of(torch.from_numpy(np.array(images[start : start + _CHUNK], order="C")))
        if tuple(part.shape[2:]) != shape:
            part = interpolate(part.float(), shape, mode="bilinear", antialias=True).round_().clamp_(0, 255).byte()
        found[start : start + len(part)] = part
    return found

"""Check image files, decode them once into one array, and sort them into splits."""

from __future__ import annotations

import hashlib
import io
import math
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import ConfigError, DataError, counted
from .formats import image_formats
from .labels import PARTS, known_bias, random_split
from .loader import BiasedDataset, DataSplits
from .resolving import missing_files
from .table import stop_at_problems

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, the default for colour images
_MIDDLE = 0.5  # mean and standard deviation of each channel by default, if there are not three
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names of what has so many channels
_AT_ONCE = 5_000  # images up to which all of them are read before anything is reported
_ORIENTATION = 0x0112
_SQUEEZED = 0.02  # relative change of the ratio of width to height that is noted
_NOTES = {
    "alpha": "images have an alpha channel, which was dropped",
    "deep": "images have 16 bits per channel, which were scaled to 8",
    "turned": "images carry an EXIF rotation and were turned upright",
    "squeezed": "images have another shape than the size and were squeezed to it; give --crop if the network was "
    "trained on crops from their middle",
}
_WARNINGS = {"constant": "images have one colour throughout"}


@dataclass
class Listing:
    """The images of a user's data set and their labels, before decoding.

    Attributes:
        root: the folder, for error messages.
        sources: per image, its file or the file's content.
        names: per image, a name for messages.
        target: class labels, shape (N,), int64.
        bias: bias labels, shape (N, K), int64; K = 0 if none are known.
        parts: split of each image ("train", "val" or "test"); empty if the splits are not known.
        classes: class names.
        notes: how the data were interpreted, for the report.
        problems: what is wrong with the data, one sentence each.
        without_bias: whether this layout cannot hold bias labels.
        bias_values: names of each bias's values; see :class:`bise_prune.data.DataSplits`.
        bias_names: names of the biases.
    """

    root: Path
    sources: Sequence[Path | bytes]
    names: Sequence[str]
    target: Tensor
    bias: Tensor
    parts: Sequence[str]
    classes: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    without_bias: bool = False
    bias_values: Sequence[Sequence[str]] = ()
    bias_names: Sequence[str] = ()


def splits_of(listing: Listing, preprocessing: Mapping[str, Any], skip_bad: bool = False, seed: int = 0) -> DataSplits:
    """Decode images and sort them into splits.

    If the splits are not known, 70 % of the images are for training, 10 % for validation and 20 % for testing,
    stratified by class and bias labels; files of equal content are in the same split.

    Args:
        listing: the images and their labels.
        preprocessing: ``mean`` and ``std`` per channel on the [0, 1] scale (see :func:`scale_of`); ``size``, the
            (height, width) to resize to (if missing, all images must have the same size); ``crop``, the share of the
            resized image's sides that the size is cropped from, in (0, 1] (if missing, images are resized without
            regard to their shape); and ``channels``, 1, 3 or 4 (3 if missing).
        skip_bad: whether to continue without images that cannot be read.
        seed: random seed of the split.

    Raises:
        ConfigError: ``mean`` and ``std`` do not fit the channels.
        DataError: the listing or its images cannot be used; the message lists the first ten problems.
    """
    channels = int(preprocessing.get("channels") or 3)
    mean, std = scale_of(preprocessing, channels)
    if channels not in _MODES:
        raise DataError(
            f"data in {listing.root}: the network takes {channels} channels, and image files have 1, 3 or 4: save the "
            "images as arrays (images.npy, attrs.npy)"
        )
    if len(listing.sources) > _AT_ONCE:
        stop_at_problems(listing.root, [*listing.problems, *([] if skip_bad else _missing(listing))])
    notes, parts = list(listing.notes), listing.parts
    if not parts:
        with ThreadPoolExecutor() as pool:
            keys = list(pool.map(_content, listing.sources))
        parts = random_split(keys, torch.cat([listing.target[:, None], listing.bias], 1), seed)
        notes.append(
            f"a random split of 70 % train, 10 % val, 20 % test, stratified by label and bias, seed {seed}; equal "
            "files are in the same split"
        )
    order = sorted(range(len(parts)), key=lambda i: (*PARTS, "").index(parts[i]))  # so that splits are views
    decoded = read_images(
        listing.root,
        [listing.sources[i] for i in order],
        preprocessing.get("size"),
        [listing.names[i] for i in order],
        skip_bad,
        crop=preprocessing.get("crop"),
        channels=channels,
    )
    stop_at_problems(listing.root, [*listing.problems, *decoded.problems])
    rows = torch.tensor([order[i] for i in decoded.rows], dtype=torch.long)
    target, bias = listing.target[rows], listing.bias[rows]
    notes, doubts = [*notes, *decoded.notes], list(decoded.warnings)
    parts = [parts[i] for i in rows.tolist()]
    shared = _in_several_splits(decoded.digests, parts)
    if shared:
        doubts.append(f"{shared} different images are in more than one split, pixel by pixel")
    if "train" not in parts:
        raise DataError(f"data in {listing.root}: no image of the training split is left")
    height, width = decoded.images.shape[2:]
    notes.insert(0, f"{listing.root.resolve().name}: {len(rows)} images of {height}x{width}")
    found = {}
    for part in PARTS:
        chosen = torch.tensor([i for i, value in enumerate(parts) if value == part], dtype=torch.long)
        if not len(chosen):
            continue
        inputs = decoded.images[int(chosen[0]) : int(chosen[-1]) + 1]
        found[part] = BiasedDataset(inputs, target[chosen], known_bias(bias[chosen]), mean, std)
    return DataSplits(
        found["train"], found.get("val"), found.get("test"), listing.classes, notes, doubts, listing.without_bias,
        listing.bias_values, listing.bias_names,
    )  # fmt: skip


@dataclass(frozen=True)
class Decoded:
    """Decoded images in one array.

    Attributes:
        images: images, shape (M, channels, H, W), uint8, in a temporary file that is deleted together with the tensor.
        rows: index of the source of each of the M images.
        digests: digest of each image's pixels; equal for equal pixels.
        problems: why other sources could not be read, unless they were to be skipped.
        notes: changes that were made to images.
        warnings: unusual properties of the images, and images that were left out.
    """

    images: Tensor
    rows: Sequence[int]
    digests: Sequence[bytes]
    problems: Sequence[str]
    notes: Sequence[str]
    warnings: Sequence[str]


def decode_images(root: Path, files: Sequence[Path], size: Sequence[int] | None) -> Tensor:
    """Decode all images of a folder to RGB.

    Args:
        root: the folder, for error messages.
        files: N image files.
        size: (height, width) to resize to; None = the images' own size, which must be the same for all.

    Returns:
        Images, shape (N, 3, H, W), uint8.

    Raises:
        DataError: files are missing or cannot be read; the message lists the first ten.
    """
    decoded = read_images(root, files, size, [file.name for file in files])
    stop_at_problems(root, decoded.problems)
    return decoded.images


def read_images(
    root: Path,
    sources: Sequence[Path | bytes],
    size: Sequence[int] | None,
    names: Sequence[str],
    skip_bad: bool = False,
    *,
    crop: float | None = None,
    channels: int = 3,
) -> Decoded:
    """Decode images.

    Colours become grey or grey becomes colours as the channels ask for, alpha channels are dropped unless there are
    four, 16 bits become 8, and EXIF rotations are applied.

    Args:
        root: the folder, for error messages.
        sources: image files or their content.
        size: (height, width) to resize to (bilinear); None = the images' own size, which must be the same for all.
        names: names of the images, for messages.
        skip_bad: whether images that cannot be read are left out and counted, instead of being problems.
        crop: share of the resized image's sides that ``size`` is cropped from; see :func:`splits_of`.
        channels: 1 for grey, 3 for RGB, 4 for RGBA.

    Raises:
        DataError: there is not enough disk space for the decoded images.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # reported as problems instead
        shape = (int(size[0]), int(size[1])) if size is not None else _common_shape(sources)
        array = _file_backed(root, (len(sources), channels, *shape))
        fit = _Fit(shape, size is not None, crop, _MODES[channels])

        def read(i: int) -> tuple[str, set[str], bytes]:
            try:
                pixels, remarks = _pixels(sources[i], fit)
            except FileNotFoundError:
                return f"{names[i]} is missing", set(), b""
            except _UnfitError as error:
                return f"{names[i]} {error}", {"size"} if isinstance(error, _SizeError) else set(), b""
            except (OSError, ValueError, SyntaxError, EOFError, MemoryError, OverflowError) as error:
                return f"{names[i]} is unreadable ({type(error).__name__})", set(), b""
            array[i] = pixels
            return "", remarks, hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()

        with ThreadPoolExecutor() as pool:
            results = list(pool.map(read, range(len(sources))))
    problems = [problem for problem, _, _ in results if problem]
    rows = [i for i, (problem, _, _) in enumerate(results) if not problem]
    remarks = Counter(remark for _, found, _ in results for remark in found)
    notes, doubts = (
        [f"{remarks[remark]} {text}" for remark, text in texts.items() if remarks[remark]]
        for texts in (_NOTES, _WARNINGS)
    )
    if rows and remarks["constant"] == len(rows):
        problems.append("every image has one colour throughout, so there is nothing to see in them")
    elif skip_bad and problems and not remarks["size"]:  # another size does not make an image bad
        more = ", ..." if len(problems) > 10 else ""
        doubts.append(f"{len(problems)} images were left out: {'; '.join(problems[:10])}{more}")
        problems = [] if rows else problems
    for place, row in enumerate(rows):  # close the gaps of images that were left out
        if place != row:
            array[place] = array[row]
    return Decoded(torch.from_numpy(array[: len(rows)]), rows, [results[i][2] for i in rows], problems, notes, doubts)


class _UnfitError(Exception):
    """An image can be decoded, but cannot be used."""


class _SizeError(_UnfitError):
    """An image has another size than the first one."""


@dataclass(frozen=True)
class _Fit:
    """What images are made to be.

    Attributes:
        shape: height and width.
        is_resized: whether images of another size are resized; if not, they are problems.
        crop: share of the resized image's sides that the shape is cropped from; None = resized to the shape.
        mode: Pillow's name of the channels.
    """

    shape: tuple[int, int]
    is_resized: bool
    crop: float | None
    mode: str

    def of(self, image: Image.Image) -> Image.Image:
        """An image in this shape."""
        if self.crop is None:
            return image.resize(self.shape[::-1], Image.Resampling.BILINEAR)
        least = [math.floor(side / self.crop + 1e-6) for side in self.shape]
        if least[0] * image.width <= least[1] * image.height:  # the width decides
            size = (least[1], int(least[1] * image.height / image.width))
        else:
            size = (int(least[0] * image.width / image.height), least[0])
        image = image.resize(size, Image.Resampling.BILINEAR)
        top, left = (round((size[1 - dim] - self.shape[dim]) / 2) for dim in (0, 1))
        return image.crop((left, top, left + self.shape[1], top + self.shape[0]))


def scale_of(preprocessing: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel on the [0, 1] scale.

    They are ImageNet's for three channels and 0.5 for others, if they are not given. A single number is that of all
    channels.

    Raises:
        ConfigError: there is another number of them than of channels.
    """
    scales = []
    for name, usual in (("mean", MEAN), ("std", STD)):
        values = tuple(preprocessing.get(name) or (usual if channels == len(usual) else (_MIDDLE,)))
        values = values * channels if len(values) == 1 else values
        if len(values) != channels:
            raise ConfigError(f"{name} has {len(values)} numbers, but the network takes {channels} channels")
        scales.append(values)
    return scales[0], scales[1]


def _missing(listing: Listing) -> list[str]:
    """A problem if files of a listing are missing."""
    paths = {i: source for i, source in enumerate(listing.sources) if isinstance(source, Path)}
    places = list(paths)
    missing = [places[k] for k in missing_files(list(paths.values()))]
    more = ", ..." if len(missing) > 10 else ""
    names = ", ".join(listing.names[i] for i in missing[:10])
    return [f"{counted(len(missing), 'file')} missing: {names}{more}"] if missing else []


def _pixels(source: Path | bytes, fit: _Fit) -> tuple[np.ndarray, set[str]]:
    """An image as uint8 array (channels, H, W), and keys of ``_NOTES`` and ``_WARNINGS`` that apply to it."""
    remarks = set()
    with _opened(source) as opened:
        if opened.getexif().get(_ORIENTATION, 1) in range(2, 9):
            remarks.add("turned")
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith(("I", "F")):
            if image.mode == "F":
                raise _UnfitError("holds floating-point values, not colours")
            deep = np.asarray(image, dtype=np.int64)
            if deep.max(initial=0) > 65535 or deep.min(initial=0) < 0:
                raise _UnfitError("holds values outside [0, 65535]")
            if deep.max(initial=0) > 255 or image.mode != "I":
                remarks.add("deep")
                deep = deep // 257
            upright: Image.Image = Image.fromarray(deep.astype(np.uint8))
        else:
            upright = image
            if ("A" in upright.getbands() or "transparency" in upright.info) and fit.mode != "RGBA":
                remarks.add("alpha")
                upright = upright.convert("RGBA")
        made, shape = upright.convert(fit.mode), fit.shape
        if not fit.is_resized and (made.height, made.width) != shape:
            raise _SizeError(
                f"is {made.height}x{made.width}, the first image {shape[0]}x{shape[1]}: give a --size to resize to"
            )
        if fit.crop is None and abs(made.width * shape[0] / (made.height * shape[1]) - 1) > _SQUEEZED:
            remarks.add("squeezed")
        if fit.crop is not None or made.size != shape[::-1]:
            made = fit.of(made)
    values = np.asarray(made)
    pixels = np.ascontiguousarray(values[None] if values.ndim == 2 else values.transpose(2, 0, 1))
    if (pixels == pixels[:, :1, :1]).all():
        remarks.add("constant")
    return pixels, remarks


def _opened(source: Path | bytes) -> Image.Image:
    """Open an image; raise _UnfitError if its format is unknown or it has too many pixels."""
    if isinstance(source, Path) and source.exists() and not source.is_file():  # opening a pipe would wait for ever
        raise _UnfitError("is no file")
    try:
        content = io.BytesIO(source) if isinstance(source, bytes) else source
        image = Image.open(content, formats=image_formats())
    except Image.DecompressionBombError:
        raise _UnfitError("has so many pixels that it may be a decompression bomb") from None
    except UnidentifiedImageError:
        raise _UnfitError("is unreadable (no image format that is known)") from None
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
        image.close()
        raise _UnfitError(f"has {image.height}x{image.width} pixels, so many that it may be a decompression bomb")
    return image


def _common_shape(sources: Sequence[Path | bytes]) -> tuple[int, int]:
    """Height and width of the first image that can be opened."""
    for source in sources:
        try:
            with _opened(source) as image:
                turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
                return (image.width, image.height) if turned else (image.height, image.width)
        except (_UnfitError, OSError, ValueError, SyntaxError):
            continue
    return 1, 1  # no image can be opened; all will be reported as problems


def _file_backed(root: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An array of bytes in a temporary file; raise a DataError if there is not enough disk space."""
    needed = int(np.prod(shape, dtype=np.int64))
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"data in {root}: decoded, {shape[0]} images of {shape[2]}x{shape[3]} take {needed / 1e9:.1f} GB, but "
            f"{folder} has {free / 1e9:.1f} GB left; set TMPDIR to another disk, or give a smaller --size"
        )
    try:
        with tempfile.TemporaryFile() as file:
            if needed and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, needed)  # room that runs out later would end the process
            return np.memmap(file, np.uint8, "w+", shape=shape) if needed else np.zeros(shape, np.uint8)
    except OSError as error:
        raise DataError(f"data in {root}: no room in {folder} to decode images to: {error.strerror}") from error


def _content(source: Path | bytes) -> bytes:
    """Digest of a file's content, or of its name if it cannot be read."""
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
    except (OSError, ValueError):  # ValueError: a NUL in its name
        content = str(source).encode(errors="replace")
    return hashlib.blake2b(content, digest_size=16).digest()


def _in_several_splits(digests: Sequence[bytes], parts: Sequence[str]) -> int:
    """Number of distinct images that are in more than one split."""
    places: dict[bytes, set[str]] = {}
    for digest, part in zip(digests, parts, strict=True):
        places.setdefault(digest, set()).add(part)
    return sum(len(found) > 1 for found in places.values())

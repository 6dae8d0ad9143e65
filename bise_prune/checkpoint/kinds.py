"""Recognise the format of a checkpoint without running anything in it."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Literal

from ..errors import CheckpointError

Kind = Literal[
    "safetensors", "sharded safetensors", "torch", "legacy torch", "pickle", "TorchScript", "exported program"
]

# What torch and zipfile raise on files that are truncated, damaged or of another format.
DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
# First bytes of torch's format before zip files: the magic number as a pickle of protocol 2.
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


def kind_of(path: Path) -> Kind:
    """Recognise a checkpoint's format by its first bytes, and an archive's also by the names of its members.

    Raises:
        CheckpointError: the file cannot be read, or has none of the known formats.
    """
    try:
        with path.open("rb") as file:
            start = file.read(200)
            size = file.seek(0, 2)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if size == 0:
        raise CheckpointError(f"{path} is empty")
    if len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < size:
        return "safetensors"
    if start.startswith(b"PK"):
        return _kind_of_archive(path)
    if start.startswith(LEGACY):
        return "legacy torch"
    if start[:1] == b"\x80":
        return "pickle"
    if start[:1] == b"{" and _is_index(path):
        return "sharded safetensors"
    if b"git-lfs" in start:
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself: fetch it with git lfs pull")
    raise CheckpointError(f"{path} is no checkpoint: neither safetensors nor a file that torch writes")


def _kind_of_archive(path: Path) -> Kind:
    """Recognise the format of a zip archive by the names of its members."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except DAMAGED as error:
        raise CheckpointError(f"{path} is a damaged archive: was it copied whole?") from error
    if "constants.pkl" in names:
        return "TorchScript"
    if "archive_format" in names:
        return "exported program"
    if "data.pkl" in names:
        return "torch"
    raise CheckpointError(
        f"{path} is an archive without weights (it holds {', '.join(sorted(names)[:3]) or 'nothing'})"
    )


def _is_index(path: Path) -> bool:
    """Whether a file is the JSON index of a safetensors checkpoint in parts."""
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8"))["weight_map"], dict)
    except (KeyError, OSError, RecursionError, TypeError, ValueError):
        return False

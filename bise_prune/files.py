"""Files written whole or not at all, folders that one process has, and modules in the current folder."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from .errors import BiseError, ConfigError

_LOCK = ".bise-prune.lock"
_TEMPORARY = ".bise-prune-"
_WRITERS_ERRORS = (RuntimeError, SafetensorError)  # torch's and safetensors' where a file cannot be written


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name on success and vanishes on failure.

    Raises:
        BiseError: the folder cannot be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_TEMPORARY, suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise BiseError(f"cannot write {path}: {error.strerror or error}; choose another output folder") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, *_WRITERS_ERRORS) as error:
        reason = getattr(error, "strerror", None) or "it could not be written whole"
        raise BiseError(f"cannot write {path}: {reason}; is there room on the disk?") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, record: Any) -> None:
    """Write ``record`` as indented JSON; NaN and infinity are refused, since JSON has no word for them."""
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make ``folder``, and keep other processes that ask for it out, until its work is done.

    The lock's file stays behind a failure that leaves something in the folder, see :func:`is_unfinished`; temporary
    files of a killed process are removed, and a folder that is new and empty at the end.

    Raises:
        ConfigError: another process has it.
    """
    existed = folder.is_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"another run is writing to {folder}: wait for its end, or choose another folder with --output"
        ) from error
    except OSError as error:
        raise BiseError(f"cannot write to {folder}: {error.strerror or error}; choose another with --output") from error
    try:
        for stale in folder.glob(f"{_TEMPORARY}*"):
            stale.unlink(missing_ok=True)
        yield
    except BaseException:
        if all(path.name == _LOCK for path in folder.iterdir()):
            (folder / _LOCK).unlink(missing_ok=True)
        raise
    else:
        (folder / _LOCK).unlink(missing_ok=True)
    finally:
        lock.release()
        if not existed:
            with suppress(OSError):
                folder.rmdir()


def is_unfinished(folder: Path) -> bool:
    """Whether the work that ``folder`` was locked for was not done."""
    return (folder / _LOCK).exists()


@contextmanager
def importing_from_here() -> Iterator[None]:
    """Modules in the current folder can be imported, as they could by the script that a user ran there."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)

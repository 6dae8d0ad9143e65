"""Files and folders: atomic writing, locks between processes, bounded unpickling, imports from the current folder."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from .errors import BiseError, ConfigError

_LOCK = ".bise-prune.lock"
_TEMPORARY = ".bise-prune-partial-"
_OWN = re.compile(re.escape(_TEMPORARY) + r"[a-z0-9_]{8}(\.\w+)?")  # as tempfile names them
_WRITERS_ERRORS = (RuntimeError, SafetensorError)  # what torch and safetensors raise if a file cannot be written


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that is renamed to ``path`` on success and deleted on failure.

    Args:
        path: the file to write; missing parent folders are created.

    Yields:
        The temporary path to write to; it has the same suffix as ``path``.

    Raises:
        BiseError: the file cannot be written.
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
    """Write ``record`` atomically as indented JSON.

    Args:
        path: the file.
        record: any values that JSON can represent.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot represent.
        BiseError: the file cannot be written.
    """
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create ``folder`` and lock it against other processes until the work in it is done.

    Temporary files that a killed process left behind are removed first, and a folder that this call created is removed
    if it is empty at the end. If the work fails and leaves files in the folder, the lock file stays; see
    :func:`is_unfinished`.

    Args:
        folder: the folder to lock.

    Raises:
        ConfigError: another process has locked the folder.
        BiseError: the folder cannot be written to.
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
        for stale in folder.iterdir():
            if _OWN.fullmatch(stale.name) and stale.is_file():
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
    """Whether work in ``folder`` was started under :func:`locked` and did not finish."""
    return (folder / _LOCK).exists()


class BoundedUnpickler(pickle._Unpickler):
    """An unpickler that takes no more memory than the file has content.

    The one in C takes 8 bytes for each number up to the largest index in a file, and that in Python as many bytes for
    an array as the file claims it to have.
    """

    read: Callable[[int], bytes]
    append: Callable[[object], None]

    def load_bytearray8(self) -> None:
        """Read an array of bytes."""
        (length,) = struct.unpack("<Q", self.read(8))
        if len(content := self.read(length)) < length:
            raise pickle.UnpicklingError("an array of bytes is cut")
        self.append(bytearray(content))

    dispatch: ClassVar = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: load_bytearray8}  # type: ignore[dict-item]


@contextmanager
def running_code_of(what: str) -> Iterator[None]:
    """A context in which code of a user runs: it cannot end the process, and prints to stderr.

    Modules in the current folder are importable, and the code sees no arguments of the command line.

    Args:
        what: where the code is from, for the message.

    Raises:
        ConfigError: the code tries to end the process.
    """
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        with importing_from_here(), redirect_stdout(sys.stderr):
            yield
    except SystemExit as error:
        raise ConfigError(
            f"{what}: its code ends the process (exit {error.code!r}); what a program does belongs under "
            'if __name__ == "__main__", and arguments into NAME(key=value)'
        ) from error
    finally:
        sys.argv = arguments


@contextmanager
def importing_from_here() -> Iterator[None]:
    """Make modules in the current folder importable, as they are for a script that is started there."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)

"""The environment in which a record was made: versions, machine and command line, without user names or paths."""

from __future__ import annotations

import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ..config import portable
from ..version import __version__

_PACKAGES = ("torch", "torchvision", "torch-pruning", "fvcore", "onnx", "numpy")
_RUNTIMES = ("onnxruntime-gpu", "onnxruntime")


def environment_record(device: str) -> dict[str, Any]:
    """Versions of the software, and the kind of machine and device, without user names or paths."""
    return {
        "bise_prune": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "packages": installed_versions(),
    }


def installed_versions() -> dict[str, str]:
    """Versions of those installed packages on which the figures depend."""
    versions = {}
    for name in (*_PACKAGES, *_RUNTIMES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def command_line() -> str:
    """The command line of this process, with files and folders reduced to their names."""
    name = Path(sys.argv[0]).name
    words = ["python -m bise_prune" if name == "__main__.py" else name]
    for argument in sys.argv[1:]:
        flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        words.append(f"{flag}{equals}{portable(value) if '/' in value else value}")
    return " ".join([words[0], *map(shlex.quote, words[1:])])

"""Checks of the output folder, so that no result is overwritten and stopped runs are resumed; folders of a frontier."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from ..config import RunConfig
from ..distributed import world
from ..errors import ConfigError
from ..files import is_unfinished
from ..mask_search.state_file import finished_epochs
from ..report.files import (
    CONFIG_FILE,
    FRONTIER_FILE,
    FRONTIER_PAGE,
    POINT,
    REPORT_FILE,
    RESULT_FILES,
    STATE_FILE,
)


def point_folder(config: RunConfig, target: float) -> Path:
    """The folder of the frontier's point with this target sparsity."""
    return config.output / f"{POINT}{target:g}"


def check_output(config: RunConfig) -> None:
    """Check that no earlier result would be overwritten; only the first process checks.

    Raises:
        ConfigError: the output folder, or one of a frontier's point, holds results or cannot be written to.
    """
    if world()[0]:
        return
    _check_folder(config.output)
    for target in config.targets:
        folder = point_folder(config, target)
        if not (folder / REPORT_FILE).is_file():  # a finished point is used again
            _check_folder(folder)


def check_inputs(config: RunConfig, settings: Path | None = None) -> None:
    """Check that no input of a run would be overwritten by its results.

    Args:
        config: settings of the run.
        settings: file that the settings were read from; None for none.

    Raises:
        ConfigError: an input lies in the output folder under the name of a result, that folder is the data's, or a name
            is no text in UTF-8.
    """
    named = {
        "the checkpoint": config.checkpoint, "output": config.output, "data": config.data, "masks": config.masks,
        "plan": config.plan, "triton": config.triton, "image_folder": config.image_folder,
    }  # fmt: skip
    for name, place in named.items():
        try:
            str(place).encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{name} has a name that is no text in UTF-8, which ONNX and settings files cannot hold: rename it, or "
                "set a locale of UTF-8, such as LC_ALL=C.UTF-8"
            ) from error
    if config.data is not None and Path(config.data).resolve() == config.output.resolve():
        raise ConfigError(f"output {config.output} is the folder of the data; choose another with --output")
    folders = [config.output, *(point_folder(config, target) for target in config.targets)]
    for path in (config.checkpoint, config.masks, config.plan, settings):
        if path is not None and path.name in (*RESULT_FILES, STATE_FILE, CONFIG_FILE, FRONTIER_PAGE):
            if any(path.resolve() == (folder / path.name).resolve() for folder in folders):
                raise ConfigError(f"{path} is an input, and a result would overwrite it; choose another --output")


def check_resumable(config: RunConfig) -> None:
    """Check that there is a stopped run to resume, if the settings ask for one, and that it can be read if it is there.

    Raises:
        BiseError: it cannot be read.
        ConfigError: there is none.
    """
    folders = [point_folder(config, target) for target in config.targets]
    stopped = any(finished_epochs(folder / STATE_FILE) is not None for folder in (config.output, *folders))
    if config.resume and not stopped and not any((folder / REPORT_FILE).is_file() for folder in folders):
        raise ConfigError(
            f"nothing to resume: {config.output} holds no stopped search; leave --resume out to start one"
        )


def _check_folder(output: Path) -> None:
    """Check that a folder holds no results and can be written to."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output {output} is a file; choose a folder")
    present = [name for name in RESULT_FILES if (output / name).exists()]
    is_ours = any((output / name).exists() for name in (REPORT_FILE, FRONTIER_FILE, FRONTIER_PAGE))
    if is_unfinished(output):
        present = []  # these files are of a run that stopped before its end
    if (output / CONFIG_FILE).exists() and not is_ours:  # a run writes its settings last
        present.append(CONFIG_FILE)
    if present:
        raise ConfigError(f"output folder {output} holds results already ({present[0]}); choose another with --output")
    if output.is_symlink() and not output.exists():
        raise ConfigError(f"output {output} is a link to nothing; choose another with --output")
    check_writable(output, "--output")


def check_room(output: Path, size: int) -> None:
    """Check that there is room for the results of a run; only the first process checks.

    Args:
        output: folder of the results.
        size: their size in bytes, at most.

    Raises:
        ConfigError: there is not.
    """
    free = shutil.disk_usage(_nearest(output)).free
    if not world()[0] and size > free:
        raise ConfigError(
            f"the results take up to {size / 1e6:,.0f} MB, but {output} is on a disk with {free / 1e6:,.0f} MB left; "
            "choose another with --output"
        )


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder


def check_writable(folder: Path, option: str) -> None:
    """Check that a folder can be written to, or else made.

    Args:
        folder: the folder.
        option: option that names it, for the message.

    Raises:
        ConfigError: it cannot.
    """
    probe = _nearest(folder)
    write_check = probe / f".write-check-{time.time_ns()}-{os.getpid()}"
    try:
        write_check.touch()
        write_check.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}; choose another with {option}") from error

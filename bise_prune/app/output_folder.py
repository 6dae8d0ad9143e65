"""The folder that a run writes to: whether it is free, what may be taken up there, and the folders of a frontier."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ..config import RunConfig
from ..distributed import world
from ..errors import ConfigError
from ..files import is_unfinished
from ..report.files import POINT, REPORT_FILE, RESULT_FILES, STATE_FILE


def point_folder(config: RunConfig, target: float) -> Path:
    """The folder of a frontier's point."""
    return config.output / f"{POINT}{target:g}"


def check_output(config: RunConfig) -> None:
    """Make sure that no result is written over; the first process sees to it.

    Raises:
        ConfigError: there is one, or a folder cannot be written to.
    """
    if world()[0]:
        return
    _check_folder(config.output, config.resume)
    for target in config.targets:
        folder = point_folder(config, target)
        if not (folder / REPORT_FILE).is_file():  # a point that is done is taken up
            _check_folder(folder, config.resume)


def check_resumable(config: RunConfig) -> None:
    """Make sure that there is a stopped run to take up, if the settings say so.

    Raises:
        ConfigError: there is none.
    """
    folders = [point_folder(config, target) for target in config.targets]
    stopped = any((folder / STATE_FILE).is_file() for folder in (config.output, *folders))
    if config.resume and not stopped and not any((folder / REPORT_FILE).is_file() for folder in folders):
        raise ConfigError(
            f"nothing to resume: {config.output} holds no stopped search; leave --resume out to start one"
        )


def _check_folder(output: Path, resume: bool) -> None:
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output {output} is a file; choose a folder")
    present = [name for name in RESULT_FILES if (output / name).exists()]
    if is_unfinished(output) and (resume or REPORT_FILE not in present):
        present = []  # of a run that stopped on its way, at the latest between its report and its end
    if present:
        raise ConfigError(f"output folder {output} holds results already ({present[0]}); choose another with --output")
    probe = output
    while not probe.exists():
        probe = probe.parent
    write_check = probe / f".write-check-{time.time_ns()}-{os.getpid()}"
    try:
        write_check.touch()
        write_check.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {output}: {error.strerror}; choose another with --output") from error

"""The command in copies of a process that has imported it and run nothing, and what of a report lasts."""

import functools
import json
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

from bise_prune.app import cli

# A copy of a process that has run tests would inherit what they left: autograd's threads cannot be copied, for one.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["preloaded"])


def _command(arguments, log, before):
    code = 99
    torch.set_num_threads(1)
    with log.open("w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        try:
            before()
            code = cli.main(arguments)
        except BaseException:
            traceback.print_exc(file=file)
    sys.exit(code)


def _nothing():
    pass


@functools.cache
def ready():
    """Wait until the process that is copied has imported what it is to import."""
    with pytest.MonkeyPatch.context() as patch:  # so that it finds modules of the tests
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()
    child = _PROCESSES.Process(target=_nothing)
    child.start()
    child.join()


def forked(arguments, log, before=_nothing):
    """Start the command in a process that first calls ``before``, a function that can be pickled; the process."""
    ready()
    child = _PROCESSES.Process(target=_command, args=([str(argument) for argument in arguments], log, before))
    child.start()
    return child


def limit_files(kilobytes):
    """Let no file of this process grow beyond a limit, which fails as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, resource.RLIM_INFINITY))


def ended(child, seconds):
    """Wait for a process, and kill it after so many seconds; its exit code, or the negative number of a signal."""
    child.join(seconds)
    if child.is_alive():
        child.kill()
        child.join()
    return child.exitcode


def lasting(record):
    """What of a report does not depend on the clock, or on where it was written."""
    record = json.loads(json.dumps(record))
    for key in ("timings", "environment", "command"):
        del record[key]
    for form in record["formats"]:
        del form["latency_ms"], form["latency"], form["latency_ratio"]
    for model in ("dense", "slim"):
        for key in ("latency_ms", "latency", "latency_ms_batch_1", "latency_batch_1"):
            del record[model][key]
    record["warnings"] = [warning for warning in record["warnings"] if "in onnxruntime" not in warning]
    del record["latency_ratio"]
    for key in ("output", "resume", "triton"):
        record["config"].pop(key, None)
    del record["plan"]["costs_ms"]
    return record

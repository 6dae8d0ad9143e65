"""The command in copies of this process, which need not import anything, and what of a report lasts."""

import json
import os
import signal
import sys
import time
import traceback

import torch

from bise_prune.app import cli


def forked(arguments, log, before=lambda: None):
    """Start the command in a copy of this process that first calls ``before``; its number."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            torch.set_num_threads(1)  # the threads of this process were not copied
            with log.open("w", buffering=1) as file:
                sys.stdout = sys.stderr = file
                try:
                    before()
                    code = cli.main([str(argument) for argument in arguments])
                except BaseException:
                    traceback.print_exc(file=file)
        finally:
            os._exit(code)
    return child


def ended(child, seconds):
    """Wait for a process, and kill it after so many seconds; its exit code."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


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

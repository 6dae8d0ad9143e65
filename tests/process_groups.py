"""The command in a group of processes, which the first of them stops by a signal."""

import os
import shutil
import signal
import socket
import time
from contextlib import contextmanager, suppress
from functools import partial

from forks import ended, forked

from bise_prune.app.progress import StageClock

SECONDS = 120.0


def _stop(number, *arguments, **options):
    os.killpg(os.getpgrp(), number)
    time.sleep(1)


def _stopping(stage, number):
    """Let this process signal its group in the middle of a stage."""
    began, epoch = StageClock.stage, StageClock.epoch

    @contextmanager
    def entered(clock, name):
        with began(clock, name):
            if name == stage != "search":
                _stop(number)
            yield

    def finished(clock, name, done, *figures):
        epoch(clock, name, done, *figures)
        if name == stage == "search" and done == 2:
            _stop(number)

    StageClock.stage, StageClock.epoch = entered, finished
    if stage == "publish":
        shutil.copyfile = partial(_stop, number)


def _joined(rank, leader, about, stopping):
    """Let this process be one of a group, whose first process is stopped somewhere."""
    while True:  # until the leader has made the group
        with suppress(PermissionError):
            os.setpgid(0, leader)
            break
        time.sleep(0.01)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.environ |= about
    if rank == 0 and stopping:
        _stopping(*stopping)


def stopped_group(arguments, log, processes=1, stopping=None):
    """Run the command in a group of processes, which a signal may stop in a stage; the exit code of the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        about = {name: str(value) for name, value in about.items()} | {"MASTER_ADDR": "127.0.0.1"}
        joined = partial(_joined, rank, children[0].pid if rank else 0, about if processes > 1 else {}, stopping)
        children.append(forked(arguments, log.with_suffix(f".{rank}") if rank else log, joined))
    codes = [ended(child, SECONDS) for child in children]
    return codes[0]

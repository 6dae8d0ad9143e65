"""Each signal at each stage, in one process and in two: the same command ends as if nothing had happened."""

import json
import os
import shutil
import signal
import socket
import time
from contextlib import contextmanager

import pytest
import torch
from cases import slow
from forks import ended, forked, lasting
from projects import FAST

from bise_prune import MaskSet
from bise_prune.app.progress import StageClock

STAGES = (
    "load", "identify", "search", "prune", "finetune", "ladder", "evaluate", "export", "measure", "publish",
)  # fmt: skip
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
SECONDS = 120.0


def _command(project, root):
    flags = [*FAST, "--unsupervised", "--search", "paper", "--no-early-stop", "--finetune", "1", "--no-sweep"]
    folders = ["--output", root / "out", "--triton", root / "models"]
    return [project / "net.pt", "--data", project / "data", *flags, *folders]


def _at(stage, number):
    """A function that makes a process signal its group in the middle of a stage."""

    def stop(*arguments, **options):
        os.killpg(os.getpgrp(), number)
        time.sleep(1)

    def before():
        began, epoch = StageClock.stage, StageClock.epoch

        @contextmanager
        def entered(clock, name):
            with began(clock, name):
                if name == stage != "search":
                    stop()
                yield

        def finished(clock, name, done, *figures):
            epoch(clock, name, done, *figures)
            if name == stage == "search" and done == 2:
                stop()

        StageClock.stage, StageClock.epoch = entered, finished
        if stage == "publish":
            shutil.copyfile = stop

    return before


def _run(arguments, log, processes=1, before=lambda: None):
    """Run the command in a group of processes; the exit code of the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def joined(rank, leader, then):
        def first():
            os.setpgid(0, leader)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            if processes > 1:
                about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
                os.environ |= {name: str(value) for name, value in about.items()} | {"MASTER_ADDR": "127.0.0.1"}
            then()

        return first

    leader = forked(arguments, log, joined(0, 0, before))
    others = [
        forked(arguments, log.with_suffix(f".{rank}"), joined(rank, leader, lambda: None))
        for rank in range(1, processes)
    ]
    code = ended(leader, SECONDS)
    for other in others:
        ended(other, SECONDS)
    return code


@pytest.fixture(scope="module")
def wholes(project, tmp_path_factory, one_thread):
    """Report and masks of the command that nobody stopped, by the number of processes."""
    pytest.importorskip("tritonclient")
    found = {}
    for processes in (1, 2):
        root = tmp_path_factory.mktemp("whole")
        assert _run(_command(project, root), root / "log", processes) == 0, (root / "log").read_text()
        found[processes] = root
    return found


def _results(root):
    report = lasting(json.loads((root / "out" / "report.json").read_text()))
    return report, MaskSet.load(root / "out" / "masks.safetensors").logits


CELLS = [(stage, number, processes) for processes in (1, 2) for number in SIGNALS for stage in STAGES]


@pytest.mark.parametrize(("stage", "number", "processes"), slow(*CELLS))
def test_the_same_command_goes_on(project, wholes, tmp_path, stage, number, processes):
    command, log = _command(project, tmp_path), tmp_path / "log"
    code = _run(command, log, processes, _at(stage, number))
    assert code == (-number if number == signal.SIGKILL else 130), log.read_text()
    assert "Traceback" not in log.read_text()
    assert not (tmp_path / "out" / "report.json").exists() or stage == "publish"
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())
    for path in (tmp_path / "out").glob("*.json"):
        json.loads(path.read_text())  # whole, whatever it is
    assert _run(command, log, processes) == 0, log.read_text()
    (report, masks), (whole, expected) = _results(tmp_path), _results(wholes[processes])
    assert report == whole
    assert all(torch.equal(masks[name], expected[name]) for name in expected)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["models", "out"]
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["net"]
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]

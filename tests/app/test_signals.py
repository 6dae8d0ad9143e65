"""Signals in real processes: while modules are imported, several at once, and after the end."""

import signal
import subprocess
import sys
import time

import pytest
from projects import FAST

COMMAND = [sys.executable, "-m", "bise_prune"]


def _heard():
    """A signal that is ignored where the tests run, as SIGINT is in the background, would be ignored in the command."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _started(project, output, *extra):
    arguments = [project / "net.pt", "--data", project / "data", "--output", output, *FAST, "--no-sweep", *extra]
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_heard
    )


def _until(process, word):
    """Read what a process says until it says a word."""
    lines = []
    while line := process.stderr.readline():
        lines.append(line)
        if word in line:
            break
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.6, 0.9, 1.2, 1.5, 1.8, 2.1, 2.4, 2.7, 3.0])
def test_while_modules_are_imported(project, tmp_path, seconds):
    process = _started(project, tmp_path / "out")
    time.sleep(seconds)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGTERM)  # the second before Python has come to the command
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_several_at_once(project, tmp_path, number):
    process = _started(project, tmp_path / "out", "--search", "paper", "--anneal-every", "60", "--no-early-stop")
    _until(process, "search 2/")
    for _ in range(4):
        process.send_signal(number)
        time.sleep(0.02)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.count("interrupted") == 1 and "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_the_end(project, tmp_path, number):
    """What is done is done."""
    process = _started(project, tmp_path / "out")
    process.stdout.readline()  # the verdict, after everything is written
    while "written to" not in (line := process.stdout.readline()) and line:
        pass
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode in (0, 130) and (tmp_path / "out" / "report.json").exists()


@pytest.mark.slow
def test_closed_streams(project, tmp_path):
    arguments = [project / "net.pt", "--data", project / "data", "--output", tmp_path / "out", *FAST, "--no-sweep"]
    closing = [sys.executable, "-c", "import os, sys; os.close(1); os.close(2); os.execvp(sys.argv[1], sys.argv[1:])"]
    assert subprocess.run([*closing, *COMMAND, *map(str, arguments)], check=False).returncode == 0
    assert (tmp_path / "out" / "report.json").exists()

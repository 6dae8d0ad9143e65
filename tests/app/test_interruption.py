"""Runs that are stopped, killed or fail, and go on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from forks import ended, forked, lasting, ready
from projects import FAST, fails, interrupted, long_command, run

from bise_prune import MaskSet
from bise_prune.app import cli, pipeline
from bise_prune.app.stages import export as exporting
from bise_prune.app.stages import prune as pruning
from bise_prune.app.stages import search as searching
from bise_prune.errors import BiseError, PruningError
from bise_prune.report.files import STATE_FILE


def test_an_interrupted_run_is_resumed(project, tmp_path, capsys, monkeypatch):
    search = searching.search
    command = [str(a) for a in (project / "net.pt", "--data", project / "data", "--output", tmp_path / "out", *FAST)]
    monkeypatch.setattr(searching, "search", interrupted(search, after=4))
    assert cli.main(command) == 130
    assert "takes the search up where it stopped" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == [STATE_FILE]
    epochs = []

    def counting(*arguments, on_epoch, **options):
        return search(*arguments, on_epoch=lambda record, total: epochs.append(record.epoch), **options)

    monkeypatch.setattr(searching, "search", counting)
    assert cli.main(command) == 0
    assert epochs == list(range(5, epochs[-1] + 1))  # the first four are not run again
    history = json.loads((tmp_path / "out" / "report.json").read_text())["history"]
    assert [epoch["epoch"] for epoch in history] == list(range(1, epochs[-1] + 1))
    assert not (tmp_path / "out" / STATE_FILE).exists()


def test_masks_survive_a_target_that_cannot_be_met(project, tmp_path, capsys, monkeypatch):
    def unreachable(*arguments, **options):
        raise PruningError("the nearest reachable is 0.5")

    monkeypatch.setattr(pruning, "prune", unreachable)
    out = tmp_path / "out"
    line = fails(capsys, project / "net.pt", "--data", project / "data", "--output", out, *FAST)
    assert f"the masks are kept; prune by them with --masks {out / 'masks.safetensors'}" in line
    assert sorted(path.name for path in out.glob("[!.]*")) == ["masks.safetensors", STATE_FILE]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_resumes_to_the_same_bits(project, tmp_path, undisturbed, number):
    output = tmp_path / "out"
    started = subprocess.Popen(long_command(project, output), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (output / STATE_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(random.Random(int(number)).random() * 0.3)
    started.send_signal(number)
    _, errors = started.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert started.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    left = {path.name for path in output.iterdir() if not path.name.startswith(".")}
    assert left <= {STATE_FILE, "masks.safetensors"}
    resumed = subprocess.run(long_command(project, output, "--resume"), capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    whole, again = (MaskSet.load(folder / "masks.safetensors") for folder in (undisturbed, output))
    assert all(torch.equal(whole.logits[name], again.logits[name]) for name in whole.logits)
    first, second = (json.loads((folder / "report.json").read_text()) for folder in (undisturbed, output))
    assert first["history"] == second["history"] and first["selection"] == second["selection"]
    assert first["slim"]["groups"] == second["slim"]["groups"]
    assert not (output / STATE_FILE).exists()


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_report(project, tmp_path, one_thread):
    moments, log = random.Random(1), tmp_path / "log"
    assert cli.main(long_command(project, tmp_path / "first")[3:]) == 0
    ready()
    began = time.monotonic()
    assert ended(forked(long_command(project, tmp_path / "timing")[3:], log), 600.0) == 0, log.read_text()
    duration = time.monotonic() - began
    undisturbed = tmp_path / "first"
    whole = lasting(json.loads((undisturbed / "report.json").read_text()))
    killed = 0
    for number in range(20):
        output = tmp_path / f"out-{number}"
        started = forked(long_command(project, output)[3:], log)
        killed += ended(started, moments.random() * duration) == -signal.SIGKILL
        for path in output.iterdir() if output.is_dir() else []:
            if path.suffix == ".json":
                json.loads(path.read_text())  # whole, whatever it is
        resume = ["--resume"] if (output / STATE_FILE).exists() else []
        if resume or not (output / "report.json").exists():
            assert cli.main([*long_command(project, output)[3:], *resume]) == 0
            assert not [path.name for path in output.iterdir() if path.name.startswith(".")]
        assert lasting(json.loads((output / "report.json").read_text())) == whole
        mine, theirs = (MaskSet.load(folder / "masks.safetensors") for folder in (output, undisturbed))
        assert all(torch.equal(mine.logits[name], theirs.logits[name]) for name in theirs.logits)
    assert killed >= 10


def test_a_run_that_failed_without_a_search_goes_on(wide, tmp_path, monkeypatch, capsys):
    extra = ["--criterion", "random", "--target-sparsity", "0.3"]
    out, export = tmp_path / "out", exporting.export_program

    def failing(*arguments, **options):
        raise BiseError("the power is out")

    monkeypatch.setattr(exporting, "export_program", failing)
    argv = ["net.pt", "--data", "data", "--output", out, *FAST, *extra]
    monkeypatch.chdir(wide)
    assert "the power is out" in fails(capsys, *argv)
    assert (out / "slim.onnx").exists() and not (out / "report.json").exists()
    monkeypatch.setattr(exporting, "export_program", export)
    assert run(wide, out, *extra)["slim"]["n"] == 45
    capsys.readouterr()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert "holds results already" in fails(capsys, *argv, code=2)


def test_a_run_that_is_stopped_while_it_publishes_goes_on(project, tmp_path, capsys, monkeypatch):
    pytest.importorskip("tritonclient")
    out, models = tmp_path / "out", tmp_path / "models"
    command = [project / "net.pt", "--data", project / "data", "--output", out, *FAST, "--triton", models]
    command = [str(argument) for argument in command]
    copyfile = shutil.copyfile

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", stopped)
    assert cli.main(command) == 130
    assert "takes the search up where it stopped" in capsys.readouterr().err
    assert (out / STATE_FILE).exists() and not list(models.iterdir())
    monkeypatch.setattr(shutil, "copyfile", copyfile)
    (tmp_path / ".models.bise-prune-partial-x").mkdir()  # as a kill leaves it
    assert cli.main([*command, "--resume"]) == 0
    assert [path.name for path in models.iterdir()] == ["net"] and not (out / STATE_FILE).exists()
    assert not (tmp_path / ".models.bise-prune-partial-x").exists()


def test_a_run_that_is_stopped_after_it_published_goes_on(project, tmp_path, monkeypatch):
    pytest.importorskip("tritonclient")
    out, models = tmp_path / "out", tmp_path / "models"
    command = [project / "net.pt", "--data", project / "data", "--output", out, *FAST, "--triton", models]
    publish = pipeline.publish

    def stopped(session):
        publish(session)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "publish", stopped)
    assert cli.main([str(argument) for argument in command]) == 130
    monkeypatch.setattr(pipeline, "publish", publish)
    assert cli.main([str(argument) for argument in command]) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_run_anywhere_in_one_line(project, tmp_path, capsys, monkeypatch, number):
    def signalled(*arguments, **options):
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(pipeline, "read_session", signalled)
    outside = signal.signal(number, signal.SIG_DFL)  # under nohup, one of them is ignored
    command = [project / "net.pt", "--data", project / "data", "--output", tmp_path / "out", *FAST]
    try:
        assert cli.main([str(argument) for argument in command]) == 130
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, outside)
    assert capsys.readouterr().err.count("\n") == 1


def test_a_signal_after_the_work_changes_nothing(monkeypatch, capsys):
    """It comes while the handlers from before are put back."""
    put, before, done = signal.signal, signal.getsignal(signal.SIGTERM), []

    def late(number, handler):
        if done:
            os.kill(os.getpid(), done.pop())
        return put(number, handler)

    def working(arguments):
        done.append(signal.SIGTERM)
        return 0

    monkeypatch.setattr(cli, "_code_of", working)
    monkeypatch.setattr(signal, "signal", late)
    assert cli.main([]) == 0
    assert not done and capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGTERM) == before


def test_code_of_the_network_cannot_end_a_run(project, tmp_path, capsys, monkeypatch):
    def leaving(*arguments, **options):
        print("among the results")
        sys.exit(0)

    monkeypatch.setattr(pipeline, "read_session", leaving)
    command = [project / "net.pt", "--data", project / "data", "--output", tmp_path / "out", *FAST]
    assert cli.main([str(argument) for argument in command]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "ended the run (exit 0)" in captured.err

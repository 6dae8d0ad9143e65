"""Each signal at each stage, in one process and in two: the same command ends as if nothing had happened."""

import json
import signal

import pytest
import torch
from cases import slow
from forks import lasting
from process_groups import stopped_group
from projects import FAST

from bise_prune import MaskSet

STAGES = (
    "load", "identify", "search", "prune", "finetune", "ladder", "evaluate", "export", "measure", "publish",
)  # fmt: skip
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)


def _command(project, root):
    flags = [*FAST, "--unsupervised", "--search", "paper", "--no-early-stop", "--finetune", "1", "--no-sweep"]
    folders = ["--output", root / "out", "--triton", root / "models"]
    return [project / "net.pt", "--data", project / "data", *flags, *folders]


@pytest.fixture(scope="module")
def wholes(project, tmp_path_factory, one_thread):
    """Report and masks of the command that nobody stopped, by the number of processes."""
    pytest.importorskip("tritonclient")
    found = {}
    for processes in (1, 2):
        root = tmp_path_factory.mktemp("whole")
        assert stopped_group(_command(project, root), root / "log", processes) == 0, (root / "log").read_text()
        found[processes] = root
    return found


def _results(root):
    report = lasting(json.loads((root / "out" / "report.json").read_text()))
    return report, MaskSet.load(root / "out" / "masks.safetensors").logits


CELLS = [(stage, number, processes) for processes in (1, 2) for number in SIGNALS for stage in STAGES]


@pytest.mark.parametrize(("stage", "number", "processes"), slow(*CELLS))
def test_the_same_command_goes_on(project, wholes, tmp_path, stage, number, processes):
    command, log = _command(project, tmp_path), tmp_path / "log"
    code = stopped_group(command, log, processes, (stage, number))
    assert code == (-number if number == signal.SIGKILL else 130), log.read_text()
    assert "Traceback" not in log.read_text()
    assert not (tmp_path / "out" / "report.json").exists() or stage == "publish"
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())
    for path in (tmp_path / "out").glob("*.json"):
        json.loads(path.read_text())  # whole, whatever it is
    assert stopped_group(command, log, processes) == 0, log.read_text()
    (report, masks), (whole, expected) = _results(tmp_path), _results(wholes[processes])
    assert report == whole
    assert all(torch.equal(masks[name], expected[name]) for name in expected)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["models", "out"]
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["net"]
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]

import json
import os
import shutil
import subprocess
import sys

import operators
import pytest
import torch
from awkward import masks_for
from cases import biased_data, torchvision_network
from filelock import FileLock
from paths import SHARED
from projects import FAST, long_command, write_project

from bise_prune import prune
from bise_prune.app import cli
from bise_prune.channels.edited_model import RewiredModel
from bise_prune.data import BatchLoader
from bise_prune.models.simple_convnet import SimpleConvNet
from bise_prune.tuning.vanilla import train_vanilla

if "PYTEST_XDIST_WORKER" in os.environ and "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)  # the other cores have tests of their own

collect_ignore_glob = ["servers/*", "fuzzing/fuzz.py"]  # no tests, and imports of what only they need


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Of ``-n auto``: each worker holds torch, and more than a few do not finish sooner."""
    return min(len(os.sched_getaffinity(0)), 4)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Workers that are done take tests from those that are not, as --dist worksteal says."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _operators_once():
    with pytest.MonkeyPatch.context() as patch:
        operators.make_once(patch)
        yield


@pytest.fixture(scope="module")
def one_thread():
    """As a copy of this process has, so that both round alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def mnist():
    folder = SHARED / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no MNIST in {folder.parent.name}/{folder.name} beside the project")
    return folder


@pytest.fixture(scope="module")
def trained():
    """A network that has learned the bias rather than the class."""
    torch.manual_seed(0)
    model = SimpleConvNet(3, widths=(6, 8, 10), kernel_size=3)
    loader = BatchLoader(biased_data(n=240, rho=0.9), 20, shuffle=True)
    train_vanilla(model, loader, torch.optim.Adam(model.parameters(), lr=0.01), epochs=6)
    return model


@pytest.fixture(scope="module")
def rewired():
    model, inputs = torchvision_network("shufflenet_v2_x0_5"), torch.randn(2, 3, 64, 64)
    result = prune(model, masks_for(model, inputs, "paper", 0, 0.5), inputs, joins="expand")
    assert isinstance(result.model, RewiredModel)
    return result.model, inputs


@pytest.fixture(scope="session")
def built_once(tmp_path_factory):
    """Folders that take long to make: one process builds each, and every process gets a copy of its own."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all workers

    def copy_of(name, build):
        source, finished = base / "built-once" / name, base / f"{name}.finished"
        with FileLock(base / f"{name}.lock"):
            if not finished.exists():
                source.mkdir(parents=True)
                build(source)
                finished.touch()
        return shutil.copytree(source, tmp_path_factory.mktemp("copy") / name)

    return copy_of


@pytest.fixture(scope="session")
def project(built_once):
    """A folder with images whose tint predicts their class, and a network trained on them."""
    return built_once("project", write_project)


@pytest.fixture(scope="session")
def wide(built_once):
    """With channels enough to meet a target within one point."""
    return built_once("wide", lambda root: write_project(root, widths=(64, 64)))


@pytest.fixture(scope="session")
def done(built_once):
    """A project after one run, and what the command printed."""

    def build(root):
        write_project(root)
        arguments = [root / "net.pt", "--data", root / "data", "--output", root / "out", *FAST, "--json"]
        command = [sys.executable, "-m", "bise_prune", *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        (root / "stdout.json").write_text(result.stdout)

    root = built_once("done", build)
    return root, (root / "stdout.json").read_text()


@pytest.fixture(scope="session")
def ran(built_once):
    """A project after a run with everything that can be asked for, and its report."""

    def build(root):
        write_project(root)
        arguments = [root / "net.pt", "--data", root / "data", "--output", root / "out", *FAST, "--half", "--int8"]
        arguments += ["--mi-weight", "5"]  # so that much is closed, and predictions change
        arguments += ["--image-input", "--format-tolerance", "1", "--triton", root / "models", "--opset", "21"]
        arguments += ["--min-worst-group", "0", "--log", f"tensorboard:{root / 'logs'}"]
        assert cli.main([str(argument) for argument in arguments]) == 0

    root = built_once("ran", build)
    return root, json.loads((root / "out" / "report.json").read_text())


@pytest.fixture(scope="session")
def undisturbed(built_once, project):
    """The results of ``long_command`` on the project, which nobody stopped."""

    def build(root):
        result = subprocess.run(long_command(project, root / "out"), capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr

    return built_once("undisturbed", build) / "out"

import os
from pathlib import Path

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the other cores have tests of their own

collect_ignore_glob = ["servers/*"]  # no tests, and a backend that imports what only its server has
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def mnist() -> Path:
    folder = SHARED / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no MNIST in {folder.parent.name}/{folder.name} beside the project")
    return folder

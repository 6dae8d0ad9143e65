"""Two processes that share a search against one process on the same batches."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from cases import network
from paths import ROOT
from projects import FAST, GRADUAL, write_project, write_spoiled
from two_processes import SETTINGS, work

from bise_prune import MaskSet, SearchConfig, search
from bise_prune.distributed import processes
from bise_prune.errors import ConfigError

WORKER = """
import glob, sys, torch
sys.path.insert(0, sys.argv[2])
from bise_prune.distributed import processes, world
from two_processes import work
with processes("cpu"):
    torch.save(work(), f"{sys.argv[1]}/{world()[0]}.pt")
names = [open(place).read() for place in glob.glob("/proc/self/task/*/comm")]
assert not [name for name in names if "gloo" in name], names  # they could end the interpreter by an abort
"""


def flat(results):
    for name, value in results.items():
        for key, tensor in value.items() if isinstance(value, dict) else [("", value)]:
            yield f"{name} {key}", tensor


def launch(tmp_path, *command, count=2):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--standalone"]
    return subprocess.run(
        [*launcher, *map(str, command)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


def test_two_processes_find_what_one_does(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    done = launch(tmp_path, tmp_path / "worker.py", tmp_path, ROOT / "tests")
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for (name, ours), (_, theirs), (_, alone) in zip(flat(first), flat(second), flat(work()), strict=True):
        assert torch.equal(ours, theirs), name  # the same bits in every process
        assert torch.allclose(ours, alone, rtol=0, atol=1e-6), name


@pytest.mark.slow
def test_the_command_runs_in_two_processes_and_one_of_them_writes(tmp_path):
    write_project(tmp_path)
    common = ["net.pt", "--data", "data", *FAST, "--finetune", "2", "--json"]
    shared = launch(tmp_path, "-m", "bise_prune", *common, "--output", "two")
    assert shared.returncode == 0, shared.stderr
    lines = [line for line in shared.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1 and json.loads(lines[0])["slim"]["n"] == 45
    alone = subprocess.run(
        [sys.executable, "-m", "bise_prune", *common, "--output", "one"], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    # In float32 sums of halves round otherwise, and masks may part; the test above compares them in float64.
    first, second = (record["history"][0] for record in (one, two))
    for figure in ("cross_entropy", "head_cross_entropy"):
        assert first[figure] == pytest.approx(second[figure], rel=0.05)
    assert one["dense"]["groups"] == two["dense"]["groups"]
    assert one["slim"]["unbiased_accuracy"] == pytest.approx(two["slim"]["unbiased_accuracy"], abs=0.2)
    assert all(check["passed"] for record in (one, two) for check in record["verification"].values())


@pytest.mark.slow
def test_norms_that_are_trained_before_the_search_are_those_of_the_first_process(tmp_path):
    write_spoiled(write_project(tmp_path), tmp_path)
    common = ["net.pt", "--data", "data", *GRADUAL, "--tune", "norms", "--output"]
    shared = launch(tmp_path, "-m", "bise_prune", *common, "two")
    assert shared.returncode == 0, shared.stderr
    alone = subprocess.run([sys.executable, "-m", "bise_prune", *common, "one"], cwd=tmp_path, check=False)
    assert alone.returncode == 0
    one, two = (MaskSet.load(tmp_path / name / "masks.safetensors") for name in ("one", "two"))
    assert one.trained_before and one.state and one.state.keys() == two.state.keys()
    assert all(torch.equal(one.state[name], tensor) for name, tensor in two.state.items())


def test_batch_norm_statistics_need_one_process(monkeypatch):
    from bise_prune.mask_search import assembly

    monkeypatch.setattr(assembly, "world", lambda: (0, 2))
    with pytest.raises(ConfigError, match="batchnorm 'statistics' needs the whole batch in one process"):
        search(network("simple_convnet"), [], SearchConfig(**SETTINGS, batchnorm="statistics"))


HANGING = """
import sys, time, torch
from datetime import timedelta
from bise_prune import distributed
distributed.PATIENCE = timedelta(seconds=3)
with distributed.processes("cpu"):
    if distributed.world()[0]:
        time.sleep(100)
    try:
        distributed.summed(torch.ones(1))
    except distributed.BiseError as error:
        print(error, flush=True)
        sys.exit(3)
"""


def test_a_process_that_hangs_ends_the_others(tmp_path):
    (tmp_path / "worker.py").write_text(HANGING)
    began = time.monotonic()
    done = launch(tmp_path, tmp_path / "worker.py")
    assert done.returncode != 0 and time.monotonic() - began < 90
    assert "another process has ended, or has not answered for 0.05 minutes (" in done.stdout


@pytest.mark.parametrize("size", ["2", "x", "-1"])
def test_an_environment_that_torchrun_did_not_make_is_named(monkeypatch, size):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(ConfigError, match=rf"WORLD_SIZE={size}"), processes("cpu"):
        pass

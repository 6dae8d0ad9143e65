"""Two processes that share a search against one process on the same batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import biased_data, network

from bise_prune import SearchConfig, search
from bise_prune.config import FinetuneConfig
from bise_prune.data import BatchLoader, BiasedDataset
from bise_prune.errors import ConfigError
from bise_prune.tuning.finetuning import finetune

SETTINGS = dict(anneal_every=2, min_temperature=0.2, head_epochs=3)

WORKER = """
import sys, torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[2])
from test_distributed import work
dist.init_process_group("gloo")
torch.save(work(), f"{sys.argv[1]}/{dist.get_rank()}.pt")
dist.destroy_process_group()
"""


def work():
    """A search and a finetuning; everything that must agree."""
    model = network("simple_convnet").double()
    data = biased_data(n=123)  # of the last batch, one process gets two samples and the other one
    data = BiasedDataset(data.inputs.double(), data.target, data.bias)
    val = BatchLoader(BiasedDataset(*(t[:61] for t in (data.inputs, data.target, data.bias))), 16)
    results = {}
    for name, options in {"plain": {}, "pooled": {"mi_pool": 60}, "uncached": {"cache_bytes": 0}}.items():
        found = search(model, BatchLoader(data, 20, shuffle=True, seed=1), SearchConfig(**SETTINGS, **options), val)
        results[name] = dict(found.last.logits)
        last = found.history[-1]
        results[f"{name} losses"] = torch.tensor(
            [last.objective, last.cross_entropy, last.mutual_information, last.head_cross_entropy, last.silent_share,
             last.validation.unbiased_accuracy, float(last.validation.n)], dtype=torch.float64,
        )  # fmt: skip
    tuned = finetune(network("mlp").double(), BatchLoader(data, 20, shuffle=True, seed=1), FinetuneConfig(epochs=2))
    results["finetuned"] = dict(tuned.model.state_dict())
    return results


def flat(results):
    for name, value in results.items():
        for key, tensor in value.items() if isinstance(value, dict) else [("", value)]:
            yield f"{name} {key}", tensor


def launch(tmp_path, *command, count=2):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
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
    done = launch(tmp_path, tmp_path / "worker.py", tmp_path, Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for (name, ours), (_, theirs), (_, alone) in zip(flat(first), flat(second), flat(work()), strict=True):
        assert torch.equal(ours, theirs), name  # the same bits in every process
        assert torch.allclose(ours, alone, rtol=0, atol=1e-6), name


def test_the_command_runs_in_two_processes_and_one_of_them_writes(tmp_path):
    from test_cli import FAST, write_project

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
    assert one["selection"]["epoch"] == two["selection"]["epoch"]
    assert one["sparsity"] == pytest.approx(two["sparsity"], abs=1e-6)
    assert one["slim"]["unbiased_accuracy"] == pytest.approx(two["slim"]["unbiased_accuracy"], abs=0.05)


def test_batch_norm_statistics_need_one_process(monkeypatch):
    from bise_prune.mask_search import assembly

    monkeypatch.setattr(assembly, "world", lambda: (0, 2))
    with pytest.raises(ConfigError, match="batchnorm 'statistics' needs the whole batch in one process"):
        search(network("simple_convnet"), [], SearchConfig(**SETTINGS, batchnorm="statistics"))

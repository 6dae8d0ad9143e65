"""On a GPU: what the tests show on a CPU, by the library, the command and the tools."""

import copy
import dataclasses
import json

import pytest
import torch
from cases import NETWORKS, biased_data, biased_loader, images, network, random_masks
from projects import FAST, run, tool, write_project
from tiny_benchmark import tiny

from bise_prune import SearchConfig, apply_masks, evaluate, fuse_batchnorm, measure, prune, search
from bise_prune.app import cli
from bise_prune.config import STRONG, Budget
from bise_prune.data import BatchLoader
from bise_prune.mask_search import SearchInterrupted
from bise_prune.metrics.cost import measure_latency
from bise_prune.tuning.finetuning import finetune
from bise_prune.tuning.ladder import Ladder, Rung

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

ON_GPU = [part if part != "cpu" else "cuda" for part in FAST]
ALIGNED = torch.arange(3)[:, None]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return write_project(tmp_path_factory.mktemp("project"), (24, 48))


@pytest.mark.parametrize("method", ["gradual", "paper"])
@pytest.mark.parametrize("name", ["simple_convnet", "resnet", "mlp"])
def test_a_search_finds_about_the_masks_of_a_cpu(name, method):
    model, loader = network(name), biased_loader(n=240)
    short = {"anneal_every": 1, "min_temperature": 0.4, "head_epochs": 2} if method == "paper" else {}
    config = SearchConfig(method=method, **short, budget=Budget(share=0.6) if method == "gradual" else None)
    on_gpu = search(copy.deepcopy(model).cuda(), loader, config, loader)
    on_cpu = search(model, loader, config, loader)
    closed = [sum(int((~keep).sum()) for keep in found.last.keep.values()) for found in (on_gpu, on_cpu)]
    assert closed[0] == pytest.approx(closed[1], abs=3)
    slim = prune(model, on_gpu.last, images())
    assert slim.verification.passed
    latency = measure_latency([slim.model], images(), runs=3, device="cuda")[0]
    assert latency.device == torch.cuda.get_device_name() and latency.median_ms > 0


def test_a_search_by_cuda_graphs_runs():
    config = SearchConfig(method="paper", anneal_every=1, min_temperature=0.4, head_epochs=2, cuda_graphs=True)
    found = search(network("simple_convnet").cuda(), biased_loader(), config)
    assert found.history


def test_an_interrupted_search_goes_on(tmp_path):
    model, state = network("simple_convnet").cuda(), tmp_path / "state.pt"
    loader, asked = biased_loader(n=240), 0

    def interrupted():
        nonlocal asked
        asked += 1
        return asked == 5

    with pytest.raises(SearchInterrupted):
        search(model, loader, SearchConfig(), loader, state_path=state, interrupted=interrupted)
    went_on = search(model, loader, SearchConfig(), loader, state_path=state)
    whole = search(model, loader, SearchConfig(), loader)
    assert len(went_on.history) == len(whole.history)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_removal_is_exact(name):
    model = network(name).cuda()
    inputs = images().cuda()
    result = prune(model, random_masks(model, inputs, "tied"), inputs)
    masked = apply_masks(model, random_masks(model, inputs, "tied"), inputs)
    with torch.no_grad():
        assert torch.allclose(masked(inputs), result.model(inputs), atol=1e-4)
    assert measure(result.model, inputs).flops <= measure(model, inputs).flops
    fuse_batchnorm(result.model, inputs)


def test_rungs_and_finetuning():
    fit, choose = (biased_data(n=600, rho=0.34, seed=seed) for seed in (1, 2))
    model = network("resnet")
    ladders = [Ladder(each, fit, choose, ALIGNED, again=choose) for each in (model, copy.deepcopy(model).cuda())]
    on_cpu, on_gpu = (ladder.evaluations(choose, ALIGNED) for ladder in ladders)
    for rung in Rung:
        assert on_gpu[rung].unbiased_accuracy == pytest.approx(on_cpu[rung].unbiased_accuracy, abs=0.05)
    config = dataclasses.replace(STRONG, epochs=2)
    tuned = finetune(
        copy.deepcopy(model).cuda(), BatchLoader(fit, 50, shuffle=True), config, BatchLoader(choose, 200),
        aligned=ALIGNED, more=choose, teacher=copy.deepcopy(model).cuda(),
    )  # fmt: skip
    assert next(tuned.model.parameters()).is_cuda and len(tuned.history) == 3
    assert evaluate(tuned.model, BatchLoader(choose, 200), ALIGNED).n == 600


@pytest.mark.parametrize(
    "extra",
    [
        [], ["--tune", "shift"], ["--tune", "norms"], ["--tune", "head"], ["--tune", "all"], ["--unsupervised"],
        ["--search", "paper"], ["--target-flops", ".7"], ["--round-to", "auto"],
        ["--criterion", "taylor", "--target-flops", ".7"], ["--targets", ".3,.5"], ["--finetune", "1"],
        ["--image-input"], ["--precision", "bfloat16"],
    ],
    ids=lambda extra: " ".join(extra) or "defaults",
)  # fmt: skip
def test_the_command(extra, project, tmp_path):
    output = tmp_path / "out"
    arguments = [project / "net.pt", "--data", project / "data", "--output", output, *ON_GPU, *extra]
    assert cli.main([str(argument) for argument in arguments]) == 0
    report = output / "report.json"
    if report.exists():
        record = json.loads(report.read_text())
        assert all(check["passed"] for check in record["verification"].values())
        assert record["environment"]["device"] == torch.cuda.get_device_name()


def test_a_run_goes_by_the_masks_of_one_on_a_cpu(project, tmp_path):
    first = run(project, tmp_path / "cpu")
    masks = str(tmp_path / "cpu" / "masks.safetensors")
    second = run(project, tmp_path / "gpu", "--device", "cuda", "--masks", masks)
    assert first["slim"]["params"] == second["slim"]["params"]
    assert first["slim"]["unbiased_accuracy"] == pytest.approx(second["slim"]["unbiased_accuracy"], abs=0.03)


def test_diagnose_and_the_dry_run(project, tmp_path):
    arguments = [str(project / "net.pt"), "--data", str(project / "data"), "--device", "cuda"]
    assert cli.main(["diagnose", *arguments]) == 0
    assert cli.main([*arguments, "--output", str(tmp_path / "out"), "--dry-run"]) == 0


def test_the_latency_report_times_both_devices(project, monkeypatch, capsys):
    arguments = [str(project / "net.pt"), "--devices", "cpu", "cuda", "--runtimes", "torch", "--runs", "3"]
    assert tool("latency_report", monkeypatch).main(arguments) == 0
    assert torch.cuda.get_device_name() in capsys.readouterr().out


@pytest.mark.parametrize("method", ["vanilla", "bise", "finetuned", "gradual", "rungs"])
def test_a_benchmark(method, tmp_path):
    from tables import cases, methods

    case = cases.Case(tiny(), 0.9, 0, tmp_path, tmp_path, "cuda", cases.Clock())
    assert methods.METHODS[method](case)

"""Target latencies: networks are made until one takes the time that was asked for; here the time is made up."""

import json
import math

import onnx
import pytest
from cases import random_masks, slow
from projects import fails, run, write_project

from bise_prune.app.progress import StageClock
from bise_prune.app.reading import read_session
from bise_prune.app.stages import latency, widths
from bise_prune.config import RunConfig
from bise_prune.errors import PruningError
from bise_prune.export.runtime import ON_CPU, TimedFile


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return write_project(tmp_path_factory.mktemp("project"), (24, 48))


@pytest.fixture
def timed(monkeypatch):
    """The time of a file is a share that is always there, and the rest by the square root of its weights' number."""

    def as_if(fixed):
        asked = []

        def weights(path):
            return sum(math.prod(tensor.dims) for tensor in onnx.load(path).graph.initializer)

        def timings(paths, data, batch_sizes, device):
            asked.append(len(paths) - 1)
            times = [fixed + (1 - fixed) * math.sqrt(weights(path) / weights(paths[0])) for path in paths]
            return [TimedFile({size: [time] * 9 for size in batch_sizes}, ON_CPU, 1) for time in times]

        monkeypatch.setattr(widths, "timed_files", timings)
        return asked

    return as_if


@pytest.fixture
def made(project, tmp_path):
    """Makes the network of random masks for a target latency."""

    def make(asked, round_to=1, is_searched=True):
        output = tmp_path / f"out-{asked}"
        data = str(project / "data")
        config = RunConfig(
            checkpoint=project / "net.pt", output=output, data=data, device="cpu", target_latency=asked,
            round_to=round_to, batch_size=20,
        )  # fmt: skip
        session = read_session(config, StageClock(None), tmp_path)
        masks = random_masks(session.dense, session.example, "tied")
        return latency.with_target_latency(session, masks, is_searched)

    return make


@pytest.mark.parametrize(
    ("asked", "round_to", "is_searched"),
    [
        (0.5, 1, False), (0.8, 1, True), (0.5, "auto", True), (0.8, "auto", False),
        *slow((0.5, 1, True), (0.8, 1, False), (0.5, "auto", False), (0.8, "auto", True)),
    ],
)  # fmt: skip
def test_the_latency_that_was_asked_for_is_met(asked, round_to, is_searched, made, timed):
    tries = timed(0.1)
    result, trials = made(asked, round_to, is_searched)
    assert result.plan.target["kind"] == "latency" and result.plan.target["asked"] == pytest.approx(1 - asked)
    assert 1 - result.plan.target["reached"] == pytest.approx(asked, abs=0.05)
    assert len(tries) <= 6 and result.verification.passed and trials


def test_the_next_try_lies_on_a_line_through_the_nearest_ones():
    known = [(1.0, 1.0), (0.5, 0.8)]
    assert latency._next_share(known, 0.9) == pytest.approx(0.75)
    assert latency._next_share(known, 0.7) == pytest.approx(0.25)
    assert latency._next_share(known, 0.4) == pytest.approx(0.1)  # and not below a fifth of the last one
    assert latency._next_share([*known, (0.25, 0.3)], 0.4) == pytest.approx(0.3)
    assert latency._next_share([(1.0, 1.0), (0.5, 1.1)], 0.4) == pytest.approx(0.25)


def test_channels_are_ranked_where_the_masks_of_a_search_leave_no_network(made, timed, monkeypatch):
    timed(0.0)
    prune = latency.prune

    def failing(*arguments, target_flops, **options):
        if target_flops is None:
            raise PruningError("a dead network")
        return prune(*arguments, target_flops=target_flops, **options)

    monkeypatch.setattr(latency, "prune", failing)
    assert 1 - made(0.6)[0].plan.target["reached"] == pytest.approx(0.6, abs=0.05)


def test_a_run_goes_by_it(project, timed, tmp_path):
    timed(0.0)
    run(project, tmp_path / "first")
    masks = tmp_path / "first" / "masks.safetensors"
    record = run(project, tmp_path / "out", "--masks", str(masks), "--target-latency", "0.8")
    reached = json.loads((tmp_path / "out" / "plan.json").read_text())["target"]["reached"]
    assert 1 - reached == pytest.approx(0.8, abs=0.05)
    assert not any("the target" in warning for warning in record["warnings"])


def test_a_latency_out_of_reach_is_an_error(project, timed, tmp_path, capsys):
    timed(0.9)
    line = fails(
        capsys, project / "net.pt", "--data", project / "data", "--output", tmp_path / "out", "--target-latency", "0.5",
        "--device", "cpu", "--round-to", "1",
    )  # fmt: skip
    assert "takes 50% of the dense network's latency in onnxruntime: the nearest takes 9" in line
    assert "the masks are kept" in line

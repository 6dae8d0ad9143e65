"""Warnings of a report: a slim network that is slower says so first, and what to do about it."""

import json
from types import SimpleNamespace

import pytest
from projects import FAST, run

from bise_prune.app import cli, pipeline
from bise_prune.export.runtime import ON_CPU, TimedFile
from bise_prune.metrics.cost import Latency, LatencyRatio
from bise_prune.pruning.widths import WidthTrial
from bise_prune.report.warnings import _of_speed, _of_target


def as_if_slower(monkeypatch, ratio):
    """Measurements by which the slim network takes so many times as long as the dense one."""

    def timings(paths, data, batch_sizes, device):
        return [TimedFile({size: [time] * 9 for size in batch_sizes}, ON_CPU, 1) for time in (1.0, ratio)]

    monkeypatch.setattr(pipeline, "timed_files", timings)


def test_a_slower_network_says_so_first(project, tmp_path, monkeypatch, capsys):
    as_if_slower(monkeypatch, 1.25)
    out = tmp_path / "out"
    record = run(project, out)
    assert record["latency_ratio"]["batch_1"] == {"median": 1.25, "low": 1.25, "high": 1.25, "is_slower": True}
    warning = (
        "the slim network is slower than the dense one: in onnxruntime it takes 1.25 times as long at batch 1 and 1.25 "
        "times as long at batch 16; --round-to auto, which measures several widths, takes one that is not"
    )
    assert record["warnings"][0] == warning
    printed = capsys.readouterr().out
    assert printed.startswith(f"warning: {warning}\n") and printed.count("is slower than the dense one") == 1
    shown = warning[0].upper() + warning[1:]
    page, card = (out / "report.html").read_text(), (out / "README.md").read_text()
    assert f"What to know</h2><ul>\n<li>{shown}." in page
    assert f"## Limits\n\n- {shown}." in card


def test_the_points_of_a_frontier_that_are_slower_are_told_first(wide, tmp_path, monkeypatch, capsys):
    as_if_slower(monkeypatch, 2.0)
    monkeypatch.setattr(pipeline, "check_above_chance", lambda *arguments: None)  # what is left is worth nothing
    run(wide, tmp_path / "out", "--criterion", "magnitude", "--targets", "0.3,0.5")
    _, first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("warning: sparsity-0.3: the slim network is slower than the dense one")
    assert second.startswith("warning: sparsity-0.5: the slim network is slower than the dense one")


def test_the_speed_gate_takes_the_files_at_batch_16(project, tmp_path, monkeypatch):
    as_if_slower(monkeypatch, 0.5)
    arguments = [project / "net.pt", "--data", project / "data", "--output", tmp_path / "out", *FAST]
    assert cli.main([str(a) for a in (*arguments, "--min-speedup", "2.1")]) == 3
    (gate,) = json.loads((tmp_path / "out" / "report.json").read_text())["gates"]
    assert gate == {"name": "min_speedup", "asked": 2.1, "value": 2.0, "passed": False}


def trial(multiple, ratio):
    return WidthTrial(multiple, "expand", 0.5, True, {16: LatencyRatio(ratio, ratio, ratio, 16)})


def results(ratio, trials=(), device="cpu", layers=("conv",), **plan):
    latency = Latency(1.0, 1.0, 1.0, 9, 16, ON_CPU, 1)
    about = {"target": {}, "edits": (), "rounding": {}, "layers": layers, **plan}
    return SimpleNamespace(
        subject=SimpleNamespace(device=device),
        latency_ratios=[LatencyRatio(ratio, ratio, ratio, 16)],
        trials=trials,
        pruned=SimpleNamespace(plan=SimpleNamespace(**about)),
        masks=SimpleNamespace(num_closed=3, num_channels=8),
        slim=SimpleNamespace(latencies={16: latency}),
    )


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ({"trials": [trial(1, 1.5), trial(4, 0.9), trial(16, 0.8)]}, "--round-to 4 or 16 was not slower"),
        ({"trials": []}, "--round-to auto, which measures several widths, takes one that is not"),
        ({"trials": [trial(1, 1.5)], "target": {"kind": "flops"}}, "without a target, layers may keep more channels"),
        ({"trials": [trial(1, 1.5)], "edits": ("add",)}, "search with --placement tied"),
        ({"trials": [trial(1, 1.5)]}, "measure again when the machine is idle"),
    ],
)
def test_what_to_do_about_a_slower_network(given, advice):
    (warning,) = _of_speed(results(1.5, **given))
    assert warning.endswith(f"it takes 1.50 times as long at batch 16; {warning.rpartition('; ')[2]}")
    assert advice in warning


def test_a_network_that_is_as_fast_gives_no_warning():
    assert list(_of_speed(results(0.9, trials=[trial(1, 0.9)]))) == []


def test_full_widths_and_a_gpu_that_was_not_used_are_told():
    (warning,) = _of_speed(results(1.0, trials=[trial(1, 1.2), trial(32, 1.0)], layers=()))
    assert "no channel was removed, although the masks close 3 of 8" in warning
    (warning,) = _of_speed(results(0.9, device="some GPU"))
    assert "cannot use the GPU: latencies, and the widths chosen by them, are those of the CPU" in warning


def test_a_target_that_was_missed_is_told():
    target = {"kind": "flops", "of": "removal of FLOPs", "asked": 0.4, "reached": 0.405}
    assert list(_of_target(results(0.62, target=target))) == []
    (warning,) = _of_target(results(0.62, target={**target, "reached": 0.43}))
    assert warning == "the target (removal of FLOPs 40.0%) was not met: by whole channels it came to 43.0%"

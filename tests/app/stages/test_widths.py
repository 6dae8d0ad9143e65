"""Widths that a run chooses by measured latencies; here the measurements are made up."""

import json
from types import SimpleNamespace

import pytest
import torch
from cases import images, network, random_masks
from projects import run

from bise_prune import MaskSet, gate_sites, load_model, prune
from bise_prune.app import cli, pipeline
from bise_prune.app.stages import widths
from bise_prune.export.runtime import ON_CPU, TimedFile

AUTO = ("--round-to", "auto")


@pytest.fixture
def timed(monkeypatch):
    """Sets the ratios of networks to the dense one, in the order in which they are tried; the last one repeats."""

    def as_if(*ratios):
        left, asked = list(ratios), []

        def timings(paths, data, batch_sizes, device):
            asked.extend(paths[1:])
            found = [1.0] + [left.pop(0) if len(left) > 1 else left[0] for _ in paths[1:]]
            return [TimedFile({size: [ratio] * 9 for size in batch_sizes}, ON_CPU, 1) for ratio in found]

        monkeypatch.setattr(widths, "timed_files", timings)
        # What these tests prune by may be worth nothing; that has tests of its own.
        monkeypatch.setattr(pipeline, "check_above_chance", lambda *arguments: None)
        return asked

    return as_if


def masks_closing(count, wide, folder):
    """The option for masks of the wide project, which has two layers of 64 channels, with so many of each closed."""
    logits = torch.where(torch.arange(64) < count, -1.0, 1.0)
    sites = gate_sites(load_model(wide / "net.pt")[0], torch.zeros(2, 3, 8, 8))
    MaskSet({site.name: logits for site in sites}).save(folder / "masks.safetensors")
    return ["--masks", folder / "masks.safetensors"]


def tried(record):
    return [trial["multiple"] for trial in record["widths"]]


def chosen(record):
    (multiple,) = [trial["multiple"] for trial in record["widths"] if trial["chosen"]]
    assert multiple == record["plan"]["rounding"].get("multiple", 1)
    return multiple


def test_the_fastest_of_several_multiples_is_delivered(wide, tmp_path, timed):
    asked = timed(1.5, 0.8, 0.7, 0.9)
    masks = masks_closing(21, wide, tmp_path)  # 43 of 64 channels stay
    record = run(wide, tmp_path / "out", *masks, *AUTO)
    assert tried(record) == [1, 4, 8, 32] and len(asked) == 4  # 16 gives the widths that 8 gives
    assert chosen(record) == 8
    assert [layer["slim"] for layer in record["layers"]] == [48, 48]
    assert [trial["latency_ratio_batch_16"] for trial in record["widths"]] == [1.5, 0.8, 0.7, 0.9]
    assert [trial["is_as_fast"] for trial in record["widths"]] == [False, True, True, True]
    left = [trial["flops_left"] for trial in record["widths"]]
    assert left == sorted(left) and record["verification"]["slim_against_masked"]["passed"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Widths that were tried" in page and "Rounded up to a multiple of" in page


def test_without_a_target_no_slower_network_is_delivered(wide, tmp_path, timed):
    timed(1.5, 1.4, 1.3, 1.2, 1.0)
    masks = masks_closing(21, wide, tmp_path)
    narrow = run(wide, tmp_path / "narrow", *masks, "--round-to", "1")
    record = run(wide, tmp_path / "out", *masks, *AUTO)
    assert tried(record) == [1, 4, 8, 32] and chosen(record) == 32  # which is the full width: no coarser one is left
    assert record["sparsity"] == 0 and record["layers"] == []
    assert record["slim"]["groups"] == narrow["slim"]["groups"]  # the function is that of the masks all the same
    assert any("no channel was removed, although the masks close 42 of 128" in w for w in record["warnings"])


def test_coarser_multiples_follow_as_long_as_all_are_slower(wide, tmp_path, timed):
    timed(1.5, 1.4, 1.3, 1.2, 1.1, 0.9)
    record = run(wide, tmp_path / "out", *masks_closing(40, wide, tmp_path), *AUTO)  # 24 of 64 channels stay
    assert tried(record) == [1, 16, 64] and chosen(record) == 64


def test_a_target_is_kept_if_that_is_no_slower(wide, tmp_path, timed):
    timed(0.9, 0.8, 0.5)
    target = ["--criterion", "magnitude", "--target-flops", "0.5"]
    record = run(wide, tmp_path / "out", *target, *AUTO)
    meeting = [trial["multiple"] for trial in record["widths"] if trial["meets_target"]]
    left = record["slim"]["flops"] / record["dense"]["flops"]
    assert chosen(record) in meeting and left == pytest.approx(0.5, abs=0.01)


def test_a_target_that_rounding_loses_is_told(wide, tmp_path, timed):
    timed(1.5, 1.5, 1.5, 0.5)
    target = ["--criterion", "magnitude", "--target-flops", "0.45"]
    record = run(wide, tmp_path / "out", *target, *AUTO)
    last = record["widths"][-1]
    assert last["chosen"] and not last["meets_target"]
    (told,) = [warning for warning in record["warnings"] if "was not met" in warning]
    reached = record["plan"]["target"]["reached"]
    assert f"it came to {reached:.1%}; --round-to 1 does not round" in told
    assert reached == pytest.approx(1 - record["slim"]["flops"] / record["dense"]["flops"], abs=0.01)


def test_given_widths_and_plans_are_not_measured(wide, tmp_path, timed):
    asked = timed(1.0)
    masks = masks_closing(21, wide, tmp_path)
    record = run(wide, tmp_path / "out", *masks, "--round-to", "16")
    assert record["widths"] == [] and [layer["slim"] for layer in record["layers"]] == [48, 48]
    arguments = [wide / "net.pt", "--data", wide / "data", "--device", "cpu", "--output", tmp_path / "again"]
    assert cli.main([str(a) for a in (*arguments, "--plan", tmp_path / "out" / "plan.json")]) == 0
    again = json.loads((tmp_path / "again" / "report.json").read_text())
    assert again["widths"] == [] and again["layers"] == record["layers"] and not asked


def in_lowering(joins, *multiples):
    return [(joins, multiple) for multiple in multiples]


@pytest.mark.parametrize(
    ("joins", "ratios", "expected"),
    [
        ("auto", [0.9, 0.7, 0.8], [*in_lowering("expand", 1, 4, 8, 16), ("intersection", 4)]),
        ("auto", [1.2], [*in_lowering("expand", 1, 4, 8, 16), *in_lowering("intersection", 1, 4, 8)]),
        ("intersection", [0.9], in_lowering("intersection", 1, 4, 8, 16)),
    ],
    ids=["auto", "all slower", "given"],
)
def test_where_masks_disagree_the_other_lowering_is_tried_as_well(timed, tmp_path, joins, ratios, expected):
    model, inputs = network("resnet"), images()
    masks = random_masks(model, inputs, "paper")
    config = SimpleNamespace(joins=joins, target=None, fuse=True, opset=None)
    session = SimpleNamespace(
        config=config, example=inputs, held_out=("test", None), device=torch.device("cpu"),
        dense_file=tmp_path / "dense.onnx",
    )  # fmt: skip
    timed(*ratios)

    def make(lowering, multiple):
        return prune(model, masks, inputs, joins=lowering, round_to=multiple)

    result, trials = widths.with_measured_widths(session, make)
    assert [(trial.joins, trial.multiple) for trial in trials] == expected
    assert (result.plan.joins, result.plan.rounding.get("multiple", 1)) in expected

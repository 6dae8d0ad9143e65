"""Targets, roundings, lowerings, and a hand count."""

import types

import pytest
import torch
from cases import images, network, random_masks, share_masks, slow, torchvision_network
from torch import nn

from bise_prune import MaskSet, measure, prune
from bise_prune.errors import ConfigError
from bise_prune.models import build_model

# -- the hand count --------------------------------------------------------------------------------


def open_channels(masks, name, width):
    return int((masks.logits[name] >= 0).sum()) if name in masks.logits else width


def resnet18_by_hand(masks, size, joins):
    """MACs of ResNet-18's convolutions and head when each reads and writes what the lowering leaves it."""
    places, total = (size // 2) ** 2, 0
    total += places * 64 * 3 * 49
    places //= 4
    stream = torch.ones(64, dtype=torch.bool)  # the stem has no gate
    for stage, width in enumerate((64, 128, 256, 512), 1):
        outputs = [masks.logits[f"layer{stage}.{block}.conv2"] >= 0 for block in range(2)]
        members = outputs if stage > 1 else [stream, *outputs]
        shared = torch.stack(members).any(0)
        for block in range(2):
            inner = open_channels(masks, f"layer{stage}.{block}.conv1", width)
            stride = stage > 1 and block == 0
            places //= 4 if stride else 1
            kept = outputs[block] if joins == "expand" else shared
            total += places * 9 * int(stream.sum()) * inner + places * 9 * inner * int(kept.sum())
            total += places * int(stream.sum()) * int(kept.sum()) if stride else 0
            stream = kept
    return total + int(stream.sum()) * 10


@pytest.mark.parametrize(("share", "expand", "intersection"), [(0.3, 0.55, 0.70), (0.5, 0.33, 0.47), (0.7, 0.18, 0.27)])
def test_resnet18_in_the_papers_placement_costs_what_the_hand_count_says(share, expand, intersection):
    model, inputs = torchvision_network("resnet18", 10), torch.randn(1, 3, 224, 224)
    masks = share_masks(model, inputs, share)
    for joins, bound in (("expand", expand), ("intersection", intersection)):
        result = prune(model, masks, inputs, joins=joins, batch_sizes=(1,))
        dense, slim = result.plan.macs
        assert dense == resnet18_by_hand(MaskSet({k: v.abs() for k, v in masks.logits.items()}), 224, joins)
        assert slim == resnet18_by_hand(masks, 224, joins)
        assert slim / dense <= bound


# -- lowerings -------------------------------------------------------------------------------------


def test_auto_takes_the_faster_lowering_and_records_both_times():
    model, inputs = network("resnet"), images()
    plan = prune(model, random_masks(model, inputs, "paper"), inputs).plan
    assert set(plan.costs_ms) == {"intersection", "expand"}
    slowest, fastest = max(plan.costs_ms.values()), min(plan.costs_ms.values())
    assert slowest <= 1.05 * fastest or plan.joins == min(plan.costs_ms, key=plan.costs_ms.get)


@pytest.mark.parametrize(
    ("expand", "intersection", "taken"), [(1.04, 1, "expand"), (1, 1.2, "expand"), (1.2, 1, "intersection")]
)
def test_of_lowerings_that_are_as_fast_the_smaller_is_taken(monkeypatch, expand, intersection, taken):
    times = [types.SimpleNamespace(median_ms=ms) for ms in (expand, intersection)]
    monkeypatch.setattr("bise_prune.pruning.exact.measure_latency", lambda *_, **__: times)
    model, inputs = network("resnet"), images()
    result = prune(model, random_masks(model, inputs, "paper"), inputs)
    assert (result.plan.joins, result.plan.costs_ms) == (taken, {"expand": expand, "intersection": intersection})


def test_agreeing_gates_need_no_lowering():
    model, inputs = network("resnet"), images()
    result = prune(model, random_masks(model, inputs, "tied"), inputs)
    assert (result.plan.joins, result.plan.edits, result.plan.costs_ms) == ("dense", (), {})
    assert type(result.model) is type(model)


# -- targets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("joins", ["intersection", "expand"])
@pytest.mark.parametrize("left", [0.3, *slow(0.7)])
def test_target_flops_are_met_as_measured(left, joins):
    model, inputs = torchvision_network("resnet18"), images(size=32)
    masks = share_masks(model, inputs, 0.5)
    result = prune(model, masks, inputs, target_flops=left, joins=joins)
    assert measure(result.model, inputs).flops / measure(model, inputs).flops == pytest.approx(left, abs=0.02)
    closed = torch.cat([logits[~result.plan.keep[name]] for name, logits in masks.logits.items()])
    spared = torch.cat([logits[result.plan.keep[name]].sort().values[:-1] for name, logits in masks.logits.items()])
    assert closed.max() <= spared.min()  # lowest m first


def test_target_latency_is_bisected_over_the_ranking(monkeypatch):
    from bise_prune.pruning import exact

    # Time taken as the square root of the parameters, so that the test does not depend on the machine.
    def ratio(dense, slim, inputs):
        return (sum(p.numel() for p in slim.parameters()) / sum(p.numel() for p in dense.parameters())) ** 0.5

    monkeypatch.setattr(exact, "time_ratio", ratio)
    model, inputs = build_model("simple_convnet", 10).eval(), images(size=28)
    result = prune(model, share_masks(model, inputs, 0.5), inputs, target_latency=0.6)
    assert 1 - result.plan.sparsity == pytest.approx(0.36, abs=0.02)


def test_a_latency_can_be_measured():
    model, inputs = build_model("simple_convnet", 10).eval(), images(size=28)
    slim = prune(model, share_masks(model, inputs, 0.7), inputs).model
    from bise_prune.pruning.exact import time_ratio

    assert 0 < time_ratio(model, slim, inputs) < 10


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"target_flops": 1.5}, "target_flops = 1.5"),
        ({"target_flops": 0.5, "target_latency": 0.5}, "give one target"),
        ({"joins": "scatter"}, "unknown joins 'scatter'"),
        ({"engine": "mine"}, "unknown engine 'mine'"),
        ({"round_to": 0}, "round_to = 0"),
        ({"round_fill": "worst"}, "round_fill = 'worst'"),
    ],
)
def test_bad_arguments_are_named(options, complaint):
    model, inputs = network("mlp"), images()
    with pytest.raises(ConfigError, match=complaint):
        prune(model, random_masks(model, inputs, "tied"), inputs, **options)


# -- rounding --------------------------------------------------------------------------------------


def widths(model):
    return {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}


@pytest.mark.parametrize("fill", ["zero", "best"])
@pytest.mark.parametrize("multiple", [4, 8, 16])
def test_widths_are_rounded_up_and_the_report_says_what_that_gave_back(multiple, fill):
    model, inputs = torchvision_network("resnet18"), images(size=32)
    masks = share_masks(model, inputs, 0.5, "tied")
    bare = prune(model, masks, inputs)
    result = prune(model, masks, inputs, round_to=multiple, round_fill=fill)
    before, after = widths(bare.model), widths(result.model)
    assert all(after[name] == -(-before[name] // multiple) * multiple for name in before)
    given = result.plan.rounding
    assert given["params_given_back"] == result.plan.params[1] - bare.plan.params[1] > 0
    assert given["macs_given_back"] == result.plan.macs[1] - bare.plan.macs[1] > 0
    reopened = sum(int((result.plan.keep[name] & ~mask).sum()) for name, mask in masks.keep.items())
    assert given["reopened"] == reopened and (reopened > 0) == (fill == "best")
    if fill == "zero":  # the function is the masks' own
        assert torch.allclose(result.model(inputs), bare.model(inputs), rtol=0, atol=1e-5)
    else:
        for name, logits in masks.logits.items():
            kept = result.plan.keep[name]
            assert (
                logits[~kept].max() <= logits[kept & (logits < 0)].min() if bool((kept & (logits < 0)).any()) else True
            )


@pytest.mark.parametrize("joins", ["intersection", "expand"])
def test_rounded_streams_are_exact_as_well(joins):
    model, inputs = torchvision_network("resnet18").double(), images(size=32).double()
    masks = share_masks(model, inputs, 0.6)
    result = prune(model, masks, inputs, joins=joins, round_to=8)
    assert result.verification.max_abs_error < 1e-12
    assert all(width % 8 == 0 for width in widths(result.model).values())


def test_automatic_rounding_is_for_the_device():
    model, inputs = torchvision_network("resnet18"), images(size=32)
    assert (
        prune(model, share_masks(model, inputs, 0.5, "tied"), inputs, round_to="auto").plan.rounding["multiple"] == 16
    )

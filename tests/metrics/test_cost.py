"""Parameters, FLOPs, sizes and latencies."""

import pytest
import torch
from cases import images, network
from scipy.stats import binom
from torch import nn

from bise_prune import measure
from bise_prune.errors import ConfigError
from bise_prune.metrics.cost import LatencyRatio, latency_ratio, measure_latency, time_by_turns
from bise_prune.models import build_model


@pytest.mark.parametrize(
    ("arch", "classes", "shape", "params", "flops"),
    [
        ("simple_convnet", 10, (3, 28, 28), 531_210, 415_370_752),
        ("mlp", 10, (3, 28, 28), 256_510, 256_200),
        ("resnet18", 2, (3, 224, 224), 11_177_538, 1_818_554_880),
        ("resnet18", 10, (3, 32, 32), 11_181_642, 37_118_464),
    ],
)
def test_golden_counts(arch, classes, shape, params, flops):
    figures = measure(build_model(arch, classes), torch.randn(2, *shape))
    assert (figures.params, figures.flops) == (params, flops)
    assert figures.latency is None


def test_flops_by_layer_of_the_papers_convnet():
    figures = measure(build_model("simple_convnet", 10), torch.randn(1, 3, 28, 28))
    layers = figures.flops_by_layer
    assert sum(layers[f"blocks.{i}.0"] for i in range(4)) == 414_892_800
    assert sum(layers[f"blocks.{i}.1"] for i in range(4)) == 376_320
    assert (layers["pool"], layers["head"]) == (100_352, 1_280)


def test_size_counts_parameters_and_buffers():
    assert (
        measure(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), torch.randn(2, 2)).size_bytes == 4 * (9 + 6 + 6) + 8
    )


def test_operators_that_are_not_counted_are_named():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.fft.rfft(x).abs()

    assert "aten::fft_rfft" in measure(Odd(), torch.randn(1, 8)).unsupported_operators


def test_measuring_keeps_mode_and_gradients():
    model = network("resnet").train()
    measure(model, images(), latency=True, runs=2)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_latency_of_several_models():
    first, second = measure_latency([network("mlp"), network("resnet")], images(3), runs=5)
    for latency in (first, second):
        assert 0 < latency.p10_ms <= latency.median_ms <= latency.p90_ms
        assert (latency.runs, latency.batch_size, latency.device) == (5, 3, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_missing_device_is_an_error():
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        measure_latency([network("mlp")], images(), device="cuda")


def test_a_ratio_is_of_calls_of_the_same_turn():
    dense = [1.0, 2.0, 4.0, 8.0] * 5  # a machine whose speed changes
    ratio = latency_ratio([1.5 * time for time in dense], dense, 16)
    assert (ratio.median, ratio.low, ratio.high, ratio.batch_size) == (1.5, 1.5, 1.5, 16)
    assert ratio.is_slower and not ratio.is_as_fast
    assert not latency_ratio(dense, dense, 1).is_slower and latency_ratio(dense, dense, 1).is_as_fast


@pytest.mark.parametrize("n", [7, 10, 30, 31, 199, 200])
def test_the_interval_of_a_ratio_holds_the_median_in_95_percent_of_the_cases(n):
    ratio = latency_ratio([float(i) for i in range(1, n + 1)], [1.0] * n, 1)
    rank = int(ratio.low)  # the interval lies above the true median if fewer than this many ratios lie below it
    assert ratio.high == n + 1 - rank and ratio.low <= ratio.median <= ratio.high
    assert 1 - 2 * binom.cdf(rank - 1, n, 0.5) >= 0.95


@pytest.mark.parametrize(
    ("median", "low", "is_slower", "is_as_fast"),
    [
        (1.2, 1.1, True, False),
        (1.2, 0.9, False, False),
        (1.04, 1.02, False, False),
        (1.02, 1.01, False, True),
        (0.5, 0.4, False, True),
    ],
)
def test_slower_is_what_no_noise_explains(median, low, is_slower, is_as_fast):
    ratio = LatencyRatio(median, low, 2.0, 1)
    assert (ratio.is_slower, ratio.is_as_fast) == (is_slower, is_as_fast)


@pytest.mark.parametrize(("warm", "turn"), [(False, "ab"), (True, "aabb")])
def test_functions_take_turns_with_or_without_a_call_that_is_not_timed(warm, turn):
    calls = []
    samples = time_by_turns([lambda: calls.append("a"), lambda: calls.append("b")], 4, warm_up_s=0, warm=warm)
    assert "".join(calls) == "aaabbb" + turn * 4
    assert [len(times) for times in samples] == [4, 4]

"""onnxruntime's providers."""

import pytest
import torch
from cases import biased_data, images, network

from bise_prune import export_onnx
from bise_prune.errors import ConfigError
from bise_prune.export.runtime import ON_CPU, TimedFile, open_session, timed_files


def test_a_provider_that_is_not_there_is_an_error(tmp_path):
    export_onnx(network("mlp"), tmp_path / "a.onnx", images())
    with pytest.raises(ConfigError, match=r"this onnxruntime has no NoSuchProvider, only .*CPUExecutionProvider"):
        open_session(tmp_path / "a.onnx", provider="NoSuchProvider")


def test_files_are_timed_by_turns_at_every_batch_size(tmp_path):
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path in paths:
        export_onnx(network("mlp"), path, images())
    first, second = timed_files(paths, biased_data(n=5), (1, 16))
    assert (first.device, first.threads) == (ON_CPU, torch.get_num_threads())
    for size in (1, 16):
        assert 10 <= len(first.times_ms[size]) == len(second.times_ms[size]) <= 200
        latency = second.latency(size)
        assert 0 < latency.p10_ms <= latency.median_ms <= latency.p90_ms
        assert (latency.batch_size, latency.runs) == (size, len(second.times_ms[size]))


def test_the_ratio_to_another_file():
    dense, slim = (TimedFile({1: [time] * 3}, ON_CPU, 1) for time in (2.0, 3.0))
    assert slim.ratio_to(dense, 1).median == 1.5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_latency_is_the_cpus_and_says_so(tmp_path):
    export_onnx(network("mlp"), tmp_path / "a.onnx", images())
    assert timed_files([tmp_path / "a.onnx"], biased_data(n=5), (1,), torch.device("cuda"))[0].device == ON_CPU

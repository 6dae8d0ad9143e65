"""Count the parameters and FLOPs of a network, and measure its latency."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..tracing import ByPosition, Inputs, evaluating, replace_tensors, run, tensors_in

FLOPS_CONVENTION = "fvcore, 1 multiply-accumulate = 1 FLOP, one sample"


def measure(
    model: nn.Module, example_inputs: Inputs, *, latency: bool = False, runs: int = 30, device: str = "cpu"
) -> Measurement:
    """Measure the size and cost of a network; it is not changed.

    Args:
        model: any module.
        example_inputs: model input(s), batch first; FLOPs are counted for the first sample, latency is measured for the
            whole batch.
        latency: whether to measure the latency as well.
        runs: number of timed forward passes.
        device: device on which the latency is measured, "cpu" or "cuda[:N]".

    Raises:
        ConfigError: latency on CUDA was asked for, but there is no CUDA device.
    """
    with torch.random.fork_rng(devices=[]):
        counts = _count_flops(model, example_inputs)
    timed = measure_latency([model], example_inputs, runs=runs, device=device)[0] if latency else None
    state = [*model.parameters(), *model.buffers()]
    return Measurement(
        params=sum(parameter.numel() for parameter in model.parameters()),
        size_bytes=sum(tensor.numel() * tensor.element_size() for tensor in state),
        flops=int(counts.total()),
        flops_by_layer={name: int(flops) for name, flops in counts.by_module().items() if flops and name},
        unsupported_operators=dict(counts.unsupported_ops()),
        latency=timed,
    )


def measure_latency(
    models: Sequence[nn.Module], example_inputs: Inputs, *, runs: int = 30, device: str = "cpu"
) -> list[Latency]:
    """Measure the latency of several networks, which take turns, so that a disturbance affects all of them alike.

    Networks run in eval and inference mode, after a warm-up of at least 3 forward passes and 0.2 s each; CUDA is
    synchronised around every pass.

    Args:
        models: the networks; they are not changed, and copied only if they are on another device.
        example_inputs: model input(s), batch first.
        runs: number of timed forward passes of each network.
        device: "cpu" or "cuda[:N]".

    Returns:
        The latency of each network.

    Raises:
        ConfigError: CUDA was asked for, but there is no CUDA device.
    """
    target = torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device '{device}' was asked for, but torch sees no CUDA device")
    inputs = replace_tensors(example_inputs, lambda tensor: tensor.to(target))
    timed = [model if _is_on(model, target) else copy.deepcopy(model).to(target) for model in models]
    synchronise = partial(torch.cuda.synchronize, target) if target.type == "cuda" else None
    with torch.inference_mode(), contextlib.ExitStack() as modes:
        for model in timed:
            modes.enter_context(evaluating(model))
        samples = time_by_turns([partial(run, model, inputs) for model in timed], runs, synchronise)
    name = torch.cuda.get_device_name(target) if target.type == "cuda" else "cpu"
    batch_size = len(next(tensors_in([example_inputs])))
    return [summarise(times, batch_size, name, torch.get_num_threads()) for times in samples]


def _is_on(model: nn.Module, device: torch.device) -> bool:
    """Whether all parameters and buffers are on a device."""
    return all(tensor.device == device for tensor in [*model.parameters(), *model.buffers()])


def time_by_turns(
    calls: Sequence[Callable[[], object]],
    runs: int,
    synchronise: Callable[[], None] | None = None,
    warm_up_s: float = 0.2,
    warm: bool = False,
) -> list[list[float]]:
    """Time several functions, which take turns.

    Args:
        calls: the functions to time.
        runs: number of timed calls of each function.
        synchronise: function that waits until the device is done; None if there is nothing to wait for.
        warm_up_s: shortest warm-up of each function in seconds; at least 3 calls are made.
        warm: whether a call that is not timed precedes each timed one, so that its data are in the processor's cache,
            as if no other function took turns with it. For calls of less than some milliseconds this matters.

    Returns:
        For each function, the duration of every timed call in milliseconds.
    """
    wait = synchronise or (lambda: None)
    for call in calls:
        start, count = time.perf_counter(), 0
        while count < 3 or time.perf_counter() - start < warm_up_s:
            call()
            wait()
            count += 1
    samples: list[list[float]] = [[] for _ in calls]
    for _ in range(runs):
        for call, times in zip(calls, samples, strict=True):
            if warm:
                call()
            wait()
            start = time.perf_counter()
            call()
            wait()
            times.append((time.perf_counter() - start) * 1e3)
    return samples


def summarise(times_ms: Sequence[float], batch_size: int, device: str, threads: int) -> Latency:
    """Compute the median and the 10th and 90th percentile of durations in milliseconds."""
    deciles = statistics.quantiles(times_ms, n=10) if len(times_ms) > 1 else [times_ms[0]] * 9
    median = statistics.median(times_ms)
    return Latency(median, deciles[0], deciles[8], len(times_ms), batch_size, device, threads)


def latency_ratio(times_ms: Sequence[float], reference_ms: Sequence[float], batch_size: int) -> LatencyRatio:
    """Compute by which factor calls took longer than reference calls that took turns with them.

    Args:
        times_ms: durations of the calls, as :func:`time_by_turns` returns them.
        reference_ms: durations of the reference calls of the same turns.
        batch_size: samples per call.
    """
    ratios = sorted(time / reference for time, reference in zip(times_ms, reference_ms, strict=True))
    # The median lies between these order statistics in at least 95 % of the cases, whatever the distribution is.
    rank = max(0, math.floor((len(ratios) - 1) / 2 - 0.98 * math.sqrt(len(ratios))))
    return LatencyRatio(statistics.median(ratios), ratios[rank], ratios[-1 - rank], batch_size)


def _count_flops(model: nn.Module, example_inputs: Inputs) -> Any:
    """Count the FLOPs for the first sample with fvcore, on a copy of the network on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about deprecated functions that fvcore uses on import
        from fvcore.nn import FlopCountAnalysis
    model = copy.deepcopy(model).cpu().eval()
    inputs = replace_tensors(example_inputs, lambda tensor: tensor[:1].cpu())
    if isinstance(inputs, dict):
        model, inputs = ByPosition(model, list(inputs)).eval(), tuple(inputs.values())
    model.register_state_dict_post_hook(_leave_tensors)
    logger = logging.getLogger("fvcore.nn.jit_analysis")
    level, fast = logger.level, torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # whose fused functions show nothing of what they compute
        logger.setLevel(logging.ERROR)  # operators that are not counted are returned, not logged
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # from torch's tracer, which fvcore uses
            counts = FlopCountAnalysis(model, inputs).uncalled_modules_warnings(False)
            counts.set_op_handle("aten::scaled_dot_product_attention", _attention, "aten::baddbmm", _batched_product)
            counts.total()
            return counts
    finally:
        logger.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(fast)


def _leave_tensors(model: nn.Module, state: dict[str, Any], *_: object) -> None:
    """Remove what is no tensor from a state dict, as torch's tracer takes nothing else."""
    for name in [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        del state[name]


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Multiply-accumulates of attention: queries (..., L, E) by keys (..., S, E), and weights by values (..., S, V)."""
    queries, keys, values = (list[int](value.type().sizes()) for value in inputs[:3])
    return math.prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])


def _batched_product(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Multiply-accumulates of a sum and a product of matrices (B, L, E) by (B, E, S)."""
    first, second = (list[int](value.type().sizes()) for value in inputs[1:3])
    return math.prod(first) * second[-1]


@dataclass(frozen=True)
class Latency:
    """Wall-clock time of one forward pass, in milliseconds.

    Attributes:
        median_ms: median of the timed forward passes.
        p10_ms: 10th percentile.
        p90_ms: 90th percentile.
        runs: number of timed forward passes, after the warm-up.
        batch_size: samples per forward pass.
        device: name of the device, "cpu" or the GPU's name.
        threads: number of CPU threads of torch or onnxruntime (0 = the runtime's own choice).
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    batch_size: int
    device: str
    threads: int


# Two files of the same network differed by up to 4 % at 0.01 ms, however often they were timed. Hence a network is
# called slower only above 5 %; networks that are to be as fast have less leeway.
AS_FAST, SLOWER = 1.03, 1.05


@dataclass(frozen=True)
class LatencyRatio:
    """Latency of one network divided by that of another, of calls that took turns.

    Attributes:
        median: median of the ratios of two calls of the same turn, > 0.
        low: lower bound of the 95 % interval of the median, from order statistics.
        high: upper bound of that interval.
        batch_size: samples per forward pass.
    """

    median: float
    low: float
    high: float
    batch_size: int

    @property
    def is_as_fast(self) -> bool:
        """Whether the network takes no longer than the other one, or up to 3 % longer, which may be chance."""
        return self.median <= AS_FAST

    @property
    def is_slower(self) -> bool:
        """Whether the network takes longer than the other one: by more than 5 %, and the interval is above 1."""
        return self.low > 1 and self.median > SLOWER


@dataclass(frozen=True)
class Measurement:
    """Size and cost of one network.

    Attributes:
        params: number of parameters.
        size_bytes: size of all parameters and buffers in bytes.
        flops: FLOPs for one sample as fvcore counts them, 1 multiply-accumulate = 1 FLOP (the paper's convention).
        flops_by_layer: module name -> FLOPs; modules without FLOPs are left out.
        unsupported_operators: name of an operator that fvcore does not count -> number of its calls.
        latency: latency; None if it was not measured.
    """

    params: int
    size_bytes: int
    flops: int
    flops_by_layer: Mapping[str, int]
    unsupported_operators: Mapping[str, int]
    latency: Latency | None = None

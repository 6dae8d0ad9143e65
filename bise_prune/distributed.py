"""Sums and copies over the processes that share a search; without ``torch.distributed`` there is one process."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import ConfigError


def world() -> tuple[int, int]:
    """This process's rank and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def summed(tensor: Tensor) -> Tensor:
    """The sum of every process's tensor, the same bits on each; ``tensor`` itself where there is one process."""
    if world()[1] == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def gathered(tensor: Tensor) -> Tensor:
    """Every process's rows, shape (n_i, ...), one after the other by rank; their numbers may differ."""
    size = world()[1]
    if size == 1:
        return tensor
    lengths = [torch.zeros(1, dtype=torch.long, device=tensor.device) for _ in range(size)]
    dist.all_gather(lengths, torch.tensor([len(tensor)], device=tensor.device))
    counts = [int(length) for length in lengths]
    padded = tensor.new_zeros((max(counts), *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def copied_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the first process."""
    if world()[1] > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def share_object(value: Any) -> Any:
    """The first process's object (anything that can be pickled), in every process."""
    if world()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@contextmanager
def processes(device: str) -> Iterator[None]:
    """Join the other processes that ``torchrun`` has started, for the time of a run; do nothing without it.

    Args:
        device: "auto", "cpu" or "cuda"; each process takes the CUDA device of its local rank.

    Raises:
        ConfigError: one CUDA device for several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if ":" in device:
        raise ConfigError(f"device '{device}' is one device, for several processes; use --device cuda")
    on_cuda = device != "cpu" and torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()

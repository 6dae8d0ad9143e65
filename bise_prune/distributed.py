"""Communication between the processes that share a search; without ``torch.distributed`` there is one process."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import BiseError, ConfigError

PATIENCE = timedelta(minutes=30)  # longest time that a process waits for another one


def world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; (0, 1) without ``torch.distributed``."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def _talking() -> Iterator[None]:
    """A context in which processes exchange something; one that has ended or hangs is an error in the others."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BiseError(
            f"another process has ended, or has not answered for {PATIENCE.total_seconds() / 60:g} minutes ({reason}); "
            "the same command takes the search up where it stopped"
        ) from error


def summed(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes; every process gets bitwise the same result.

    Args:
        tensor: any shape, the same in every process; not changed.

    Returns:
        The sum, of the same shape; ``tensor`` itself if there is only one process.
    """
    if world()[1] == 1:
        return tensor
    total = tensor.clone()
    with _talking():
        dist.all_reduce(total)
    return total


def gathered(tensor: Tensor) -> Tensor:
    """Concatenate the rows of all processes in the order of their ranks.

    Args:
        tensor: this process's rows, shape (n_i, ...); n_i may differ between processes.

    Returns:
        All rows, shape (sum of n_i, ...), on every process.
    """
    size = world()[1]
    if size == 1:
        return tensor
    lengths = [torch.zeros(1, dtype=torch.long, device=tensor.device) for _ in range(size)]
    with _talking():
        dist.all_gather(lengths, torch.tensor([len(tensor)], device=tensor.device))
    counts = [int(length) for length in lengths]
    padded = tensor.new_zeros((max(counts), *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in range(size)]
    with _talking():
        dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def copied_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors in place with those of the first process (rank 0)."""
    if world()[1] > 1:
        for tensor in tensors:
            with _talking():
                dist.broadcast(tensor.detach(), src=0)


def share_object(value: Any) -> Any:
    """Return the object of the first process (rank 0) in every process; it must be picklable."""
    if world()[1] == 1:
        return value
    box = [value]
    with _talking():
        dist.broadcast_object_list(box, src=0)
    return box[0]


@contextmanager
def processes(device: str) -> Iterator[None]:
    """Join the process group that ``torchrun`` has started, for the duration of a run; without ``torchrun`` do nothing.

    Args:
        device: "auto", "cpu" or "cuda"; each process takes the CUDA device of its local rank.

    A process that the others wait for longer than :data:`PATIENCE` ends all of them with an error.

    Raises:
        ConfigError: a single CUDA device is given for several processes, or the environment is not torchrun's.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal():
        raise ConfigError(f"the environment has WORLD_SIZE={size}, which is no number of processes; unset it")
    if int(size) == 1 or dist.is_initialized():
        yield
        return
    if ":" in device:
        raise ConfigError(f"device '{device}' is one device, for several processes; use --device cuda")
    on_cuda = device != "cpu" and torch.cuda.is_available()
    # Its functions take the process group of the moment of the import as a default and would keep it, and its threads,
    # until the interpreter is torn down, which then aborts now and then.
    importlib.import_module("torch.distributed.nn.functional")
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("nccl" if on_cuda else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"the environment has WORLD_SIZE={size}, but the processes cannot join ({reason}): start them with "
            "torchrun, or unset WORLD_SIZE"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()

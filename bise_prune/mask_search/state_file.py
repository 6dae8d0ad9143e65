"""Saves the state of a search to a file and loads it, so that a stopped search can be resumed, also within an epoch."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..digests import state_tensors
from ..distributed import gathered, summed, world
from ..errors import BiseError
from ..files import atomic_path
from ..gates.masks import MaskSet
from ..metrics.accuracy import Evaluation, SubgroupAccuracy
from .assembly import Search
from .heads import HeadsState
from .identity import differences, identity_of
from .result import EpochRecord


class SearchInterrupted(BiseError):
    """A search stopped because it was asked to; its state has been saved if ``state_path`` was given."""

    exit_code = 130


def stop_if_asked(search: Search, path: Path | None, interrupted: Callable[[], bool] | None) -> None:
    """Save the state and raise an error if the caller of the search has asked it to stop.

    Raises:
        SearchInterrupted: ``interrupted`` returned true in one of the processes.
    """
    # All processes stop after the same batch, whichever of them was asked to stop.
    if interrupted is None or not summed(torch.tensor(float(interrupted()), device=search.network.device)):
        return
    if path is not None:
        save(search, path)
    raise SearchInterrupted("interrupted; the same search takes up where it stopped")


def save(search: Search, path: Path) -> None:
    """Save the state of the search; every process calls this, and only the first one writes."""
    state, tally = search.state, search.state.tally
    sums = gathered(tally.sums[None])  # all else is the same in every process
    if world()[0]:
        return
    content = {
        "identity": identity_of(search),
        "learned": state.learned(),
        "trained_before": search.network.start.trained_before,
        "heads": tuple(state.heads.state),
        "velocity": state.velocity,
        "norm_optimizer": None if state.norm_optimizer is None else state.norm_optimizer.state_dict(),
        "generator": state.generator.get_state(),
        "passes": state.position.passes - (state.position.batches > 0),  # a pass that was interrupted is repeated
        "done": state.position.batches,
        "steps": state.steps,
        "sums": sums,
        "pushes": tally.pushes,
        "closed_before": tally.closed_before,
        "flipped": tally.flipped,
        "picks": state.picks,
        "still": search.passes.saved_memory(),
        "pool": None if state.pool is None else (state.pool.sums, state.pool.counts),
        "extra": state.extra(),
        "history": [dataclasses.asdict(record) for record in state.history],
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    body = buffer.getvalue()
    with atomic_path(path) as temporary:
        temporary.write_bytes(_digest(body) + body)


def load(search: Search, path: Path) -> None:
    """Load a saved state into the search, if the file exists.

    Raises:
        BiseError: the file is damaged, or belongs to another search.
    """
    if not path.is_file():
        return
    content = _content(path)
    if differing := differences(content["identity"], identity_of(search)):
        raise BiseError(
            f"{path} belongs to a search that differs from this one in {', '.join(differing)}: repeat that one, or "
            "delete the file to start anew"
        )
    state, tally, device = search.state, search.state.tally, search.network.device
    learned = content["learned"]
    state.logits.copy_(learned.pop("logits"))
    search.network.model.load_state_dict(learned, strict=False)
    state.heads.state = HeadsState(*(tensor.to(device) for tensor in content["heads"]))
    state.velocity = content["velocity"].to(device)
    if state.norm_optimizer is not None:
        state.norm_optimizer.load_state_dict(content["norm_optimizer"])
    state.generator.set_state(content["generator"])
    state.position.passes, state.position.batches = content["passes"], content["done"]
    state.steps = content["steps"]
    tally.sums, tally.pushes = content["sums"][world()[0]].to(device), content["pushes"].to(device)
    tally.closed_before, tally.flipped = content["closed_before"].to(device), content["flipped"].to(device)
    state.picks = content["picks"]
    if state.pool is not None:
        sums, counts = content["pool"]
        state.pool.sums = {k: tensor.to(device) for k, tensor in sums.items()}
        state.pool.counts = {k: tensor.to(device) for k, tensor in counts.items()}
    state.restore_extra(content["extra"])
    search.passes.restore_memory(content["still"])
    state.history[:] = [_restored(values) for values in content["history"]]
    state.heads_trained = True


def finished_epochs(path: Path) -> int | None:
    """Number of epochs that a stopped search has finished, by its saved state; None without one.

    Raises:
        BiseError: the file cannot be read, or is not as it was written.
    """
    return len(_content(path)["history"]) if path.exists() else None


def started_with(path: Path, model: nn.Module) -> MaskSet | None:
    """The tensors of norm layers that a stopped search was started with, by its saved state.

    Args:
        path: the file of the state.
        model: the network whose search is to be resumed.

    Returns:
        The tensors; None if there is no state, if it has none, or if the network does not have them.

    Raises:
        BiseError: the file cannot be read, or is not as it was written.
    """
    content, own = _content(path) if path.exists() else {}, state_tensors(model)
    if not content.get("trained_before"):
        return None
    tensors = {name: tensor for name, tensor in content["learned"].items() if name != "logits"}
    fits = all(name in own and own[name].shape == tensor.shape for name, tensor in tensors.items())
    return MaskSet.for_start(tensors) if fits else None


def _content(path: Path) -> dict[str, Any]:
    """What a state file holds.

    Raises:
        BiseError: the file cannot be read, or is not as it was written.
    """
    try:
        whole = path.read_bytes()
    except OSError as error:
        raise BiseError(f"cannot read {path}: {error.strerror or error}") from error
    body = whole[len(_digest(b"")) :]
    unreadable = BiseError(f"{path} is no readable search state; delete it to start the search anew")
    if not whole.startswith(_digest(body)):
        raise unreadable
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError) as error:  # somebody else's, with a digest of its own
        raise unreadable from error
    return content


def _digest(body: bytes) -> bytes:
    """SHA-256 of the body of a state file, which stands in front of it."""
    return hashlib.sha256(body).digest()


def _restored(values: dict[str, Any]) -> EpochRecord:
    """An epoch's record, made of the values that were saved."""
    validation = values["validation"]
    if validation is not None:
        subgroups = tuple(SubgroupAccuracy(**subgroup) for subgroup in validation["subgroups"])
        values = {**values, "validation": Evaluation(**{**validation, "subgroups": subgroups})}
    return EpochRecord(**values)

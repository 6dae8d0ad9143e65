"""Saves the state of a search to a file and loads it, so that a stopped search can be resumed, also within an epoch."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..distributed import summed, world
from ..errors import BiseError
from ..files import atomic_path
from ..metrics.accuracy import Evaluation, SubgroupAccuracy
from .assembly import Search
from .heads import HeadsState
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


def fingerprint(search: Search) -> str:
    """Text that must be equal for a saved state to belong to this search: settings, sites, data and weights."""
    network = search.network
    sites = [(site.name, site.num_channels) for site in network.sites]
    trained = (
        {id(p) for norm in network.norms for p in norm.parameters()} if search.config.batchnorm == "affine" else ()
    )
    weights = [float(p.double().sum()) for p in network.model.parameters() if id(p) not in trained]
    data = len(search.data.first.target), search.digest
    return repr((search.config, sites, data, weights, search.state.started_at, world()[1]))


def save(search: Search, path: Path) -> None:
    """Save the state of the search; only the first process writes."""
    if world()[0]:
        return
    state, tally = search.state, search.state.tally
    content = {
        "fingerprint": fingerprint(search),
        "learned": state.learned(),
        "heads": tuple(state.heads.state),
        "velocity": state.velocity,
        "norm_optimizer": None if state.norm_optimizer is None else state.norm_optimizer.state_dict(),
        "generator": state.generator.get_state(),
        "passes": state.position.passes - (state.position.batches > 0),  # a pass that was interrupted is repeated
        "done": state.position.batches,
        "steps": state.steps,
        "sums": tally.sums,
        "pushes": tally.pushes,
        "closed_before": tally.closed_before,
        "flipped": tally.flipped,
        "picks": state.picks,
        "still": search.passes.saved_memory(),
        "pool": None if state.pool is None else (state.pool.sums, state.pool.counts),
        "extra": state.extra(),
        "history": [dataclasses.asdict(record) for record in state.history],
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load(search: Search, path: Path) -> None:
    """Load a saved state into the search, if the file exists.

    Raises:
        BiseError: the file is damaged, or belongs to another search.
    """
    if not path.is_file():
        return
    try:
        content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise BiseError(f"{path} is no readable search state; delete it to start the search anew") from error
    if content.get("fingerprint") != fingerprint(search):
        raise BiseError(
            f"{path} belongs to a search with other settings, data or weights; repeat those, "
            "or delete the file to start anew"
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
    tally.sums, tally.pushes = content["sums"].to(device), content["pushes"].to(device)
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
    """Number of epochs that a stopped search has finished, by its saved state; None without a readable one."""
    try:
        return len(torch.load(path, weights_only=True, map_location="cpu", mmap=True)["history"])
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, ValueError):
        return None  # whoever loads the state tells what is wrong with it


def _restored(values: dict[str, Any]) -> EpochRecord:
    """An epoch's record, made of the values that were saved."""
    validation = values["validation"]
    if validation is not None:
        subgroups = tuple(SubgroupAccuracy(**subgroup) for subgroup in validation["subgroups"])
        values = {**values, "validation": Evaluation(**{**validation, "subgroups": subgroups})}
    return EpochRecord(**values)

"""A stopped search resumes: its state as a file, between two epochs or within one."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..distributed import world
from ..errors import BiseError
from ..evaluation import Evaluation, SubgroupAccuracy
from ..files import atomic_path
from .heads import HeadsState
from .result import EpochRecord

if TYPE_CHECKING:
    from .run import SearchRun


def fingerprint(run: SearchRun) -> str:
    """What must be equal for a saved state to belong to this search."""
    sites = [(site.name, site.num_channels) for site in run.gated.sites]
    names = {id(p) for norm in run.norms for p in norm.parameters()} if run.config.batchnorm == "affine" else set()
    weights = [float(p.double().sum()) for p in run.gated.model.parameters() if id(p) not in names]
    data = len(run.first.target), run.label_digest
    return repr((run.config, sites, data, weights, run.started_at, world()[1]))


def save(run: SearchRun, path: Path) -> None:
    """Keep the state, between two epochs or within one; the first process writes."""
    if world()[0]:
        return
    state = {
        "fingerprint": fingerprint(run),
        "learned": run.learned(),
        "heads": tuple(run.heads.state),
        "velocity": run.velocity,
        "norm_optimizer": None if run.norm_optimizer is None else run.norm_optimizer.state_dict(),
        "generator": run.generator.get_state(),
        "passes": run.passes - (run.done > 0),
        "done": run.done,
        "steps": run.steps,
        "sums": run.sums,
        "pushes": run.pushes,
        "closed_before": run.closed_before,
        "flipped": run.flipped,
        "picks": run.picks,
        "still": None if run.still is None else run.still.state_dict(),
        "pool": None if run.pool is None else (run.pool.sums, run.pool.counts),
        "history": [dataclasses.asdict(record) for record in run.history],
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load(run: SearchRun, path: Path) -> None:
    """Take up a saved state, if there is one and it belongs to this search."""
    if not path.is_file():
        return
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise BiseError(f"{path} is no readable search state; delete it to start the search anew") from error
    if state.get("fingerprint") != fingerprint(run):
        raise BiseError(
            f"{path} belongs to a search with other settings, data or weights; repeat those, "
            "or delete the file to start anew"
        )
    learned = state["learned"]
    with torch.no_grad():
        run.gates.logits.copy_(learned.pop("logits"))
    run.gated.model.load_state_dict(learned, strict=False)
    run.heads.state = HeadsState(*(tensor.to(run.device) for tensor in state["heads"]))
    run.velocity = state["velocity"].to(run.device)
    if run.norm_optimizer is not None:
        run.norm_optimizer.load_state_dict(state["norm_optimizer"])
    run.generator.set_state(state["generator"])
    run.passes, run.done, run.steps = state["passes"], state["done"], state["steps"]
    run.sums, run.pushes = state["sums"].to(run.device), state["pushes"].to(run.device)
    run.closed_before, run.flipped = state["closed_before"].to(run.device), state["flipped"].to(run.device)
    run.picks = state["picks"]
    if run.pool is not None:
        sums, counts = state["pool"]
        run.pool.sums = {k: tensor.to(run.device) for k, tensor in sums.items()}
        run.pool.counts = {k: tensor.to(run.device) for k, tensor in counts.items()}
    if state["still"] is not None:
        run.still = run.new_memory()
        run.still.load_state_dict(state["still"])
    run.history = [_restored(values) for values in state["history"]]
    run.heads_trained = True


def _restored(values: dict[str, Any]) -> EpochRecord:
    validation = values["validation"]
    if validation is not None:
        subgroups = tuple(SubgroupAccuracy(**subgroup) for subgroup in validation["subgroups"])
        values = {**values, "validation": Evaluation(**{**validation, "subgroups": subgroups})}
    return EpochRecord(**values)

"""The stages in order: search, pruning, finetuning, measurement, export, report."""

from __future__ import annotations

import copy
import dataclasses
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ..baselines.magnitude import magnitude_masks
from ..baselines.random_scores import random_masks
from ..baselines.taylor import taylor_masks
from ..checkpoint.networks import save_slim
from ..config import Budget, RunConfig, portable
from ..data import BatchLoader
from ..data.batch import input_map
from ..diagnostics.probe import probe_bias
from ..diagnostics.sweep import threshold_sweep
from ..distributed import processes, share_object, world
from ..errors import BiseError, ConfigError
from ..export.denormals import flush_denormals
from ..files import locked, write_json
from ..gates.gated_model import apply_masks
from ..gates.masks import MaskSet
from ..mask_search import EpochRecord, SearchResult, search
from ..mask_search.selection import LAST
from ..mask_search.weights import sample_weights
from ..metrics.cost import FLOPS_CONVENTION, measure, measure_latency
from ..metrics.fairness import fairness_record
from ..pruning import PruningResult, fuse_batchnorm, prune
from ..pruning.exact import time_ratio
from ..pruning.plan import PruningPlan
from ..pruning.planner import LATENCY_TOLERANCE, TOLERANCE, DeadNetworkError
from ..report.card import write_card
from ..report.comparison import write_comparison
from ..report.files import (
    CARD_FILE,
    CONFIG_FILE,
    FRONTIER_FILE,
    FRONTIER_PAGE,
    MASK_FILE,
    PAGE_FILE,
    PLAN_FILE,
    POINT,
    REPORT_FILE,
    SLIM_FILE,
    STATE_FILE,
)
from ..report.loggers import Loggers
from ..report.page import pictures, write_page
from ..report.record import SCHEMA_VERSION, command_line, environment_record, evaluation_record, model_record
from ..tuning.finetuning import FinetuneEpoch, FinetuneResult, finetune
from .export_stage import LATENCY_BATCH, deliver, publish
from .findings import (
    GATES,
    aligned_record,
    changed_samples,
    curve_record,
    epoch_record,
    finetuning_record,
    gate_records,
    identification_record,
    layer_records,
    missed_target,
    preprocessing_record,
    selection_record,
    warnings_of,
)
from .session import Progress, Session, check_output, given_masks, prepared
from .settings import write_settings


def run(config: RunConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Debias, prune, verify and export; the record written to ``report.json`` is returned.

    Started by ``torchrun``, the processes share the search and finetuning; the first one does and writes the rest, and
    the others return an empty record. With ``targets``, each has a folder of its own below ``output``, and the record
    of the whole is ``frontier.json``.

    Raises:
        BiseError: whatever a user can mend, before any long work where that is possible.
    """
    with processes(config.device):
        session = prepared(config, progress or (lambda stage, done, total: None))
        if world()[0]:
            return _all_of_it(session)
        with locked(config.output):
            check_output(config)  # once more, now that no other run can write there
            with Loggers(config.log, session.config.as_dict()) as session.loggers:
                record = _all_of_it(session)
            write_settings(config.output / CONFIG_FILE, session.config)
            return record


def _all_of_it(session: Session) -> dict[str, Any]:
    return _frontier(session) if session.config.targets else _one(session, session.config)


def _one(session: Session, config: RunConfig, start: MaskSet | None = None) -> dict[str, Any]:
    """One search, if there is one to make, and all that follows it."""
    session = dataclasses.replace(session, config=config, timings=dict(session.timings))
    found: SearchResult | None = None
    masks, plan = given_masks(config)
    selection: dict[str, Any] = {"rule": "given masks" if plan is None else "given plan"}
    if masks is None and config.criterion != "learned":
        with session.stage("rank"):
            masks = _ranked(session)
        selection = {"rule": f"criterion '{config.criterion}', without a search"}
    if masks is None:
        with session.stage("search"):
            found = _search(session, start)
        masks = found.masks
        selection = selection_record(found)
        if world()[0] == 0:
            for name, chosen in (("best", found.best), (LAST, found.last)):
                selection[name] = evaluation_record(
                    session.accuracy(apply_masks(session.dense, chosen, session.example))
                )
            masks.save(config.output / MASK_FILE)
    with session.stage("prune"):
        rank = world()[0]
        pruned = _pruned(session, masks if plan is None else plan, found) if rank == 0 else None
        if config.finetune is not None:
            agreed = share_object(None if pruned is None else pruned.plan)
            pruned = _pruned(session, agreed, found) if pruned is None else pruned
    tuned = None
    if config.finetune is not None and pruned is not None:
        with session.stage("finetune"):
            tuned = _finetuned(session, pruned)
    if rank or pruned is None:
        return {}
    return _finished(session, masks, pruned, found, tuned, selection)


def _frontier(session: Session) -> dict[str, Any]:
    """One result per target sparsity, from the largest network to the smallest, each search starting from the last."""
    config = session.config
    points: list[dict[str, Any]] = []
    start: MaskSet | None = None
    for target in sorted(config.targets):
        output = config.output / f"{POINT}{target:g}"
        own = dataclasses.replace(config, targets=(), target_sparsity=target, output=output)
        with locked(output) if world()[0] == 0 else nullcontext():
            record = _done(session, own) or _one(session, own, start)
        if world()[0] == 0:
            points.append({"target_sparsity": target, "folder": output.name, "report": record})
        if config.criterion == "learned" and config.masks is None:
            start = share_object(MaskSet.load(output / MASK_FILE) if world()[0] == 0 else None)
    if world()[0]:
        return {}
    frontier = {"schema_version": SCHEMA_VERSION, "frontier": points}
    write_comparison(config.output / FRONTIER_PAGE, [(point["folder"], point["report"]) for point in points])
    write_json(config.output / FRONTIER_FILE, frontier)
    return frontier


def _done(session: Session, config: RunConfig) -> dict[str, Any] | None:
    """The report of a point that was finished before the run stopped."""
    path = config.output / REPORT_FILE
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    settings = json.loads(json.dumps(config.as_dict()))
    differing = {key for key, value in settings.items() if record["config"].get(key) != value}
    differing -= {"resume", "log", *GATES}
    differing -= set() if record["config"]["search"] else {"search"}
    sources = {"checkpoint": session.checkpoint.sha256, "data": session.splits.fingerprint}
    differing |= {name for name, digest in sources.items() if record.get("sources", {}).get(name) != digest}
    if differing:
        raise ConfigError(
            f"{config.output} holds results of another run, which differs in {', '.join(sorted(differing))}; choose "
            "another folder with --output"
        )
    return {**record, "gates": gate_records(config, record)}


def _finished(
    session: Session,
    masks: MaskSet,
    pruned: PruningResult,
    found: SearchResult | None,
    tuned: FinetuneResult | None,
    selection: dict[str, Any],
) -> dict[str, Any]:
    """Evaluate, measure, export and report."""
    config, dense, example = session.config, session.dense, session.example
    with session.stage("evaluate"):
        slim = pruned.model if tuned is None else tuned.model.cpu()
        predicted = (session.predicted(dense), session.predicted(slim))
        dense_accuracy, slim_accuracy = map(session.scored, predicted)
        as_is = slim_accuracy if tuned is None else session.accuracy(pruned.model)
        held_out = session.held_out[1]
        fairness = fairness_record(
            *predicted, held_out.target, held_out.bias, session.held_out_aligned, held_out.origin
        )
        probes = _probes(session, pruned.model) if config.probe else None
        learned = config.criterion == "learned" and config.plan is None
        curve = _curve(session, masks) if config.sweep and learned else None
    with session.stage("measure"):
        denormals = flush_denormals(slim)
        fused = tuple(fuse_batchnorm(model, example) if config.fuse else model for model in (dense, slim))
        sample = session.splits.train.example(LATENCY_BATCH)
        latencies = measure_latency(fused, sample, device=str(session.device))
        measured = [measure(model, example) for model in (dense, slim)]
    with session.stage("export"):
        delivered = deliver(session, fused[1], pruned.plan, slim_accuracy)
        completed = dataclasses.replace(
            session.checkpoint,
            data=None,
            preprocessing=preprocessing_record(session.splits.train),
            classes=tuple(session.splits.classes) or session.checkpoint.classes,
        )
        save_slim(config.output / SLIM_FILE, slim, completed, pruned.plan)
        pruned.plan.save(config.output / PLAN_FILE)
    if found is None:
        masks.save(config.output / MASK_FILE)
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "dense": model_record(measured[0], latencies[0], dense_accuracy),
        "slim": model_record(measured[1], latencies[1], slim_accuracy),
        "sparsity": pruned.plan.sparsity,
        "evaluated_on": session.held_out[0],
        "fairness": fairness,
        "changed_samples": changed_samples(session, fairness, *predicted),
        "selection": selection,
        "finetuning": finetuning_record(tuned, as_is),
        "identification": identification_record(session.pseudo),
        "aligned": aligned_record(session, found),
        "curve": curve,
        "bias_probe": probes,
        "verification": {
            "slim_against_masked": {**dataclasses.asdict(pruned.verification), "passed": pruned.verification.passed},
            **delivered["verification"],
        },
        "formats": delivered["formats"],
        "layers": layer_records(dense, pruned),
        "closed_but_kept": dict(pruned.plan.closed_but_kept),
        "plan": {
            "joins": pruned.plan.joins,
            "costs_ms": dict(pruned.plan.costs_ms),
            "edited_calls": len(pruned.plan.edits),
            "target": dict(pruned.plan.target),
            "rounding": dict(pruned.plan.rounding),
            "fingerprint": pruned.plan.fingerprint,
        },
        "denormals_flushed": denormals,
        "history": [epoch_record(epoch) for epoch in found.history] if found else [],
        "warnings": warnings_of(session, found, masks, dense_accuracy, slim_accuracy) + missed_target(pruned.plan),
        "data": {
            "specification": portable(session.specification),
            "notes": list(session.splits.notes),
            "classes": list(session.splits.classes),
            "samples": {name: 0 if data is None else len(data) for name, data in session.splits.by_name.items()},
            "preprocessing": preprocessing_record(session.splits.train),
        },
        "checkpoint": {"arch": session.checkpoint.arch, "notes": list(session.checkpoint.notes)},
        "sources": {"checkpoint": session.checkpoint.sha256, "data": session.splits.fingerprint},
        "config": {**config.as_dict(), **({} if found else {"search": None})},
        "environment": environment_record(_device_name(session.device)) | {"flops_convention": FLOPS_CONVENTION},
        "command": command_line(),
        "timings": session.timings,
    }
    record["gates"] = gate_records(config, record)
    session.log("result", len(record["history"]), {name: record[name] for name in ("dense", "slim")})
    write_page(config.output / PAGE_FILE, record, pictures(record, held_out))
    write_card(config.output / CARD_FILE, record)
    write_json(config.output / REPORT_FILE, record)
    (config.output / STATE_FILE).unlink(missing_ok=True)
    if all(gate["passed"] for gate in record["gates"]):
        publish(session, fused[0])
    return record


def _ranked(session: Session) -> MaskSet:
    """Scores by a criterion that needs no search."""
    config, dense, example = session.config, session.dense, session.example
    placement = config.search.placement
    if config.criterion == "random":
        return random_masks(dense, example, config.search.seed, placement)
    if config.criterion == "magnitude":
        return magnitude_masks(dense, example, placement)
    train = session.splits.train
    weights = sample_weights(
        train.target,
        train.bias,
        session.num_classes,
        session.search_aligned,
        config.search.weighting,
        config.search.rho,
    ).to(session.device, torch.float32)
    return taylor_masks(copy.deepcopy(dense).to(session.device), session.train_loader(), placement, weights)


def _search(session: Session, start: MaskSet | None) -> SearchResult:
    """The mask search; where there is a target, the search is to meet it."""
    config = session.config
    config.output.mkdir(parents=True, exist_ok=True)
    settings = config.search
    if settings.budget is None:
        settings = dataclasses.replace(settings, budget=_budget(config, start))

    def on_epoch(record: EpochRecord, total: int) -> None:
        session.progress("search", record.epoch, total)
        session.log("search", record.epoch, epoch_record(record))

    with _stop_requests() as interrupted:
        return search(
            copy.deepcopy(session.dense).to(session.device),
            session.train_loader(),
            settings,
            session.val_loader(),
            aligned=None if session.pseudo is None else session.search_aligned,
            start=start,
            on_epoch=on_epoch,
            state_path=config.output / STATE_FILE,
            interrupted=interrupted,
        )


def _budget(config: RunConfig, start: MaskSet | None) -> Budget | None:
    """What a search is to meet, if there is a target."""
    common: dict[str, Any] = {
        "weight": config.budget_weight,
        # Masks to start from are those of a larger budget.
        "descent": config.budget_descent if start is None else 0.0,
        "layer_floor": config.layer_floor,
        "joins": "intersection" if config.joins == "intersection" else "expand",
    }
    if config.target_sparsity != "auto":
        return Budget(share=1 - float(config.target_sparsity), of="params", **common)
    if config.target_flops is not None:
        return Budget(share=config.target_flops, of="flops", **common)
    if config.target_latency is not None:
        return Budget(share=config.target_latency, of="latency", **common)
    return None


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM has come: the search then stops after its batch. A second one stops it at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    try:
        for number in before:
            signal.signal(number, stop)
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pruned(session: Session, masks: MaskSet | PruningPlan, found: SearchResult | None) -> PruningResult:
    """The slim network, its lowering and latency measured on the run's device; returned on the CPU."""
    config = session.config
    dense = copy.deepcopy(session.dense).to(session.device)
    example = input_map(session.example, lambda tensor: tensor.to(session.device))
    try:
        if isinstance(masks, PruningPlan):
            result = prune(dense, masks, example)
        elif found is not None and (within := _as_searched(session, dense, masks, example)) is not None:
            result = within
        else:
            result = prune(
                dense,
                masks,
                example,
                config.target_sparsity,
                target_flops=config.target_flops,
                target_latency=config.target_latency,
                joins=config.joins,
                round_to=config.round_to,
                round_fill=config.round_fill,
                layer_floor=config.layer_floor,
            )
    except BiseError as error:
        if found is None:
            raise
        kept = f"the masks are kept; prune by them with --masks {config.output / MASK_FILE} and another --output"
        raise type(error)(f"{error}; {kept}") from error
    return dataclasses.replace(result, model=result.model.cpu(), masked=result.masked.cpu())


def _as_searched(session: Session, dense: nn.Module, masks: MaskSet, example: Any) -> PruningResult | None:
    """The network as the search closed it, if there is a target and the search has met it."""
    config = session.config
    if config.target_sparsity != "auto":
        what, asked, tolerance = "sparsity", float(config.target_sparsity), TOLERANCE
    elif config.target_flops is not None:
        what, asked, tolerance = "removal of FLOPs", 1 - config.target_flops, TOLERANCE
    elif config.target_latency is not None:
        what, asked, tolerance = "removal of latency", 1 - config.target_latency, LATENCY_TOLERANCE
    else:
        return None
    try:
        result = prune(dense, masks, example, joins=config.joins)
    except DeadNetworkError:
        return None
    plan = result.plan
    if what == "sparsity":
        reached = plan.sparsity
    elif what == "removal of FLOPs":
        reached = (plan.macs[0] - plan.macs[1]) / plan.macs[0]
    else:
        reached = 1 - time_ratio(dense, result.model, example)
    if abs(reached - asked) > tolerance:
        return None
    if config.round_to != 1:
        result = prune(
            dense, masks, example, joins=config.joins, round_to=config.round_to, round_fill=config.round_fill
        )
        plan = result.plan
    target = {"of": what, "asked": asked, "reached": reached, "by": "search"}
    return dataclasses.replace(result, plan=dataclasses.replace(plan, target=target))


def _finetuned(session: Session, pruned: PruningResult) -> FinetuneResult:
    """The slim network after some more training; its structure stays."""
    config = session.config
    assert config.finetune is not None
    loader = dataclasses.replace(session.train_loader(), stratified=False)

    def on_epoch(record: FinetuneEpoch, total: int) -> None:
        session.progress("finetune", record.epoch, total)
        session.log("finetune", record.epoch, {"loss": record.loss})

    return finetune(
        copy.deepcopy(pruned.model).to(session.device),
        loader,
        config.finetune,
        session.val_loader(),
        aligned=None if session.pseudo is None else session.search_aligned,
        on_epoch=on_epoch,
    )


def _probes(session: Session, slim: nn.Module) -> dict[str, Any]:
    """What a linear head reads of the bias from the dense and the slim network, trained on the validation data."""
    val, (split, held_out) = session.splits.val, session.held_out
    assert val is not None  # checked before the search
    record: dict[str, Any] = {"trained_on": "val", "evaluated_on": split}
    for name, model in (("dense", session.dense), ("slim", slim)):
        on_device = copy.deepcopy(model).to(session.device)
        loaders = (BatchLoader(data, 256) for data in (val, held_out))
        record[name] = dataclasses.asdict(probe_bias(on_device, *loaders, seed=session.config.search.seed))
    return record


def _curve(session: Session, masks: MaskSet) -> list[dict[str, Any]]:
    """Accuracy against sparsity over thresholds of the masks, on the validation data where there are any."""
    data = session.splits.val if session.splits.val is not None else session.held_out[1]
    loader = BatchLoader(data, max(session.config.batch_size, 256))
    dense = copy.deepcopy(session.dense).to(session.device)
    example = input_map(session.example, lambda tensor: tensor.to(session.device))
    return curve_record(threshold_sweep(dense, masks, loader, session.search_aligned, example))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

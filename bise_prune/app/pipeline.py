"""The pipeline: the stages of a run in their order, for one result or for a frontier of several."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..distributed import processes, share_object, world
from ..errors import BiseError, ConfigError, DataError
from ..export import flush_denormals
from ..export.runtime import timed_files
from ..files import locked, write_json
from ..gates.masks import MaskSet
from ..mask_search import SearchResult
from ..metrics.cost import measure
from ..pruning import PruningResult
from ..pruning.widths import WidthTrial
from ..report.card import write_card
from ..report.comparison import write_comparison
from ..report.environment import installed_versions
from ..report.files import (
    CARD_FILE,
    CONFIG_FILE,
    FRONTIER_FILE,
    FRONTIER_PAGE,
    MASK_FILE,
    ONNX_FILE,
    PAGE_FILE,
    REPORT_FILE,
    STATE_FILE,
)
from ..report.loggers import Loggers
from ..report.page import pictures, write_page
from ..report.quality_gates import FAILURES, GATES, gate_records
from ..report.record import SCHEMA_VERSION, report_of, sources_record
from ..report.results import LATENCY_BATCHES, Figures, RunResults
from ..report.warnings import warnings_of_inputs
from ..tuning.finetuning import FinetuneResult
from ..version import __version__
from .output_folder import check_output, point_folder
from .progress import Progress, StageClock
from .reading import read_session
from .session import Session
from .settings import write_settings
from .stages.evaluate import check_above_chance, curve_of, picked_accuracies, probes_of
from .stages.export import export_all, publish
from .stages.identify import identified
from .stages.ladder import climbed
from .stages.prune import pruned_by_first
from .stages.search import ranked, searched
from .stages.tune import finetuned


def run(config: RunConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Run the pipeline: search, prune, verify, evaluate, export, measure and report.

    Started by ``torchrun``, the processes share the search and finetuning; the first process does the rest and writes
    all files, and the others return an empty record. With ``targets``, each target has its own folder below ``output``,
    and the record of all of them is ``frontier.json``.

    Args:
        config: settings of the run.
        progress: function that gets the progress; see :data:`bise_prune.app.progress.Progress`.

    Returns:
        The report record, as written to ``report.json``, or the record of the frontier.

    Raises:
        BiseError: the settings or files cannot be used, which is found before any long work if possible, or a stage
            failed.
    """
    with processes(config.device), tempfile.TemporaryDirectory() as scratch:
        clock = StageClock(progress)
        session = read_session(config, clock, Path(scratch))
        for warning in warnings_of_inputs(session.subject):
            clock.message(f"warning: {warning}")
        if session.doubt:
            raise DataError(session.doubt)
        if world()[0]:
            return _all_of_it(session, clock)
        with locked(config.output):
            check_output(config)  # again, now that no other run can write there
            with Loggers(config.log, session.config.as_dict()) as clock.loggers:
                record = _all_of_it(session, clock)
            write_settings(config.output / CONFIG_FILE, session.config)
            return record


def _all_of_it(session: Session, clock: StageClock) -> dict[str, Any]:
    """Find pseudo bias labels if they are needed, then make one result or a frontier."""
    if session.needs_pseudo_labels:
        session = identified(session, clock)
    return _frontier(session, clock) if session.config.targets else _one(session, clock)


def _one(session: Session, clock: StageClock, start: MaskSet | None = None) -> dict[str, Any]:
    """Make one result: search or rank, prune, finetune, evaluate, export, measure and report.

    Args:
        session: inputs of the run.
        clock: clock that times the stages.
        start: masks that the search starts from; None for the setting ``initial_logit``.
    """
    config, masks, found, is_first = session.config, session.masks, None, world()[0] == 0
    picked: dict[str, Any] = {}
    if masks is None and config.criterion != "learned":
        with clock.stage("rank"):
            masks = ranked(session)
    if masks is None:
        with clock.stage("search"):
            found = searched(session, clock, start)
            masks = found.masks
            if is_first:
                picked = picked_accuracies(session, found)
                masks.save(config.output / MASK_FILE)  # kept even if the removal fails
    with clock.stage("prune"):
        slim, trials = pruned_by_first(session, session.plan or masks, found)
    tuned = None
    if config.finetune is not None and slim is not None:
        with clock.stage("finetune"):
            tuned = finetuned(session, slim, clock)
    if not is_first or slim is None:
        return {}
    results = _results(session, clock, masks, found, picked, slim, trials, tuned)
    return _written(session, clock, results)


def _results(
    session: Session,
    clock: StageClock,
    masks: MaskSet,
    found: SearchResult | None,
    picked: dict[str, Any],
    slim: PruningResult,
    trials: list[WidthTrial],
    tuned: FinetuneResult | None,
) -> RunResults:
    """Evaluate, export and measure.

    Raises:
        ChanceLevelError: the slim network is worthless; nothing is exported.
    """
    config, dense, example = session.config, session.dense, session.example
    with clock.stage("ladder"):
        final, slim, ladder = climbed(session, masks, slim, tuned)
    networks = (dense, final)
    with clock.stage("evaluate"):
        predicted = [session.predicted(model) for model in networks]
        check_above_chance(session, predicted, found is not None)  # before anything is exported
        accuracies = [session.scored(classes) for classes in predicted]
        before_tuning = accuracies[1] if tuned is None else session.accuracy(slim.model)
        learned = config.criterion == "learned" and config.plan is None
        curve = curve_of(session, masks) if config.sweep and learned else None
        probes = probes_of(session, slim.model) if config.probe else None
    with clock.stage("export"):
        denormals = flush_denormals(final)
        checks, files = export_all(session, final, slim.plan, accuracies[1])
    with clock.stage("measure"):
        assert session.dense_file is not None
        paths = (session.dense_file, config.output / ONNX_FILE)
        timed = timed_files(paths, session.held_out[1], LATENCY_BATCHES, session.device)
        figures = [
            Figures(classes, accuracy, measure(model, example), {size: times.latency(size) for size in LATENCY_BATCHES})
            for model, classes, accuracy, times in zip(networks, predicted, accuracies, timed, strict=True)
        ]
    return RunResults(
        subject=session.subject,
        masks=masks,
        found=found,
        picked=picked,
        pruned=slim,
        trials=trials,
        tuned=tuned,
        dense=figures[0],
        slim=figures[1],
        latency_ratios=[timed[1].ratio_to(timed[0], size) for size in LATENCY_BATCHES],
        ladder=ladder,
        before_tuning=before_tuning,
        curve=curve,
        probes=probes,
        checks=checks,
        files=files,
        denormals=denormals,
        timings=clock.timings,
    )


def _written(session: Session, clock: StageClock, results: RunResults) -> dict[str, Any]:
    """Write page, model card and report record, and the Triton repository if all quality gates pass."""
    output, record = session.config.output, report_of(results)
    if results.found is None:
        results.masks.save(output / MASK_FILE)
    clock.log("result", len(record["history"]), {name: record[name] for name in ("dense", "slim")})
    write_page(output / PAGE_FILE, record, pictures(record, session.held_out[1]))
    write_card(output / CARD_FILE, record)
    write_json(output / REPORT_FILE, record)
    if all(gate["passed"] for gate in record["gates"]):
        publish(session)
    (output / STATE_FILE).unlink(missing_ok=True)  # until here the same command takes the run up again
    return record


def _frontier(session: Session, clock: StageClock) -> dict[str, Any]:
    """Make one result per target sparsity, in ascending order; each search starts from the masks of the last result.

    A target that cannot be reached, or whose network is worthless, is named with the reason beside the results.

    Raises:
        BiseError: no target has a result, or something failed that is not of one target.
    """
    config, is_first = session.config, world()[0] == 0
    points: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    last: BiseError | None = None
    start: MaskSet | None = None
    sessions = {
        target: session.with_config(
            dataclasses.replace(config, targets=(), target_sparsity=target, output=point_folder(config, target))
        )
        for target in sorted(config.targets)
    }
    finished = {target: _finished_point(own) for target, own in sessions.items()}  # what is odd is told before all else
    for target, own in sessions.items():
        output = own.config.output
        about = {"target_sparsity": target, "folder": output.name}
        record = None
        try:
            with locked(output) if is_first else nullcontext():
                record = finished[target] or _one(own, clock.for_point(output.name), start)
        except tuple(FAILURES) as error:
            last = error
            kind = next(name for failure, name in FAILURES.items() if isinstance(error, failure))
            failed.append({**about, "kind": kind, "reason": str(error)})
        is_done = share_object(record is not None)
        if is_first and is_done:
            points.append({**about, "report": record})
        if is_done and config.criterion == "learned" and config.masks is None:
            start = share_object(MaskSet.load(output / MASK_FILE) if is_first else None)
    if not is_first:
        return {}
    if last is not None and not points:
        reasons = "; ".join(f"{point['folder']}: {point['reason']}" for point in failed)
        raise type(last)(f"no target has a result: {reasons}") from last
    frontier = {"schema_version": SCHEMA_VERSION, "frontier": points, "failed": failed}
    write_comparison(config.output / FRONTIER_PAGE, [(point["folder"], point["report"]) for point in points], failed)
    write_json(config.output / FRONTIER_FILE, frontier)
    return frontier


def _finished_point(session: Session) -> dict[str, Any] | None:
    """The report record of a frontier's point that an earlier, stopped run has finished; None if there is none.

    Raises:
        ConfigError: the record belongs to another run.
    """
    config, path = session.config, session.config.output / REPORT_FILE
    if not path.is_file():
        return None
    settings = json.loads(json.dumps(config.as_dict()))
    sources = sources_record(session.subject)
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        differing = {key for key, value in settings.items() if record["config"].get(key) != value}
        differing -= {"resume", "log", *GATES}
        differing -= set() if record["config"]["search"] else {"search"}
        differing |= {name for name, digest in sources.items() if record["sources"].get(name) != digest}
        made_by = record["environment"]
        here = {"bise_prune": __version__, **installed_versions()}
        there = {"bise_prune": made_by["bise_prune"], **made_by["packages"]}
        differing |= {f"version of {name}" for name in ("bise_prune", "torch") if there.get(name) != here.get(name)}
        gates = gate_records(config, record)
    except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is damaged ({type(error).__name__}): delete the folder {config.output} to make this point anew"
        ) from error
    if differing:
        raise ConfigError(
            f"{config.output} holds results of another run, which differs in {', '.join(sorted(differing))}; choose "
            "another folder with --output"
        )
    return {**record, "gates": gates}

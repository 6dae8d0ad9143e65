"""The stages in order: checkpoint, data, search, pruning, verification, measurement, export, report."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .artifacts import GateSite, MaskSet, PruningPlan
from .channels import Joins
from .checkpoint import Checkpoint, load_checkpoint
from .config import RunConfig, portable
from .data import BatchLoader, BiasedDataset, DataSplits, load_data
from .errors import BiseError, ConfigError, DataError, PruningError
from .evaluation import Evaluation, evaluate
from .export import export_onnx, export_program, flush_denormals
from .files import write_json
from .gates import apply_masks, gate_sites, sites_of
from .mask_search import EpochRecord, SearchResult, search
from .measurement import FLOPS_CONVENTION, measure, measure_latency
from .pruning import PruningResult, fuse_batchnorm, prune
from .pruning.plan import TOLERANCE, Planner
from .report import SCHEMA_VERSION, environment_record, evaluation_record, model_record
from .slim import model_of, save_slim
from .subgroups import aligned_values, is_aligned
from .tracing import logits_of

# Called with a stage's name, and with steps done and in all where a stage has steps.
Progress = Callable[[str, int, int], None]

STATE_FILE = "search-state.pt"
MASK_FILE = "masks.safetensors"
PLAN_FILE = "plan.json"
_RESULTS = ("report.json", MASK_FILE, PLAN_FILE, "slim.safetensors", "slim.onnx", "slim.pt2")
_LATENCY_BATCH = 16
_FEW_SAMPLES = 10


def run(config: RunConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Debias, prune, verify and export; the record written to ``report.json`` is returned.

    Raises:
        BiseError: whatever a user can mend, before any long work where that is possible.
    """
    progress = progress or (lambda stage, done, total: None)
    timings: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        progress(name, 0, 0)
        start = time.perf_counter()
        yield
        timings[name] = time.perf_counter() - start

    device = check_environment(config)
    with stage("load"):
        checkpoint = load_checkpoint(config.checkpoint)
        specification = _data_specification(config, checkpoint)
        dense, checkpoint = model_of(checkpoint, config.checkpoint, config.arch)
        if checkpoint.slim is not None:
            raise ConfigError(f"{config.checkpoint} is a pruned network already; start from the dense checkpoint")
        masks = None if config.masks is None else MaskSet.load(config.masks)
        plan = None if config.plan is None else PruningPlan.load(config.plan)
        if plan is not None:
            masks = MaskSet({name: kept.float() * 2 - 1 for name, kept in plan.keep.items()})
        splits = load_data(specification, checkpoint.preprocessing)
        num_classes = checkpoint.num_classes or 0
        _check_data(splits, num_classes)
        example = _example(dense, splits.train)
        if masks is None:
            _check_target(config, dense, gate_sites(dense, example, config.search.placement), example)
        else:
            sites_of(masks, dense, example)
        aligned = aligned_values(splits.train.target, splits.train.bias, num_classes)

    split, held_out = _report_split(splits)
    loader = BatchLoader(held_out, max(config.batch_size, 256))

    def accuracy(model: nn.Module) -> Evaluation:
        return evaluate(copy.deepcopy(model).to(device), loader, aligned)

    with stage("evaluate dense"):
        dense_accuracy = accuracy(dense)
    selection: dict[str, Any] = {"rule": "given masks" if plan is None else "given plan"}
    found: SearchResult | None = None
    if masks is None:
        with stage("search"):
            found = _search(config, dense, splits, device, progress)
        masks = found.best
        selection = _selection(found, splits.val is not None)
        for name, chosen in (("best", found.best), ("last", found.last)):
            selection[name] = evaluation_record(accuracy(apply_masks(dense, chosen, example)))
        masks.save(config.output / MASK_FILE)
        (config.output / STATE_FILE).unlink(missing_ok=True)
    with stage("prune"):
        try:
            pruned = _pruned(config, dense, masks if plan is None else plan, example, device)
        except BiseError as error:
            if found is None:
                raise
            kept = f"the masks are kept; prune by them with --masks {config.output / MASK_FILE} and another --output"
            raise type(error)(f"{error}; {kept}") from error
    with stage("evaluate slim"):
        slim_accuracy = accuracy(pruned.model)
    with stage("measure"):
        denormals = flush_denormals(pruned.model)
        fused = [fuse_batchnorm(model, example) if config.fuse else model for model in (dense, pruned.model)]
        sample = splits.train.batch(torch.arange(min(_LATENCY_BATCH, len(splits.train)))).input
        latencies = measure_latency(fused, sample, device=str(device))
        measured = [measure(model, example) for model in (dense, pruned.model)]
    with stage("export"):
        metadata = {
            "sparsity": f"{pruned.plan.sparsity:.6f}",
            "source_sha256": checkpoint.sha256,
            "plan_fingerprint": pruned.plan.fingerprint,
            "producer": "bise-prune",
        }
        onnx_check = export_onnx(fused[1], config.output / "slim.onnx", example, metadata=metadata)
        program_check = export_program(fused[1], config.output / "slim.pt2", example)
        preprocessing = _preprocessing(splits.train)
        completed = dataclasses.replace(
            checkpoint, data=None, preprocessing=preprocessing, classes=tuple(splits.classes) or checkpoint.classes
        )
        save_slim(config.output / "slim.safetensors", pruned.model, completed, pruned.plan)
        pruned.plan.save(config.output / PLAN_FILE)
    if found is None:
        masks.save(config.output / MASK_FILE)
    record = {
        "schema_version": SCHEMA_VERSION,
        "dense": model_record(measured[0], latencies[0], dense_accuracy),
        "slim": model_record(measured[1], latencies[1], slim_accuracy),
        "sparsity": pruned.plan.sparsity,
        "evaluated_on": split,
        "selection": selection,
        "verification": {
            "slim_against_masked": {**dataclasses.asdict(pruned.verification), "passed": pruned.verification.passed},
            "onnx_against_slim": {**dataclasses.asdict(onnx_check), "passed": onnx_check.passed},
            "program_against_slim": {**dataclasses.asdict(program_check), "passed": program_check.passed},
        },
        "layers": _layers(dense, pruned),
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
        "history": [_epoch_record(epoch) for epoch in found.history] if found else [],
        "warnings": _warnings(splits, aligned, found, masks, dense_accuracy, slim_accuracy) + _missed(pruned.plan),
        "data": {"specification": portable(specification), "notes": list(splits.notes)},
        "config": {**config.as_dict(), **({} if found else {"search": None})},
        "environment": environment_record(_device_name(device)) | {"flops_convention": FLOPS_CONVENTION},
        "timings": timings,
    }
    write_json(config.output / "report.json", record)
    return record


def check_environment(config: RunConfig) -> torch.device:
    """The device to use, once it is clear that it exists and that the output folder is free and can be written to."""
    device = _device(config.device)
    _check_output(config.output)
    return device


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device '{name}' was asked for, but torch sees no CUDA device; use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"'{name}' is no device; use auto, cpu, cuda or cuda:N") from error


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _check_output(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output {output} is a file; choose a folder")
    present = [name for name in _RESULTS if (output / name).exists()]
    if present:
        raise ConfigError(f"output folder {output} holds results already ({present[0]}); choose another with --output")
    probe = output
    while not probe.exists():
        probe = probe.parent
    write_check = probe / f".bise-prune-{time.time_ns()}"
    try:
        write_check.touch()
        write_check.unlink()
    except OSError as error:
        raise ConfigError(f"cannot write to {output}: {error.strerror}; choose another with --output") from error


def _data_specification(config: RunConfig, checkpoint: Checkpoint) -> str:
    specification = config.data or checkpoint.data
    if specification is None:
        raise ConfigError(
            f"no data to debias on: {config.checkpoint.name} names none, so pass --data FOLDER, a folder with images "
            "and a metadata.csv (label, bias, split, file), "
            f"e.g. bise-prune {config.checkpoint.name} --data waterbirds/"
        )
    return specification


def _check_data(splits: DataSplits, num_classes: int) -> None:
    for name, data in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        if data is not None and (int(data.target.max()) >= num_classes or int(data.target.min()) < 0):
            raise DataError(
                f"the {name} split has labels from {int(data.target.min())} to {int(data.target.max())}, but the model "
                f"has {num_classes} classes: labels must lie in [0, {num_classes - 1}]"
            )
    train = splits.train
    aligned = is_aligned(train.target, train.bias, aligned_values(train.target, train.bias, num_classes))
    for k, column in enumerate(aligned.unbind(1)):
        if bool(column.all()):
            raise DataError(
                f"no bias-conflicting sample among the {len(train)} of the training split (bias {k}): label and bias "
                "cannot be told apart there, so there is nothing to learn masks from"
            )


def _example(model: nn.Module, data: BiasedDataset) -> Tensor:
    example = data.batch(torch.arange(min(2, len(data)))).input
    try:
        with torch.no_grad():
            logits_of(model(example))
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"the model does not take inputs of shape {tuple(example.shape)}: {reason}") from error
    return example


def _pruned(
    config: RunConfig, dense: nn.Module, masks: MaskSet | PruningPlan, example: Tensor, device: torch.device
) -> PruningResult:
    """The slim network, its lowering and latency measured on ``device``; returned on the CPU."""
    result = prune(
        copy.deepcopy(dense).to(device),
        masks,
        example.to(device),
        config.target_sparsity,
        target_flops=config.target_flops,
        target_latency=config.target_latency,
        joins=config.joins,
        round_to=config.round_to,
        round_fill=config.round_fill,
    )
    return dataclasses.replace(result, model=result.model.cpu(), masked=result.masked.cpu())


def _check_target(config: RunConfig, model: nn.Module, sites: Sequence[GateSite], example: Tensor) -> None:
    """Whether some masks could meet a numeric target: the widest removal leaves one channel everywhere."""
    if config.target_sparsity == "auto":
        return
    logits = {site.name: torch.arange(site.num_channels) - site.num_channels + 1.5 for site in sites}
    joins: Joins = "intersection" if config.joins == "intersection" else "expand"
    widest = Planner(model, sites, example).propose(MaskSet(logits).keep, joins).plan.sparsity
    if float(config.target_sparsity) > widest + TOLERANCE:
        raise PruningError(
            f"target sparsity {config.target_sparsity:g} cannot be reached on this network with placement "
            f"'{config.search.placement}': the most is {widest:.4f}"
        )


def _report_split(splits: DataSplits) -> tuple[str, BiasedDataset]:
    if splits.test is not None:
        return "test", splits.test
    return ("val", splits.val) if splits.val is not None else ("train", splits.train)


def _search(
    config: RunConfig, dense: nn.Module, splits: DataSplits, device: torch.device, progress: Progress
) -> SearchResult:
    config.output.mkdir(parents=True, exist_ok=True)
    return search(
        copy.deepcopy(dense).to(device),
        BatchLoader(splits.train, config.batch_size, shuffle=True, seed=config.search.seed),
        config.search,
        None if splits.val is None else BatchLoader(splits.val, max(config.batch_size, 256)),
        on_epoch=lambda record, total: progress("search", record.epoch, total),
        state_path=config.output / STATE_FILE,
    )


def _selection(found: SearchResult, has_validation: bool) -> dict[str, Any]:
    if not has_validation:
        return {"rule": "last epoch (no validation split)", "epoch": found.best_epoch}
    chosen = found.history[found.best_epoch - 1].validation
    assert chosen is not None
    return {
        "rule": "highest unbiased accuracy on the validation split, the later epoch of equals",
        "epoch": found.best_epoch,
        "validation_n": chosen.n,
        "validation_unbiased_accuracy": chosen.unbiased_accuracy,
    }


def _epoch_record(epoch: EpochRecord) -> dict[str, Any]:
    """An epoch's figures, its validation without the subgroups: they would fill a megabyte."""
    record = dataclasses.asdict(epoch)
    if record["validation"] is not None:
        del record["validation"]["subgroups"]
    return record


def _preprocessing(data: BiasedDataset) -> dict[str, Any]:
    size = list(data.inputs.shape[2:]) if data.inputs.ndim == 4 else None
    return {"mean": list(data.mean), "std": list(data.std), "size": size, "scale": "uint8 / 255"}


def _empty_subgroups(train: BiasedDataset) -> int:
    """Cells (y, b) without samples, among classes and bias values that occur."""
    cells = torch.stack([train.target, train.bias[:, 0]], 1)
    return len(cells[:, 0].unique()) * len(cells[:, 1].unique()) - len(cells.unique(dim=0))


def _layers(dense: nn.Module, pruned: PruningResult) -> list[dict[str, Any]]:
    layers = []
    for name, layer in pruned.plan.layers.items():
        if name in pruned.plan.removed and isinstance(dense.get_submodule(name), (nn.modules.conv._ConvNd, nn.Linear)):
            layers.append({"name": name, "dense": layer.num_outputs, "slim": len(layer.outputs)})
    return layers


def _missed(plan: PruningPlan) -> list[str]:
    """A warning where rounding kept a target from being met."""
    if not plan.target or abs(plan.target["asked"] - plan.target["reached"]) <= TOLERANCE:
        return []
    asked, reached = (f"{plan.target[key]:.1%}" for key in ("asked", "reached"))
    return [f"the target ({plan.target['of']} {asked}) was not met: with widths rounded up it came to {reached}"]


def _warnings(
    splits: DataSplits,
    aligned: Tensor,
    found: SearchResult | None,
    masks: MaskSet,
    dense: Evaluation,
    slim: Evaluation,
) -> list[str]:
    notes = []
    conflicting = (~is_aligned(splits.train.target, splits.train.bias, aligned)).sum(0).tolist()
    if min(conflicting) < _FEW_SAMPLES * len(splits.train.target.unique()):
        notes.append(f"only {min(conflicting)} bias-conflicting training samples to learn from")
    empty = _empty_subgroups(splits.train)
    if empty:
        notes.append(f"{empty} subgroups have no training sample; they were weighted as if they had one")
    if splits.val is None and found is not None:
        notes.append("no validation split: the masks are the last epoch's")
    if splits.test is None:
        notes.append("no test split: the accuracies above are on data that masks were learned or selected on")
    if masks.num_closed in (0, masks.num_channels):
        notes.append(f"the masks are all {'open' if not masks.num_closed else 'closed'}")
    if found is not None and found.history[-1].silent_share > 0.5:
        share = found.history[-1].silent_share
        notes.append(
            f"the mutual information was silent in {share:.0%} of the batches (at most one conflicting sample)"
        )
    if slim.unbiased_accuracy < dense.unbiased_accuracy:
        notes.append(
            f"the slim network's unbiased accuracy is below the dense one's ({slim.unbiased_accuracy:.1%} against "
            f"{dense.unbiased_accuracy:.1%}): give the search more epochs (--anneal-every) or a start that closes less "
            "at once (--initial-logit 0.1)"
        )
    worse = [
        after.name
        for before, after in zip(dense.subgroups, slim.subgroups, strict=True)
        if after.accuracy < before.accuracy - 0.05 and after.n >= _FEW_SAMPLES
    ]
    if worse:
        notes.append(f"{len(worse)} of {len(slim.subgroups)} subgroups lost more than 5 points, e.g. {worse[0]}")
    return notes

"""The report record, which is the content of ``report.json``; one function makes each part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ..config import portable
from ..data import BiasedDataset
from ..mask_search import EpochRecord, SearchResult
from ..mask_search.selection import LAST, description
from ..metrics.accuracy import Evaluation, subgroup_labels, subgroup_members
from ..metrics.cost import FLOPS_CONVENTION, Latency, LatencyRatio, Measurement
from ..metrics.fairness import fairness_record
from ..pruning import PruningResult
from ..pruning.plan import PruningPlan
from ..pruning.verification import Verification
from ..pruning.widths import WidthTrial
from ..tracing import trace
from ..tuning.pseudo_labels import PseudoLabels
from .environment import command_line, environment_record
from .ladder import ladder_record
from .quality_gates import gate_records
from .results import LATENCY_BATCHES, ExportedFile, Figures, RunResults, Subject
from .verdict import verdict_of
from .warnings import warnings_of

SCHEMA_VERSION = 1
_SHOWN, _SHOWN_IN_ALL = 4, 80  # samples per subgroup and in all


def report_of(results: RunResults) -> dict[str, Any]:
    """Make the report record of a run from its results."""
    subject, plan, found = results.subject, results.pruned.plan, results.found
    labels = subgroup_labels(subject.splits.classes, subject.splits.bias_values, subject.splits.bias_names)
    fairness = _fairness(results, labels)
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "verdict": verdict_of(fairness).value,
        "dense": _network(results.dense, labels),
        "slim": _network(results.slim, labels),
        "sparsity": plan.sparsity,
        "latency_ratio": {f"batch_{ratio.batch_size}": _ratio(ratio) for ratio in results.latency_ratios},
        "widths": [_trial(trial, plan) for trial in results.trials],
        "evaluated_on": subject.evaluated_on,
        "fairness": fairness,
        "changed_samples": _changed_samples(results, fairness),
        "selection": _selection(results, labels),
        "finetuning": _finetuning(results, labels),
        "ladder": ladder_record(results),
        "identification": _identification(subject.pseudo),
        "aligned": _aligned(subject, found),
        "curve": _curve(results),
        "bias_probe": _probes(results),
        "verification": {
            "slim_against_masked": _check(results.pruned.verification),
            **{name: _check(check) for name, check in results.checks.items()},
        },
        "open_norms": results.pruned.open_norms,
        "formats": _formats(results.files, labels),
        "layers": _layers(subject.dense, results.pruned),
        "closed_but_kept": dict(plan.closed_but_kept),
        "plan": _plan(plan),
        "denormals_flushed": results.denormals,
        "history": [epoch_record(epoch) for epoch in found.history] if found else [],
        "warnings": warnings_of(results, labels, verdict_of(fairness)),
        "data": _data(subject),
        "checkpoint": {"arch": subject.checkpoint.arch, "notes": list(subject.checkpoint.notes)},
        "sources": sources_record(subject),
        "config": {**subject.config.as_dict(), **({} if found else {"search": None})},
        "environment": environment_record(subject.device) | {"flops_convention": FLOPS_CONVENTION},
        "command": command_line(),
        "timings": dict(results.timings),
    }
    record["gates"] = gate_records(subject.config, record)
    return record


def evaluation_record(evaluation: Evaluation, labels: dict[str, str] | None = None) -> dict[str, Any]:
    """Accuracies, in all and of every subgroup, with the numbers of samples.

    Args:
        evaluation: accuracies of a network.
        labels: readable labels of the subgroups, by their name.
    """
    return {
        "n": evaluation.n,
        "accuracy": evaluation.accuracy,
        "unbiased_accuracy": evaluation.unbiased_accuracy,
        "worst_group_accuracy": evaluation.worst_group_accuracy,
        "groups": [
            {
                "name": group.name,
                "label": (labels or {}).get(group.name, group.name),
                "n": group.n,
                "accuracy": group.accuracy,
            }
            for group in evaluation.subgroups
        ],
    }


def model_record(
    measurement: Measurement,
    latency: Latency,
    evaluation: Evaluation,
    labels: dict[str, str] | None = None,
    *,
    single: Latency | None = None,
) -> dict[str, Any]:
    """Size, FLOPs, latency and accuracies of one network.

    Args:
        measurement: size and FLOPs.
        latency: latency of a forward pass.
        evaluation: accuracies.
        labels: readable labels of the subgroups, by their name.
        single: latency of a forward pass of one sample; None if it was not measured.
    """
    by_sample = {} if single is None else {"latency_ms_batch_1": single.median_ms, "latency_batch_1": asdict(single)}
    return {
        "params": measurement.params,
        "flops": measurement.flops,
        "size_bytes": measurement.size_bytes,
        "latency_ms": latency.median_ms,
        "latency": asdict(latency),
        **by_sample,
        "unsupported_operators": dict(measurement.unsupported_operators),
        **evaluation_record(evaluation, labels),
    }


def epoch_record(epoch: EpochRecord) -> dict[str, Any]:
    """Figures of one epoch of the search, without validation accuracies of subgroups, which would take a megabyte."""
    record = asdict(epoch)
    if record["validation"] is not None:
        del record["validation"]["subgroups"], record["validation"]["worst_class_accuracy"]
    return record


def sources_record(subject: Subject) -> dict[str, str]:
    """SHA-256 of the checkpoint, of what the network computes, and of the data."""
    return {
        "checkpoint": subject.checkpoint.sha256,
        "network": trace(subject.dense, subject.held_out.example()).fingerprint,
        "data": subject.splits.fingerprint,
    }


def preprocessing_record(data: BiasedDataset, crop: float | None = None) -> dict[str, Any]:
    """How the network's inputs are made: normalisation and size of images, or names and length of token inputs.

    Args:
        data: inputs of the network.
        crop: share of the resized image's sides that the size is cropped from; None = images are not cropped.
    """
    if not isinstance(data.inputs, Tensor):
        return {"inputs": list(data.inputs), "max_length": max(t.shape[1] for t in data.inputs.values())}
    is_image = data.inputs.ndim == 4
    scale = "uint8 / 255" if data.inputs.dtype == torch.uint8 else "as they are"
    return {
        "mean": list(data.mean),
        "std": list(data.std),
        "size": list(data.inputs.shape[2:]) if is_image else None,
        "crop": crop if is_image else None,
        "channels": data.inputs.shape[1] if is_image else None,
        "scale": scale,
    }


def _network(figures: Figures, labels: dict[str, str]) -> dict[str, Any]:
    """The part on one network."""
    latency, single = figures.latencies[LATENCY_BATCHES[-1]], figures.latencies[1]
    return model_record(figures.measurement, latency, figures.evaluation, labels, single=single)


def _ratio(ratio: LatencyRatio) -> dict[str, Any]:
    """The latency of the slim network divided by the dense one's, and whether the slim network is slower."""
    return {"median": ratio.median, "low": ratio.low, "high": ratio.high, "is_slower": ratio.is_slower}


def _trial(trial: WidthTrial, plan: PruningPlan) -> dict[str, Any]:
    """One of the widths that were tried, and whether it was chosen."""
    return {
        "multiple": trial.multiple,
        "joins": trial.joins,
        "flops_left": trial.flops_left,
        **{f"latency_ratio_batch_{size}": ratio.median for size, ratio in trial.ratios.items()},
        "is_as_fast": trial.is_as_fast,
        "meets_target": trial.meets_target,
        "chosen": (trial.multiple, trial.joins) == (plan.rounding.get("multiple", 1), plan.joins),
    }


def _check(verification: Verification) -> dict[str, Any]:
    """One comparison of logits, and whether it passed."""
    return {**asdict(verification), "passed": verification.passed}


def _fairness(results: RunResults, labels: dict[str, str]) -> dict[str, Any]:
    """The fairness figures of the dense and the slim network, by subgroup."""
    held_out, aligned = results.subject.held_out, results.subject.held_out_aligned
    record = fairness_record(
        results.dense.predicted, results.slim.predicted, held_out.target, held_out.bias, aligned, held_out.origin
    )
    for group in record["groups"]:
        group["label"] = labels.get(group["name"], group["name"])
    return record


def _changed_samples(results: RunResults, fairness: dict[str, Any]) -> list[dict[str, Any]]:
    """The first few samples of every subgroup whose predicted class differs between the dense and the slim network."""
    data, tokenizer = results.subject.held_out, results.subject.tokenizer
    dense, slim = results.dense.predicted, results.slim.predicted
    members = dict(subgroup_members(data.target, data.bias, results.subject.held_out_aligned))
    samples = []
    each = max(1, min(_SHOWN, _SHOWN_IN_ALL // len(fairness["groups"])))
    for group in fairness["groups"]:
        rows = (members[group["name"]] & (dense != slim)).nonzero().flatten().tolist()
        for row in rows[:each]:
            sample = {"group": group["name"], "row": row, "label": int(data.target[row]),
                      "bias": data.bias[row].tolist(), "dense": int(dense[row]), "slim": int(slim[row])}  # fmt: skip
            if tokenizer is not None and not isinstance(data.inputs, Tensor):
                sample["text"] = tokenizer.decode(data.inputs["input_ids"][row], skip_special_tokens=True)
            samples.append(sample)
    return samples[: 2 * _SHOWN_IN_ALL]


def _selection(results: RunResults, labels: dict[str, str]) -> dict[str, Any]:
    """The epoch that the masks come from, the rule that selected it, and the epochs of the other rules."""
    config, found = results.subject.config, results.found
    if found is None:
        if config.plan is not None:
            return {"rule": "given plan"}
        if config.masks is not None:
            return {"rule": "given masks"}
        return {"rule": f"criterion '{config.criterion}', without a search"}
    picked = found.picks[found.rule]
    record: dict[str, Any] = {
        "rule": description(found.rule, config.search, config.target is not None),
        "name": found.rule,
        "epoch": picked.epoch,
        "epoch_by_rule": {rule: pick.epoch for rule, pick in found.picks.items()},
        "stopped_early": found.stopped_early,
    }
    if found.rule == LAST and not any(epoch.validation for epoch in found.history):
        record["rule"] += " (no validation split)"
    chosen = found.history[picked.epoch - 1].validation
    if chosen is not None:
        record |= {"validation_n": chosen.n, "validation_unbiased_accuracy": chosen.unbiased_accuracy}
    return record | {name: evaluation_record(accuracies, labels) for name, accuracies in results.picked.items()}


def _finetuning(results: RunResults, labels: dict[str, str]) -> dict[str, Any] | None:
    """The accuracies before finetuning, and the epoch of finetuning that was selected; None without finetuning."""
    tuned = results.tuned
    if tuned is None:
        return None
    epochs = [
        {"epoch": e.epoch, "loss": None if e.loss != e.loss else e.loss,
         "validation_unbiased_accuracy": e.validation.unbiased_accuracy if e.validation else None}
        for e in tuned.history
    ]  # fmt: skip
    record = {"rule": description(tuned.rule), "epoch": tuned.epoch, "history": epochs}
    return {**record, "before": evaluation_record(results.before_tuning, labels)}


def _identification(pseudo: PseudoLabels | None) -> dict[str, Any] | None:
    """Figures that tell how far the pseudo bias labels can be trusted; None without pseudo labels."""
    if pseudo is None:
        return None
    record = asdict(pseudo)
    del record["labels"]
    return record


def _aligned(subject: Subject, found: SearchResult | None) -> dict[str, Any]:
    """The bias value, for each bias, that each class is aligned with, and how it was determined."""
    aligned = subject.search_aligned if found is None else found.aligned
    names = subject.splits.classes
    if len(names) != len(aligned):  # the model has more classes than the data have names
        names = [str(label) for label in range(len(aligned))]
    by_training = subject.pseudo is not None or subject.splits.train.has_bias
    where = "p(b|y) - p(b) on the training split" if by_training else "p(b|predicted y) - p(b) on the validation split"
    return {
        "meaning": f"argmax_b {where}, per bias" + (" (pseudo labels)" if subject.pseudo is not None else ""),
        "by_class": {str(name): values for name, values in zip(names, aligned.tolist(), strict=True)},
    }


def _curve(results: RunResults) -> list[dict[str, Any]] | None:
    """Accuracy against sparsity over the thresholds, without subgroups; None if it was not asked for."""
    if results.curve is None:
        return None
    return [
        {
            "zeta": point.zeta,
            "closed": point.closed,
            "sparsity": point.sparsity,
            "flops_left": point.flops,
            "accuracy": point.evaluation.accuracy,
            "unbiased_accuracy": point.evaluation.unbiased_accuracy,
            "worst_group_accuracy": point.evaluation.worst_group_accuracy,
            "aligned_accuracy": point.evaluation.aligned_accuracy,
            "conflicting_accuracy": point.evaluation.conflicting_accuracy,
        }
        for point in results.curve
    ]


def _probes(results: RunResults) -> dict[str, Any] | None:
    """How much of the bias label a linear head reads from each network; None if it was not asked for."""
    if results.probes is None:
        return None
    found = {name: asdict(probe) for name, probe in results.probes.items()}
    return {"trained_on": "val", "evaluated_on": results.subject.evaluated_on, **found}


def _formats(files: Sequence[ExportedFile], labels: dict[str, str]) -> list[dict[str, Any]]:
    """Precision, size, latency and accuracies of every ONNX file, and the reason if it was refused."""
    return [
        {
            "file": file.name,
            "refused": file.refused,
            "precision": file.precision,
            **file.details,
            "opset": file.opset,
            "size_bytes": file.size_bytes,
            "latency_ms": file.latency.median_ms,
            "latency": asdict(file.latency),
            "latency_ratio": file.latency.median_ms / files[0].latency.median_ms,
            **evaluation_record(file.evaluation, labels),
        }
        for file in files
    ]


def _layers(dense: nn.Module, pruned: PruningResult) -> list[dict[str, Any]]:
    """Number of channels before and after, for every convolution and linear layer that lost some."""
    layers, modules = [], dict(dense.named_modules())
    others = (nn.modules.batchnorm._NormBase, nn.PReLU)
    for name, layer in pruned.plan.layers.items():
        if name in pruned.plan.removed and not isinstance(modules.get(name), others):
            layers.append({"name": name, "dense": layer.num_outputs, "slim": len(layer.outputs)})
    return layers


def _plan(plan: PruningPlan) -> dict[str, Any]:
    """The main figures of the plan."""
    return {
        "joins": plan.joins,
        "costs_ms": dict(plan.costs_ms),
        "edited_calls": len(plan.edits),
        "target": dict(plan.target),
        "rounding": dict(plan.rounding),
        "fingerprint": plan.fingerprint,
    }


def _data(subject: Subject) -> dict[str, Any]:
    """The data set and its preprocessing."""
    splits = subject.splits
    split, learned_on = subject.learned_on
    return {
        "specification": portable(subject.specification),
        "notes": list(splits.notes),
        "classes": list(splits.classes),
        "biases": [
            {"name": splits.bias_name(k), "values": [splits.bias_value(k, value) for value in range(int(most) + 1)]}
            for k, most in enumerate(subject.held_out.bias.amax(0))
        ],
        "samples": {name: 0 if data is None else len(data) for name, data in splits.by_name.items()},
        "learned_on": {"split": split, "samples": len(learned_on)},
        "preprocessing": preprocessing_record(splits.train, subject.checkpoint.preprocessing.get("crop")),
    }

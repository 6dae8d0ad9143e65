"""What a run's results amount to: the parts of ``report.json`` that are drawn from several stages."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import RunConfig
from ..data import BiasedDataset
from ..diagnostics.sweep import SweepPoint
from ..gates.masks import MaskSet
from ..mask_search import EpochRecord, SearchResult
from ..mask_search.selection import DESCRIPTIONS, LAST, NEED_BIAS
from ..metrics.accuracy import Evaluation, subgroup_members
from ..metrics.subgroups import is_aligned
from ..pruning import PruningResult
from ..pruning.plan import PruningPlan
from ..pruning.planner import LATENCY_TOLERANCE, TOLERANCE
from ..report.record import evaluation_record
from ..tuning.finetuning import FinetuneResult
from ..tuning.pseudo_labels import PseudoLabels
from .session import Session

_FEW_SAMPLES = 10
_SLACK = 1e-9  # of gates, for differences of shares
GATES = ("min_worst_group", "max_accuracy_drop", "min_speedup")
_SHOWN, _SHOWN_IN_ALL = 4, 80  # samples with changed predictions


def selection_record(found: SearchResult) -> dict[str, Any]:
    """Which epoch the masks come from and why, and which ones the other rules would have picked."""
    picked = found.picks[found.rule]
    record: dict[str, Any] = {
        "rule": DESCRIPTIONS[found.rule],
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
    return record


def epoch_record(epoch: EpochRecord) -> dict[str, Any]:
    """An epoch's figures, its validation without the subgroups: they would fill a megabyte."""
    record = dataclasses.asdict(epoch)
    if record["validation"] is not None:
        del record["validation"]["subgroups"], record["validation"]["worst_class_accuracy"]
    return record


def finetuning_record(tuned: FinetuneResult | None, as_is: Evaluation) -> dict[str, Any] | None:
    """How the slim network was before finetuning, and which epoch it is now."""
    if tuned is None:
        return None
    epochs = [
        {"epoch": e.epoch, "loss": None if e.loss != e.loss else e.loss,
         "validation_unbiased_accuracy": e.validation.unbiased_accuracy if e.validation else None}
        for e in tuned.history
    ]  # fmt: skip
    record = {"rule": DESCRIPTIONS[tuned.rule], "epoch": tuned.epoch, "history": epochs}
    return {**record, "before": evaluation_record(as_is)}


def identification_record(pseudo: PseudoLabels | None) -> dict[str, Any] | None:
    """How far pseudo bias labels can be trusted."""
    if pseudo is None:
        return None
    record = dataclasses.asdict(pseudo)
    del record["labels"]
    return record


def aligned_record(session: Session, found: SearchResult | None) -> dict[str, Any]:
    """What "bias-aligned" means here: per class, the bias value of each bias that is most associated with it."""
    aligned = session.search_aligned if found is None else found.aligned
    names = session.splits.classes
    if len(names) != len(aligned):  # the model has more outputs than the data have labels
        names = [str(label) for label in range(len(aligned))]
    return {
        "meaning": "argmax_b p(b|y) - p(b) on the training split, per bias"
        + (" (pseudo labels)" if session.pseudo is not None else ""),
        "by_class": {str(name): values for name, values in zip(names, aligned.tolist(), strict=True)},
    }


def curve_record(points: list[SweepPoint]) -> list[dict[str, Any]]:
    """The curve of accuracy against sparsity, without subgroups."""
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
        for point in points
    ]


def changed_samples(session: Session, fairness: dict[str, Any], dense: Tensor, slim: Tensor) -> list[dict[str, Any]]:
    """Samples whose predicted class (N,) differs between the networks, the first few of every subgroup."""
    data = session.held_out[1]
    members = dict(subgroup_members(data.target, data.bias, session.held_out_aligned))
    samples = []
    each = max(1, min(_SHOWN, _SHOWN_IN_ALL // len(fairness["groups"])))
    for group in fairness["groups"]:
        rows = (members[group["name"]] & (dense != slim)).nonzero().flatten().tolist()
        for row in rows[:each]:
            sample = {"group": group["name"], "row": row, "label": int(data.target[row]),
                      "bias": data.bias[row].tolist(), "dense": int(dense[row]), "slim": int(slim[row])}  # fmt: skip
            if session.tokenizer is not None and not isinstance(data.inputs, Tensor):
                sample["text"] = session.tokenizer.decode(data.inputs["input_ids"][row], skip_special_tokens=True)
            samples.append(sample)
    return samples[: 2 * _SHOWN_IN_ALL]


def gate_records(config: RunConfig, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The quality gates that were set, what the slim network came to, and whether it passed."""
    dense, slim = record["dense"], record["slim"]
    drop, speedup = dense["accuracy"] - slim["accuracy"], dense["latency_ms"] / slim["latency_ms"]
    gates = []
    for name, value in zip(GATES, (slim["worst_group_accuracy"], drop, speedup), strict=True):
        asked = getattr(config, name)
        if asked is not None:
            passed = value <= asked + _SLACK if name.startswith("max") else value >= asked - _SLACK
            gates.append({"name": name, "asked": asked, "value": value, "passed": passed})
    return gates


def preprocessing_record(data: BiasedDataset) -> dict[str, Any]:
    """How inputs are made from pixels, or which tokens a network takes."""
    if not isinstance(data.inputs, torch.Tensor):
        return {"inputs": list(data.inputs), "max_length": max(t.shape[1] for t in data.inputs.values())}
    size = list(data.inputs.shape[2:]) if data.inputs.ndim == 4 else None
    scale = "uint8 / 255" if data.inputs.dtype == torch.uint8 else "as they are"
    return {"mean": list(data.mean), "std": list(data.std), "size": size, "scale": scale}


def layer_records(dense: nn.Module, pruned: PruningResult) -> list[dict[str, Any]]:
    """Kept channels of every convolution and linear layer that lost some."""
    layers = []
    for name, layer in pruned.plan.layers.items():
        if name in pruned.plan.removed and isinstance(dense.get_submodule(name), (nn.modules.conv._ConvNd, nn.Linear)):
            layers.append({"name": name, "dense": layer.num_outputs, "slim": len(layer.outputs)})
    return layers


def missed_target(plan: PruningPlan) -> list[str]:
    """A warning where rounding kept a target from being met."""
    tolerance = LATENCY_TOLERANCE if plan.target.get("of") == "removal of latency" else TOLERANCE
    if not plan.target or abs(plan.target["asked"] - plan.target["reached"]) <= tolerance:
        return []
    asked, reached = (f"{plan.target[key]:.1%}" for key in ("asked", "reached"))
    return [f"the target ({plan.target['of']} {asked}) was not met: with widths rounded up it came to {reached}"]


def _empty_subgroups(train: BiasedDataset) -> int:
    """Cells (y, b) without samples, among classes and bias values that occur."""
    cells = torch.stack([train.target, train.bias[:, 0]], 1)
    return len(cells[:, 0].unique()) * len(cells[:, 1].unique()) - len(cells.unique(dim=0))


def _single_subgroups(train: BiasedDataset) -> int:
    """Cells (y, b) with one sample."""
    _, counts = torch.stack([train.target, train.bias[:, 0]], 1).unique(dim=0, return_counts=True)
    return int((counts == 1).sum())


def warnings_of(
    session: Session, found: SearchResult | None, masks: MaskSet, dense: Evaluation, slim: Evaluation
) -> list[str]:
    """What a reader of the results must know, in words."""
    splits = session.splits
    notes = [*splits.warnings, *(session.pseudo.warnings if session.pseudo is not None else ())]
    if session.pseudo is not None:
        notes.append("bias labels are pseudo labels: figures on subgroups of training and validation data rest on them")
    conflicting = []
    if splits.train.has_bias:
        aligned = session.search_aligned if found is None else found.aligned
        conflicting = (~is_aligned(splits.train.target, splits.train.bias, aligned)).sum(0).tolist()
    if conflicting and min(conflicting) < _FEW_SAMPLES * len(splits.train.target.unique()):
        notes.append(f"only {min(conflicting)} bias-conflicting training samples to learn from")
    single = _single_subgroups(splits.train) if conflicting else 0
    if single:
        notes.append(f"{single} subgroups have one training sample each, whose weight is the largest there is")
    unused = session.num_classes - len(splits.train.target.unique())
    if unused:
        notes.append(
            f"the model has {session.num_classes} classes, of which {unused} do not occur in the training data"
        )
    empty = _empty_subgroups(splits.train) if conflicting else 0
    if empty:
        notes.append(f"{empty} subgroups have no training sample; they were weighted as if they had one")
    chosen = found.history[found.picks[found.rule].epoch - 1].validation if found is not None else None
    if chosen is not None and found is not None and found.rule in NEED_BIAS:
        least = min(group.n for group in chosen.subgroups)
        if least < _FEW_SAMPLES:
            notes.append(f"the epoch was selected on validation subgroups of as few as {least} samples")
    if splits.val is None and found is not None:
        notes.append("no validation split: the masks are the last epoch's")
    if splits.test is None:
        notes.append("no test split: the accuracies above are on data that masks were learned or selected on")
    if isinstance(splits.train.inputs, torch.Tensor) and "mean" not in session.checkpoint.preprocessing:
        if Path(session.specification).exists():
            mean, std = (
                ", ".join(f"{value:g}" for value in values) for values in (splits.train.mean, splits.train.std)
            )
            notes.append(
                f"the checkpoint does not say how its inputs were normalised: mean {mean} and std {std} (ImageNet's) "
                "are assumed; give --mean and --std if they differ"
            )
    notes += session.checkpoint.notes
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

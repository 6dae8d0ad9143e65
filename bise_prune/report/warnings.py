"""Warnings in the report: everything that calls the results of a run into question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..config import Target
from ..data import BiasedDataset
from ..data.images import MEAN
from ..errors import counted
from ..export.runtime import ON_CPU
from ..mask_search import SearchResult
from ..mask_search.selection import NEED_BIAS
from ..metrics.subgroups import is_aligned
from ..tuning.finetuning import FinetuneResult
from .advice import advice
from .results import RunResults, Subject
from .verdict import Verdict

_FEW_SAMPLES = 10
_WORSE = 0.05  # accuracy that a subgroup may lose without a warning


def warnings_of(results: RunResults, labels: Mapping[str, str], verdict: Verdict) -> list[str]:
    """Collect the warnings about a run, one sentence each.

    Args:
        results: results of the run.
        labels: readable labels of the subgroups, by their name.
        verdict: outcome of the run.
    """
    subject = results.subject
    return [
        *_of_speed(results),
        *warnings_of_inputs(subject),
        *_of_pseudo_labels(subject),
        *_of_training_data(subject, results.found),
        *_of_selection(subject, results.found),
        *_of_masks(results),
        *_of_finetuning(results.tuned),
        *_of_accuracies(results, labels, verdict),
        *_of_target(results),
    ]


def warnings_of_inputs(subject: Subject) -> list[str]:
    """Collect the warnings about what a run is given, which are known before any work."""
    return [*subject.splits.warnings, *_of_preprocessing(subject), *subject.checkpoint.notes]


def _of_speed(results: RunResults) -> Iterator[str]:
    """Warnings if the slim network is slower than the dense one or as wide, or if a GPU was not used for measuring."""
    slower = [ratio for ratio in results.latency_ratios if ratio.is_slower]
    if slower:
        times = " and ".join(f"{ratio.median:.2f} times as long at batch {ratio.batch_size}" for ratio in slower)
        yield f"the slim network is slower than the dense one: in onnxruntime it takes {times}; {_advice(results)}"
    plan, closed = results.pruned.plan, results.masks.num_closed
    if results.trials and not plan.layers and closed:
        yield (
            f"no channel was removed, although the masks close {closed} of {results.masks.num_channels}: all narrower "
            "networks that were tried are slower than the dense one; --round-to 1 removes them in any case"
        )
    on_cpu = all(latency.device == ON_CPU for latency in results.slim.latencies.values())
    if results.subject.device != "cpu" and on_cpu:
        yield "this onnxruntime cannot use the GPU: latencies, and the widths chosen by them, are those of the CPU"


def _of_finetuning(tuned: FinetuneResult | None) -> Iterator[str]:
    """A warning if finetuning was of no use."""
    if tuned is not None and not tuned.epoch:
        yield (
            f"finetuning was of no use: none of its {counted(len(tuned.history) - 1, 'epoch')} was as good on the "
            "validation split as the network before it, which is kept; another --finetune-lr may help"
        )


def _advice(results: RunResults) -> str:
    """What to do about a slim network that is slower than the dense one."""
    plan, trials = results.pruned.plan, results.trials
    others = [trial for trial in trials if trial.multiple != plan.rounding.get("multiple", 1)]
    faster = sorted({trial.multiple for trial in others if trial.is_as_fast})
    if faster:
        return f"of the widths tried, --round-to {' or '.join(map(str, faster))} was not slower"
    if not trials:
        return "--round-to auto, which measures several widths, takes one that is not"
    if plan.target:
        return "so was every width tried: without a target, layers may keep more channels"
    if plan.edits:
        return "so was every width tried, since masks disagree where tensors meet: search with --placement tied"
    return "so was every width tried: measure again when the machine is idle (python tools/latency_report.py)"


def _of_pseudo_labels(subject: Subject) -> Iterator[str]:
    """Warnings about pseudo bias labels."""
    if subject.pseudo is not None:
        yield from subject.pseudo.warnings
        yield "bias labels are pseudo labels: figures on subgroups of training and validation data rest on them"


def _of_training_data(subject: Subject, found: SearchResult | None) -> Iterator[str]:
    """Warnings about rare or missing bias-conflicting samples, subgroups and classes."""
    train, learned = subject.splits.train, subject.learned_on[1]
    where = {"train": "training", "val": "validation"}[subject.learned_on[0]]
    num_classes_seen = len(train.target.unique())
    if learned.has_bias:
        aligned = subject.search_aligned if found is None else found.aligned
        conflicting = int((~is_aligned(learned.target, learned.bias, aligned)).sum(0).min())
        if conflicting < _FEW_SAMPLES * num_classes_seen:
            yield f"only {counted(conflicting, f'bias-conflicting {where} sample')} to learn from"
        if single := _single_subgroups(learned):
            yield f"{counted(single, 'subgroup')} with a single {where} sample, whose weight is the largest there is"
    if unused := subject.num_classes - num_classes_seen:
        verb = "does" if unused == 1 else "do"
        yield f"the model has {subject.num_classes} classes, of which {unused} {verb} not occur in the training data"
    if learned.has_bias and (empty := _empty_subgroups(learned)):
        yield f"{counted(empty, 'subgroup')} without a {where} sample, weighted as if with one"


def _empty_subgroups(data: BiasedDataset) -> int:
    """Number of subgroups without samples, among the classes and bias values that occur."""
    cells = _cells(data)
    return len(cells[:, 0].unique()) * len(cells[:, 1].unique()) - len(cells.unique(dim=0))


def _single_subgroups(data: BiasedDataset) -> int:
    """Number of subgroups with one sample."""
    _, counts = _cells(data).unique(dim=0, return_counts=True)
    return int((counts == 1).sum())


def _cells(data: BiasedDataset) -> Tensor:
    """Class label and first bias label of every sample, shape (N, 2)."""
    return torch.stack([data.target, data.bias[:, 0]], 1)


def _of_selection(subject: Subject, found: SearchResult | None) -> Iterator[str]:
    """Warnings about the data on which the epoch was selected and the results are reported."""
    chosen = None if found is None else found.history[found.picks[found.rule].epoch - 1].validation
    if chosen is not None and found is not None and found.rule in NEED_BIAS:
        least = min(group.n for group in chosen.subgroups)
        if least < _FEW_SAMPLES:
            yield f"the epoch was selected on validation subgroups of as few as {counted(least, 'sample')}"
    if subject.splits.val is None and found is not None:
        yield "no validation split: the masks are the last epoch's"
    if subject.splits.test is None:
        yield "no test split: the accuracies above are on data that masks were learned or selected on"


def _of_preprocessing(subject: Subject) -> Iterator[str]:
    """A warning if the normalisation of the images had to be assumed."""
    train = subject.splits.train
    is_file = Path(subject.specification).exists()
    if isinstance(train.inputs, Tensor) and "mean" not in subject.checkpoint.preprocessing and is_file:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (train.mean, train.std))
        whose = " (ImageNet's)" if train.mean == MEAN else ""
        yield (
            f"the checkpoint does not say how its inputs were normalised: mean {mean} and std {std}{whose} are "
            "assumed; give --mean and --std if they differ"
        )


def _of_masks(results: RunResults) -> Iterator[str]:
    """Warnings about masks that are all equal, and about mutual information that was mostly 0."""
    masks, found = results.masks, results.found
    if masks.num_closed in (0, masks.num_channels):
        effect = "nothing is removed for its bias" if not masks.num_closed else "nothing of the network is left"
        yield f"the masks are all {'open' if not masks.num_closed else 'closed'}: {effect}"
    if found is not None and (share := found.history[-1].silent_share) > 0.5:
        yield (
            f"in {share:.0%} of the batches at most one sample was bias-conflicting, so that "
            "the mutual information was 0"
        )


def _of_accuracies(results: RunResults, labels: Mapping[str, str], verdict: Verdict) -> Iterator[str]:
    """Warnings about accuracies that fell."""
    dense, slim = results.dense.evaluation, results.slim.evaluation
    if verdict is Verdict.WORSE:
        yield (
            f"the slim network's unbiased accuracy is below the dense one's ({slim.unbiased_accuracy:.1%} against "
            f"{dense.unbiased_accuracy:.1%})"
            + (f"; to try: {help}" if (help := advice(results.subject.config, results.found is not None)) else "")
        )
    worse = [
        (before.accuracy - after.accuracy, after.name)
        for before, after in zip(dense.subgroups, slim.subgroups, strict=True)
        if after.accuracy < before.accuracy - _WORSE and after.n >= _FEW_SAMPLES
    ]
    if worse:
        drop, name = max(worse)
        yield (
            f"{len(worse)} of {len(slim.subgroups)} subgroups lost more than 5 points, most of all "
            f"'{labels.get(name, name)}' ({100 * drop:.1f} points)"
        )


def _of_target(results: RunResults) -> Iterator[str]:
    """A warning if the target was not met."""
    plan = results.pruned.plan
    if not plan.target:
        return
    asked, reached = plan.target["asked"], plan.target["reached"]
    tolerance = Target(plan.target["kind"], 0.5).tolerance
    if abs(asked - reached) > tolerance:
        if plan.target.get("by") == "search" and reached > asked:
            yield f"the target ({plan.target['of']} {asked:.1%}) was exceeded: the best masks came to {reached:.1%}"
            return
        is_rounded = plan.rounding.get("multiple", 1) > 1
        why = "with widths rounded up" if is_rounded else "by whole channels"
        hint = "; --round-to 1 does not round" if is_rounded and results.trials else ""
        yield f"the target ({plan.target['of']} {asked:.1%}) was not met: {why} it came to {reached:.1%}{hint}"

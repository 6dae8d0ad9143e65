"""The outcome of a run in one word and one sentence: the unbiased accuracy of the slim against the dense network."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from ..metrics.chance import unbiased_change


class Verdict(StrEnum):
    """Whether the unbiased accuracy has changed beyond the noise of the held-out samples."""

    IMPROVED = "improved"
    EQUAL = "equal"
    WORSE = "worse"


# What the first sentence about the slim network says of its unbiased accuracy.
_WORDS: Mapping[Verdict, str] = {
    Verdict.IMPROVED: "is higher than the dense network's, beyond the noise",
    Verdict.EQUAL: "equals the dense network's within the noise",
    Verdict.WORSE: "is lower than the dense network's, beyond the noise",
}


def verdict_of(fairness: Mapping[str, Any]) -> Verdict:
    """The outcome of a run: the unbiased accuracy has changed if two intervals of its change agree on the side of 0.

    One is the paired bootstrap interval of the report, as far as there is one; the other counts small subgroups with
    two more samples (:func:`bise_prune.metrics.chance.unbiased_change`), which the bootstrap cannot.

    Args:
        fairness: fairness part of a report record.
    """
    bootstrap = fairness["change"]["unbiased_accuracy"]
    groups = [(group["n"], group["fixed"], group["broken"]) for group in fairness["groups"]]
    intervals = [unbiased_change(groups, fairness["interval"]["level"])]
    if bootstrap["low"] is not None:
        intervals.append((bootstrap["low"], bootstrap["high"]))
    if all(low > 0 for low, _ in intervals):
        return Verdict.IMPROVED
    return Verdict.WORSE if all(high < 0 for _, high in intervals) else Verdict.EQUAL


def verdict_sentence(record: Mapping[str, Any]) -> str:
    """The outcome as the first sentence of everything that is written about a run, with its figures.

    Args:
        record: report record of a run.
    """
    dense, slim = record["dense"]["unbiased_accuracy"], record["slim"]["unbiased_accuracy"]
    return (
        f"On the {record['evaluated_on']} split, the slim network's unbiased accuracy "
        f"{_WORDS[verdict_of(record['fairness'])]}: {slim:.1%} against {dense:.1%}."
    )


def frontier_sentence(record: Mapping[str, Any]) -> str:
    """The outcomes of a frontier's points, counted.

    Args:
        record: record of a frontier.
    """
    found = [verdict_of(point["report"]["fairness"]) for point in record["frontier"]]
    counts = [f"{verdict} {found.count(verdict)}" for verdict in Verdict]
    counts += [f"without a result {len(record['failed'])}"] if record.get("failed") else []
    return f"Unbiased accuracy against the dense network, by number of targets: {', '.join(counts)}."

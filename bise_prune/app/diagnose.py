"""A look at the dense network before any search: how biased it is, how far cheap changes go, and what to do."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from ..config import RunConfig
from ..data import BatchLoader
from ..diagnostics.probe import probe_bias
from ..errors import DataError, counted
from ..gates.sites import gate_sites
from ..metrics.accuracy import Evaluation, subgroup_labels, subgroup_members
from ..metrics.fairness import fairness_record
from ..metrics.subgroups import is_aligned
from ..report.ladder import NAMES
from ..report.rendering import FEW_SAMPLES
from ..tuning.ladder import Ladder, Rung
from .estimate import estimated
from .progress import Progress, StageClock
from .reading import read_session
from .session import Session
from .stages.identify import identified
from .stages.ladder import ladder_of

_SHOWN = 20  # subgroups, the worst first
_OF_PSEUDO_LABELS = ("precision", "recall", "agreement", "warnings")


def diagnose(config: RunConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Look at the dense network and the data; nothing is searched, and nothing is written.

    Args:
        config: settings of the run; ``output`` is not used.
        progress: function that gets the progress.

    Returns:
        What ``bise-prune diagnose --json`` prints: ``evaluated_on``, ``dense`` (accuracies with 95 % intervals, by
        subgroup), ``ladder`` (the dense network if a little may change), ``bias_read`` (how accurately a linear
        classifier reads each bias label from the features; None without labelled validation and test data),
        ``validation``, ``identification``, ``estimate`` and ``advice``.

    Raises:
        BiseError: a run would refuse these settings or files.
    """
    clock = StageClock(progress)
    with tempfile.TemporaryDirectory() as folder:  # a run's own folder may hold results already
        session = read_session(dataclasses.replace(config, output=Path(folder) / "unused"), clock, Path(folder))
    if session.doubt:
        raise DataError(session.doubt)
    if session.needs_pseudo_labels:
        session = identified(session, clock)
    with clock.stage("diagnose"):
        ladder = ladder_of(session, session.dense)
        name, held_out = session.held_out
        found = ladder.evaluations(held_out, session.held_out_aligned)
        predicted = session.predicted(session.dense)
        fairness = fairness_record(
            predicted, predicted, held_out.target, held_out.bias, session.held_out_aligned, held_out.origin
        )
        labels = subgroup_labels(session.splits.classes, session.splits.bias_values, session.splits.bias_names)
        validation = _validation(session, labels)
        sites = gate_sites(session.dense, session.example, session.config.search.placement)
        pseudo = session.pseudo
        return {
            "evaluated_on": name,
            "dense": {
                "n": len(held_out),
                **{key: fairness["dense"][key] for key in ("accuracy", "unbiased_accuracy", "worst_group_accuracy")},
                "aligned_conflicting_gap": [bias["aligned_conflicting_gap"] for bias in fairness["dense"]["biases"]],
                "groups": [
                    {"name": group["name"], "label": labels.get(group["name"], group["name"]), "n": group["n"],
                     "aligned": group["aligned"], **group["dense"]}
                    for group in fairness["groups"]
                ],
            },
            "ladder": [
                {
                    "rung": rung.value,
                    "changes": list(ladder.steps[rung].changes),
                    "num_changed": ladder.num_changed(rung),
                    "accuracy": evaluation.accuracy,
                    "unbiased_accuracy": evaluation.unbiased_accuracy,
                    "worst_group_accuracy": evaluation.worst_group_accuracy,
                    "conflicting_accuracy": evaluation.conflicting_accuracy,
                }
                for rung, evaluation in found.items()
            ],
            "bias_read": _bias_read(session),
            "validation": validation,
            "identification": None if pseudo is None else {key: getattr(pseudo, key) for key in _OF_PSEUDO_LABELS},
            "estimate": estimated(session, sites),
            "advice": _advice(session, ladder, found, fairness["dense"], validation),
        }  # fmt: skip


def _validation(session: Session, labels: Mapping[str, str]) -> dict[str, Any] | None:
    """Number of validation samples that select, and the smallest of their subgroups; None without validation data."""
    val = session.val
    if val is None:
        return None
    members = subgroup_members(val.target.cpu(), val.bias.cpu(), session.held_out_aligned)
    size, name = min((int(found.sum()), name) for name, found in members if found.any())
    learned_on = "train" if session.halves is None else "val"
    return {"selecting": len(val), "smallest_group": labels.get(name, name), "n": size, "learned_on": learned_on}


def _bias_read(session: Session) -> dict[str, list[float]] | None:
    """How accurately a linear classifier tells each bias label by the features, and guessing the commonest value."""
    val, test = session.splits.val, session.splits.test
    if val is None or test is None or not val.has_bias or not test.has_bias or session.pseudo is not None:
        return None
    loaders = (BatchLoader(data, 256) for data in (val, test))
    found = probe_bias(session.on_device(session.dense), *loaders, seed=session.config.search.seed)
    return {"accuracy": list(found.accuracy), "majority": list(found.majority)}


def _advice(
    session: Session,
    ladder: Ladder,
    found: Mapping[Rung, Evaluation],
    dense: Mapping[str, Any],
    validation: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The advice by what was found."""
    unbiased = {rung: evaluation.unbiased_accuracy for rung, evaluation in found.items()}
    # Validation data decide, not figures on the held-out split: the lowest rung that does all that the highest does.
    rung = next(rung for rung in Rung if ladder.steps[rung].changes == ladder.steps[Rung.HEAD].changes)
    conflicting = [value for key in Rung if (value := found[key].conflicting_accuracy) is not None]
    is_readable = not conflicting or any(_is_above_chance(value, session) for value in conflicting)
    gaps = [bias["aligned_conflicting_gap"]["low"] for bias in dense["biases"]]
    is_biased = not gaps or any(low is None or low > 0 for low in gaps)
    is_doubted = session.pseudo is not None and not session.pseudo.is_trusted
    return advice_of(unbiased, rung, is_readable, is_biased, validation, is_doubted=is_doubted)


def advice_of(
    unbiased: Mapping[Rung, float],
    rung: Rung,
    is_readable: bool,
    is_biased: bool,
    validation: Mapping[str, Any] | None,
    *,
    is_doubted: bool = False,
) -> dict[str, Any]:
    """What to do.

    Args:
        unbiased: unbiased accuracy of the dense network at each rung, in [0, 1].
        rung: the lowest rung that makes the changes for which validation data speak; Rung.NONE if there are none.
        is_readable: whether the network, or a refitted last layer of it, does better than chance on bias-conflicting
            samples.
        is_biased: whether the network does worse on bias-conflicting samples than on aligned ones, beyond the noise.
        validation: what selects masks, as in the record; None without validation data.
        is_doubted: whether bias labels are pseudo labels that are warned of.

    Returns:
        ``kind``: "prune", "both" (prune and tune) or "neither"; ``text``, and ``flags`` of the run.
    """
    kind, flags = "prune", ["--target-sparsity", "auto"]
    if not is_readable:
        kind, flags = "neither", []
        text = (
            "Where class and bias label disagree, neither the network nor a refitted last layer of it does better than "
            "chance. It has learned the bias alone, and no part of it is unbiased: train with balanced batches, or "
            "with more bias-conflicting samples."
        )
    elif not is_biased:
        flags = ["--target-flops", "0.5"]
        text = (
            "The network is no worse where class and bias label disagree, so there is no bias to remove by these "
            "labels. Prune it for its size alone, to a target."
        )
    elif unbiased[rung] > unbiased[Rung.NONE]:
        kind, flags = "both", [*flags, "--tune", rung.value]
        what = NAMES[rung].removeprefix("+ ") + (" and norm layers" if rung is Rung.HEAD else "")
        text = (
            f"Prune, and let this change if it may: {what}, which alone takes the unbiased "
            f"accuracy from {unbiased[Rung.NONE]:.1%} to {unbiased[rung]:.1%}. Leave out --tune if nothing may change. "
            "The report says what the masks add to either."
        )
    else:
        text = "Prune: none of the cheap changes helps, so that what is to be gained is in the choice of channels."
    if kind == "both":
        text += " If all weights may change, --tune all goes on from there and trains the slim network."
    if is_doubted:
        text += (
            " The pseudo bias labels may say little of the bias (see the warnings), and what goes by them may do harm: "
            "label a few hundred validation samples if you can, and diagnose again with these labels."
        )
    if validation is None:
        text += " There is no validation split to select masks on, so that the last ones will be taken."
    elif validation["n"] < FEW_SAMPLES:
        text += (
            f" The smallest subgroup that selects masks ({validation['smallest_group']}) has only "
            f"{counted(validation['n'], 'validation sample')}: selection by the worst subgroup would be mostly chance."
        )
    return {"kind": kind, "text": text, "flags": flags}


def _is_above_chance(conflicting: float, session: Session) -> bool:
    """Whether an accuracy on bias-conflicting samples is above chance by more than two standard errors."""
    data, chance = session.held_out[1], 1 / session.num_classes
    aligned = is_aligned(data.target.cpu(), data.bias.cpu(), session.held_out_aligned).all(1)
    return conflicting > chance + 2 * math.sqrt(chance * (1 - chance) / int((~aligned).sum()))


def diagnosis_tables(record: Mapping[str, Any]) -> Group:
    """The result of a diagnosis for the terminal."""
    dense = record["dense"]
    groups = Table(title=f"The dense network, {record['evaluated_on']} split, n = {dense['n']:,}", title_justify="left")
    for name in ("", "n", "accuracy", "95 % interval"):
        groups.add_column(name, justify="right" if name else "left")
    for label, key in (("all samples", "accuracy"), ("unbiased", "unbiased_accuracy")):
        groups.add_row(label, "", f"{dense[key]['value']:.1%}", _interval(dense[key]))
    for group in sorted(dense["groups"], key=lambda group: group["value"])[:_SHOWN]:
        side = "" if not group["aligned"] else ", aligned" if all(group["aligned"]) else ", conflicting"
        groups.add_row(group["label"] + side, f"{group['n']:,}", f"{group['value']:.1%}", _interval(group))
    ladder = Table(title="If this may change", title_justify="left")
    ladder.add_column("")
    ladder.add_column("unbiased accuracy (worst subgroup)", justify="right")
    for row in record["ladder"]:
        ladder.add_row(NAMES[row["rung"]], f"{row['unbiased_accuracy']:.1%} ({row['worst_group_accuracy']:.1%})")
    about = Table(show_header=False)
    if record["bias_read"]:
        pairs = zip(record["bias_read"]["accuracy"], record["bias_read"]["majority"], strict=True)
        read = ", ".join(f"{accuracy:.1%} (guessing: {majority:.1%})" for accuracy, majority in pairs)
        about.add_row("bias label read from the features", read)
    if record["validation"]:
        found = record["validation"]
        about.add_row("smallest subgroup that selects", f"{found['smallest_group']}, n = {found['n']:,}")
    if record["identification"]:
        shares = {key: value for key, value in record["identification"].items() if isinstance(value, float)}
        about.add_row("pseudo labels", ", ".join(f"{key} {value:.1%}" for key, value in shares.items()))
    minutes = math.ceil(record["estimate"]["seconds"] / 60)
    about.add_row("search", f"about {minutes:,} min on this device")
    return Group(groups, ladder, about)


def _interval(figure: Mapping[str, Any]) -> str:
    """The interval of a figure; empty if it has none."""
    return "" if figure["low"] is None else f"{figure['low']:.1%} to {figure['high']:.1%}"

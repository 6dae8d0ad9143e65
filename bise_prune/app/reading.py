"""Reads everything that a run needs (checkpoint, data, earlier masks or plan) and checks it before any long work."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import TRANSFORMER, Checkpoint, load_checkpoint
from ..checkpoint.networks import model_of
from ..config import RunConfig
from ..data import BatchLoader, DataSplits, load_data
from ..data.columns import Columns
from ..data.noise import noisy_bias_labels
from ..data.text import load_tokenizer
from ..distributed import world
from ..errors import ConfigError, counted
from ..gates.masks import MaskSet
from ..metrics.accuracy import predictions
from ..metrics.subgroups import aligned_values
from ..models import is_image_classifier
from ..models.inputs import input_channels
from ..models.pretrained import published_preprocessing
from ..pruning.plan import PruningPlan
from ..tuning.pseudo_labels import predicted_bias_labels
from .checks import (
    check_bias_labels,
    check_data_settings,
    check_device,
    check_exports,
    check_labels,
    check_masks_or_targets,
    check_search,
    check_specification,
    example_of,
)
from .compared_splits import compared
from .dense_check import baseline_of
from .halves import conflicting_per_class, halves_for
from .one_logit import ONE_LOGIT, with_two_logits
from .output_folder import check_output, check_resumable
from .progress import StageClock
from .session import Session
from .stages.export import export_dense
from .stages.ladder import check_tuning

_BATCH, _COLOURS = 250, 3


def read_session(config: RunConfig, clock: StageClock, scratch: Path | None = None) -> Session:
    """Read and check the inputs of a run before any long work.

    Whether the dense network works is for the caller to act upon (``doubt``), who may have something to show before.

    Args:
        config: settings of the run.
        clock: clock that times the reading.
        scratch: folder to which the first process exports the dense network; None = it is not exported.

    Raises:
        BiseError: the settings or files cannot be used.
    """
    device = check_device(config.device)
    check_output(config)
    check_resumable(config)
    with clock.stage("load"):
        checkpoint = load_checkpoint(config.checkpoint, config.trust_pickle)
        specification = check_specification(config, checkpoint)
        dense, checkpoint = model_of(checkpoint, config.checkpoint, config.arch)
        if checkpoint.slim is not None:
            raise ConfigError(f"{config.checkpoint} is a pruned network already; start from the dense checkpoint")
        is_of_texts = config.checkpoint.is_dir() and _reads_texts(checkpoint)
        tokenizer = load_tokenizer(config.checkpoint) if is_of_texts else None
        checkpoint = dataclasses.replace(checkpoint, preprocessing=_preprocessing(config, checkpoint, dense))
        check_data_settings(config, specification, tokenizer is not None)
        splits = _splits(config, checkpoint, specification, tokenizer)
        if splits.without_bias and not config.unsupervised:
            config = dataclasses.replace(config, unsupervised=True)
            note = "the data have no place for bias labels: pseudo labels are found, as by --unsupervised"
            splits = dataclasses.replace(splits, notes=[*splits.notes, note])
        train = splits.train
        example, num_classes = example_of(dense, train)
        if num_classes == 1:
            dense, num_classes = with_two_logits(dense, example), 2
            checkpoint = dataclasses.replace(checkpoint, notes=(*checkpoint.notes, ONE_LOGIT))
        checkpoint = dataclasses.replace(checkpoint, num_classes=num_classes)
        has_true_labels = train.has_bias and not config.unsupervised
        check_labels(splits, num_classes, has_true_labels, config.classes)
        aligned = _aligned(splits, dense, num_classes, device)
        if has_true_labels or not config.unsupervised:
            splits = compared(splits, aligned)
        masks, plan = _earlier_results(config)
        session = Session(
            config, device, checkpoint, dense, splits, specification, example, aligned, tokenizer,
            masks, plan,
        )  # fmt: skip
        check_bias_labels(session)
        check_exports(session)
        check_search(session)
        check_masks_or_targets(session)
        check_tuning(session)
        baseline = baseline_of(session)
        clock.message(baseline.words)
        session = dataclasses.replace(session, doubt="" if config.force else baseline.doubt)
        if scratch is not None and world()[0] == 0:
            session = dataclasses.replace(session, dense_file=export_dense(session, scratch / "dense.onnx"))
        session = _with_predicted_bias(_with_refit(_with_halves(session)))
        return _with_noise(session) if config.bias_noise and has_true_labels else session


def _reads_texts(checkpoint: Checkpoint) -> bool:
    """Whether the network in a folder classifies texts."""
    return checkpoint.arch == TRANSFORMER and not is_image_classifier(checkpoint.arguments.get("config", {}))


def _preprocessing(config: RunConfig, checkpoint: Checkpoint, dense: nn.Module) -> dict[str, Any]:
    """The preprocessing of images: from the settings, or else the checkpoint, or else the publisher of its weights.

    A size that is given comes without the publisher's crop.
    """
    given = {"mean": config.mean, "std": config.std, "size": config.size, "crop": config.crop}
    known = published_preprocessing(checkpoint.arch, checkpoint.sha256, checkpoint.module)
    if config.size is not None or "size" in checkpoint.preprocessing:
        known.pop("crop", None)
    if (channels := input_channels(dense)) != _COLOURS:
        known["channels"] = channels
    return {**known, **checkpoint.preprocessing, **{name: value for name, value in given.items() if value is not None}}


def _splits(config: RunConfig, checkpoint: Checkpoint, specification: str, tokenizer: Any) -> DataSplits:
    """The splits of the data set."""
    columns = Columns(
        config.label_column, config.bias_columns, config.split_column, config.file_column, config.text_column
    )
    return load_data(
        specification,
        checkpoint.preprocessing,
        tokenizer,
        columns=columns,
        classes=config.classes or checkpoint.classes,
        skip_bad=config.skip_bad,
        image_folder=config.image_folder,
    )


def _aligned(splits: DataSplits, dense: nn.Module, num_classes: int, device: torch.device) -> Tensor:
    """Bias value that each class is aligned with, shape (classes, K).

    By the training labels; if only the validation split has bias labels, the value that goes with the class that the
    dense network predicts there, since a biased network predicts a class where it sees the bias value.
    """
    train, val = splits.train, splits.val
    if train.has_bias:
        return aligned_values(train.target, train.bias, num_classes)
    if val is None or not val.has_bias:
        return torch.arange(num_classes)[:, None]
    predicted = predictions(copy.deepcopy(dense).to(device), BatchLoader(val, _BATCH))[0]
    return aligned_values(predicted, val.bias.cpu(), num_classes)


def _earlier_results(config: RunConfig) -> tuple[MaskSet | None, PruningPlan | None]:
    """Masks and plan of an earlier run, if the settings name any; with a plan, the masks are the plan's.

    Norm layers that were trained before the search of these masks are left out if they must not change in this run.
    """
    masks = None if config.masks is None else MaskSet.load(config.masks)
    if masks is not None and config.tune in ("none", "shift"):
        masks = masks.alone()
    plan = None if config.plan is None else PruningPlan.load(config.plan)
    return masks if plan is None else plan.masks, plan


def _with_halves(session: Session) -> Session:
    """The session with the validation set divided, if masks are learned on half of it; a note says so."""
    splits = session.splits
    halves = halves_for(session.config, splits, session.aligned, session.on_device(session.dense))
    if halves is None:
        return session
    learned = halves[0]
    conflicting = int(conflicting_per_class(learned, session.aligned).sum())
    note = (
        f"masks are learned on half of the validation split ({counted(len(learned), 'sample')}, {conflicting:,} "
        "bias-conflicting); the other half selects them, and is the validation data of this report"
    )
    if session.masks is not None:
        note = (
            "half of the validation split is the validation data of this report: the given masks may have been learned "
            "on the other half"
        )
    splits = dataclasses.replace(splits, notes=[*splits.notes, note])
    return dataclasses.replace(session, splits=splits, halves=halves)


def _with_refit(session: Session) -> Session:
    """The session whose search judges channels by a refitted last layer, if that is what is delivered.

    On samples that a network was trained on, a refitted last layer has next to no loss, which teaches nothing.
    """
    config = session.config
    if config.tune != "head" or session.halves is None or session.masks is not None or not config.search.is_gradual:
        return session
    return session.with_config(dataclasses.replace(config, search=dataclasses.replace(config.search, refit="head")))


def _with_predicted_bias(session: Session) -> Session:
    """The session with bias labels of the training set for finetuning, if only the validation split has some."""
    config, splits, halves = session.config, session.splits, session.halves
    if config.finetune is None or config.unsupervised or splits.train.has_bias or halves is None:
        return session
    found, other = predicted_bias_labels(session.on_device(session.dense), halves[0], splits.train, halves[1])
    right = (other == halves[1].bias.cpu()).all(1).double().mean()
    note = (
        "for finetuning, the bias labels of the training split are predicted from those of half of the validation "
        f"split; on the other half, {right:.1%} of such labels are right"
    )
    splits = dataclasses.replace(splits, notes=[*splits.notes, note])
    return dataclasses.replace(session, splits=splits, predicted_bias=found)


def _with_noise(session: Session) -> Session:
    """The session with part of the training set's bias labels replaced by wrong ones."""
    config, splits = session.config, session.splits
    generator = torch.Generator().manual_seed(config.search.seed)
    noisy = splits.train.with_bias(noisy_bias_labels(splits.train.bias, config.bias_noise, generator))
    note = f"{config.bias_noise:.0%} of the training set's bias labels were replaced by wrong ones"
    return dataclasses.replace(session, splits=dataclasses.replace(splits, train=noisy, notes=[*splits.notes, note]))

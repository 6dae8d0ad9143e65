"""Checks before any long work, so that a run does not fail at its end for a reason that was known at its start."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint import Checkpoint
from ..config import RunConfig, Target, lowering_of
from ..data import BiasedDataset, DataSplits
from ..data.batch import Input
from ..data.registry import is_named
from ..distributed import world
from ..errors import ConfigError, DataError, PruningError
from ..export import export_onnx
from ..export.triton import check_repository
from ..gates.masks import MaskSet
from ..gates.ranking import least_open
from ..gates.sites import gate_sites, sites_of
from ..metrics.subgroups import aligned_values, is_aligned
from ..pruning.planner import Planner
from ..report.loggers import check_loggers
from ..tracing import logits_of, run
from .session import Session


def check_device(name: str) -> torch.device:
    """The device that a setting names; "auto" is a GPU if there is one, otherwise the CPU.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device '{name}' was asked for, but torch sees no CUDA device; use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"'{name}' is no device; use auto, cpu, cuda or cuda:N") from error


def check_image_settings(config: RunConfig, specification: str) -> None:
    """Check that settings for images are given only for data that have image files.

    Raises:
        ConfigError: they have no use for this data set.
    """
    given = [name for name in ("size", "mean", "std") if getattr(config, name) is not None]
    given += ["skip_bad"] if config.skip_bad else []
    if given and is_named(specification):
        raise ConfigError(
            f"{given[0]} has no use: data set '{specification.partition(',')[0]}' makes its images itself"
        )


def check_labels(splits: DataSplits, num_classes: int, has_bias: bool) -> None:
    """Check that class labels fit the network, and that each bias has bias-conflicting samples in the training set.

    Args:
        splits: data set.
        num_classes: number of outputs of the classifier head.
        has_bias: whether the training set has true bias labels that the run uses.

    Raises:
        DataError: they do not.
    """
    for name, data in splits.by_name.items():
        if data is not None and (int(data.target.max()) >= num_classes or int(data.target.min()) < 0):
            raise DataError(
                f"the {name} split has labels from {int(data.target.min())} to {int(data.target.max())}, but the model "
                f"has {num_classes} classes: labels must lie in [0, {num_classes - 1}]"
                + (f"; the data have the classes {', '.join(splits.classes)}" if splits.classes else "")
            )
    if not has_bias:
        return
    train = splits.train
    aligned = is_aligned(train.target, train.bias, aligned_values(train.target, train.bias, num_classes))
    for k, column in enumerate(aligned.unbind(1)):
        if bool(column.all()):
            raise DataError(
                f"no bias-conflicting sample among the {len(train)} of the training split "
                f"({splits.bias_name(k)}): class and bias label cannot be told apart there, so "
                "there is nothing to learn masks from"
            )


def check_bias_labels(session: Session) -> None:
    """Check that the data have the bias labels that the settings need.

    Raises:
        ConfigError: ``--probe`` needs true bias labels that are missing, or ``--unsupervised`` the architecture's name.
        DataError: the training split has no bias labels, and those of the validation split are not there or not enough.
    """
    config, splits = session.config, session.splits
    if session.needs_bias_labels and not splits.train.has_bias and not config.unsupervised:
        if splits.val is None or not splits.val.has_bias:
            raise DataError(
                f"the training split has no bias labels ({splits.notes[-1]}); name their column with "
                "--bias-column, or pass --unsupervised to find pseudo labels"
            )
        options = {
            f"criterion '{config.criterion}'": config.criterion != "learned",
            "search_on 'training'": config.search_on == "training",
        }
        if needing := [name for name, is_set in options.items() if is_set]:
            raise DataError(
                f"{needing[0]} needs bias labels of the training split, and only the validation split has some: leave "
                "it out, or pass --unsupervised to find pseudo labels"
            )
    if session.needs_bias_labels and config.unsupervised and session.checkpoint.arch is None:
        raise ConfigError("--unsupervised trains a network of the same architecture: name it with --arch")
    if config.probe:
        labelled = all(data is not None and data.has_bias for data in (splits.val, splits.test))
        if not labelled or config.unsupervised:
            raise ConfigError("--probe needs validation and test data with true bias labels: heads learn on the former")


def check_specification(config: RunConfig, checkpoint: Checkpoint) -> str:
    """The specification of the data to use: the setting, or else the one in the checkpoint.

    Raises:
        ConfigError: neither names any data.
    """
    specification = config.data or checkpoint.data
    if specification is None:
        raise ConfigError(
            f"no data to debias on: {config.checkpoint.name} names none, so pass --data FOLDER, a folder with images "
            "and a metadata.csv (label, bias, split, file), "
            f"e.g. bise-prune {config.checkpoint.name} --data waterbirds/"
        )
    return specification


def example_of(model: nn.Module, data: BiasedDataset) -> Input:
    """The input of two samples, after a check that the model takes it.

    Raises:
        DataError: the model does not take it.
    """
    example = data.example()
    try:
        with torch.no_grad():
            logits_of(run(model, example))
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = f"of shape {tuple(example.shape)}" if isinstance(example, Tensor) else f"named {', '.join(example)}"
        raise DataError(f"the model does not take inputs {what}: {reason}") from error
    return example


def model_name(checkpoint: Path) -> str:
    """The name of the model in a checkpoint: the folder's name, or the file's without its suffix."""
    return checkpoint.name if checkpoint.is_dir() else checkpoint.stem


def check_exports(session: Session) -> None:
    """Check that the files and loggers that were asked for can be written or opened.

    Raises:
        ConfigError: they cannot.
        ModelError: torch cannot export the network.
        VerificationError: the exported network computes something else.
    """
    config, inputs = session.config, session.splits.train.inputs
    check_loggers(config.log)
    if config.triton is not None:
        check_repository(config.triton, model_name(config.checkpoint))
    if config.image_input and not (isinstance(inputs, Tensor) and inputs.dtype == torch.uint8 and inputs.ndim == 4):
        raise ConfigError("image_input needs images: the data have other inputs")
    if config.opset is not None and world()[0] == 0:
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(session.dense, Path(folder) / "dense.onnx", session.example, opset=config.opset)


def check_masks_or_targets(session: Session) -> None:
    """Check that given masks fit the network, or else that the target sparsities can be reached by some masks.

    Raises:
        ModelError: the masks belong to another network.
        PruningError: a target sparsity cannot be reached.
    """
    config = session.config
    if session.masks is not None:
        sites_of(session.masks, session.dense, session.example)
        return
    targets = [Target("sparsity", share) for share in config.targets] + ([config.target] if config.target else [])
    sites = gate_sites(session.dense, session.example, config.search.placement)
    for target in targets:
        if target.kind != "sparsity":
            continue  # whether FLOPs and latency are reached shows in the search
        # The largest possible removal leaves the layer floor at every site.
        logits = {
            site.name: torch.arange(site.num_channels) - site.num_channels
            + least_open(site.num_channels, config.layer_floor) + 0.5
            for site in sites
        }  # fmt: skip
        joins = lowering_of(config.joins)
        widest = Planner(session.dense, sites, session.example).propose(MaskSet(logits).keep, joins).plan.sparsity
        if target.share > widest + target.tolerance:
            floor = config.layer_floor
            raise PruningError(
                f"target sparsity {target.share:g} cannot be reached on this network with placement "
                f"'{config.search.placement}': the most is {widest:.4f}"
                + (f" with {floor:g} of every layer kept (--layer-floor)" if floor else "")
            )

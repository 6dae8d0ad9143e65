"""Checks before any long work, so that a run does not fail at its end for a reason that was known at its start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint import Checkpoint
from ..config import FARTHEST, RunConfig, Target, lowering_of
from ..data import BiasedDataset, DataSplits
from ..data.arrays import is_array_folder
from ..data.batch import Input, input_length, input_map
from ..data.registry import is_named
from ..errors import ConfigError, DataError, ModelError, PruningError
from ..export.triton import check_repository
from ..files import is_unfinished
from ..gates.bottleneck import readout_of
from ..gates.masks import MaskSet
from ..gates.ranking import least_open
from ..gates.sites import gate_sites, sites_in, sites_of
from ..metrics.subgroups import aligned_values, is_aligned
from ..pruning.planner import Planner
from ..report.loggers import check_loggers
from ..tracing import UNREPEATABLE, logits_of, run, trace
from .gradient_check import check_gradients
from .output_folder import check_room, check_writable
from .session import Session

_FILES = 6  # that hold weights, at most: slim.safetensors, slim.onnx, slim.pt2, lower precisions, the search's state


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


def check_data_settings(config: RunConfig, specification: str, reads_texts: bool) -> None:
    """Check that settings for images and texts are given only where they have a use.

    Args:
        config: settings of the run.
        specification: where the data are.
        reads_texts: whether the network takes texts.

    Raises:
        ConfigError: one has no use for this data set or network, or names a folder that is not there.
    """
    given = [name for name in ("size", "mean", "std", "crop", "image_folder") if getattr(config, name) is not None]
    if reads_texts and given:
        raise ConfigError(f"{given[0]} has no use: the network takes texts")
    if not reads_texts and config.text_column is not None:
        raise ConfigError("text_column has no use: the network takes images")
    if config.image_folder is not None and not config.image_folder.is_dir():
        raise ConfigError(f"no folder of images at {config.image_folder}")
    unused = [name for name in ("crop", "split_column", "image_folder") if getattr(config, name) is not None]
    if unused and not is_named(specification) and is_array_folder(Path(specification)):
        raise ConfigError(f"{unused[0]} has no use: the data are arrays")
    given += ["skip_bad"] if config.skip_bad else []
    given += ["classes"] if config.classes else []
    if given and is_named(specification):
        raise ConfigError(
            f"{given[0]} has no use: data set '{specification.partition(',')[0]}' makes its images itself"
        )


def check_labels(splits: DataSplits, num_classes: int, has_bias: bool, names: Sequence[str] = ()) -> None:
    """Check that class labels fit the network, and that each bias has bias-conflicting samples in the training set.

    Args:
        splits: data set.
        num_classes: number of outputs of the classifier head.
        has_bias: whether the training set has true bias labels that the run uses.
        names: names of the classes that were given; empty if none were.

    Raises:
        ConfigError: another number of names was given than there are classes.
        DataError: they do not.
    """
    if names and len(names) != num_classes:
        raise ConfigError(f"classes names {len(names)} of the network's {num_classes} classes: {', '.join(names)}")
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


def example_of(model: nn.Module, data: BiasedDataset) -> tuple[Input, int]:
    """The input of two samples, and the number of logits of each, after a check that the model takes both and one.

    Raises:
        DataError: the model does not take them.
        ModelError: it does not return a row of logits for each sample, or not the same ones each time.
    """
    example = data.example()
    shapes = {}
    for size in (len(example) if isinstance(example, Tensor) else 2, 1):
        part = input_map(example, partial(torch.narrow, dim=0, start=0, length=size))
        what = f"of shape {tuple(part.shape)}" if isinstance(part, Tensor) else f"named {', '.join(part)}"
        try:
            with torch.no_grad():
                logits, again = logits_of(run(model, part)), logits_of(run(model, part))
                shapes[input_length(part)] = tuple(logits.shape)
        except Exception as error:  # the network's own code may raise anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(f"the model does not take inputs {what}: {reason}") from error
        if not torch.allclose(logits, again, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise ModelError(UNREPEATABLE)
    if any(len(shape) != 2 or shape[0] != size for size, shape in shapes.items()):
        found = ", ".join(f"{shape} for {size}" for size, shape in shapes.items())
        raise ModelError(
            f"the model must return logits of shape (samples, classes), but returns {found} samples: take a squeeze or "
            "a view without the batch dimension out of its last line"
        )
    return example, next(iter(shapes.values()))[1]


def model_name(checkpoint: Path) -> str:
    """The name of the model in a checkpoint: the folder's name, or the file's without its suffix."""
    return checkpoint.resolve().name if checkpoint.is_dir() else checkpoint.stem


def check_exports(session: Session) -> None:
    """Check that there is room for the results, and that the files and loggers that were asked for can be had.

    Raises:
        ConfigError: they cannot.
    """
    config, inputs = session.config, session.splits.train.inputs
    tensors = [*session.dense.parameters(), *session.dense.buffers()]
    check_room(config.output, _FILES * sum(tensor.numel() * tensor.element_size() for tensor in tensors))
    check_loggers(config.log)
    if config.triton is not None:
        check_writable(config.triton, "--triton")
        check_repository(config.triton, model_name(config.checkpoint), may_be_there=is_unfinished(config.output))
    if config.image_input and not (isinstance(inputs, Tensor) and inputs.dtype == torch.uint8 and inputs.ndim == 4):
        raise ConfigError("image_input needs images: the data have other inputs")


def check_search(session: Session) -> None:
    """Check that the network has what a search needs: gates, a classifier head, and gradients between them.

    Raises:
        ModelError: it does not.
    """
    if session.masks is None and session.config.criterion == "learned":
        record = trace(session.dense, session.example)
        sites = sites_in(record, session.dense, session.config.search.placement)
        readout_of(session.dense, record)
        check_gradients(session.dense, sites, session.example)


def check_masks_or_targets(session: Session) -> None:
    """Check that given masks fit the network, or else that something can be removed, and as much as targets ask for.

    Raises:
        ModelError: the masks belong to another network, or no closed channel can be removed.
        PruningError: a target cannot be reached.
    """
    config = session.config
    if session.masks is not None:
        sites_of(session.masks, session.dense, session.example)
        return
    targets = [Target("sparsity", share) for share in config.targets] + ([config.target] if config.target else [])
    sites = gate_sites(session.dense, session.example, config.search.placement)
    # The largest possible removal leaves the layer floor at every site, or else one channel.
    floor = config.layer_floor if targets else 0.0
    logits = {
        site.name: torch.arange(site.num_channels) - site.num_channels + least_open(site.num_channels, floor) + 0.5
        for site in sites
    }
    joins = lowering_of(config.joins)
    plan = Planner(session.dense, sites, session.example).propose(MaskSet(logits).keep, joins).plan
    if plan.params[1] == plan.params[0]:
        reasons = Counter(
            {why: len(channels) for causes in plan.reasons.values() for why, channels in causes.items()}
        ).most_common(1)
        why = f": {reasons[0][0]}" if reasons else ""
        raise ModelError(f"no closed channel of this network could be removed{why}; there is nothing to prune")
    for target in targets:
        if target.kind == "latency":
            continue  # whether it is reached shows once it is measured
        widest = plan.sparsity if target.kind == "sparsity" else 1 - plan.macs[1] / max(plan.macs[0], 1)
        if target.removed > widest + FARTHEST:
            raise PruningError(
                f"target {target.name} {target.removed:g} cannot be reached on this network with placement "
                f"'{config.search.placement}': the most is {widest:.4f}"
                + (f" with {floor:g} of every layer kept (--layer-floor)" if floor else "")
            )

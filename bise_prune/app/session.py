"""What a run needs before any long work: everything read, checked and put on one table."""

from __future__ import annotations

import copy
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..channels import Joins
from ..checkpoint import Checkpoint, load_checkpoint
from ..checkpoint.networks import model_of
from ..config import RunConfig
from ..data import BatchLoader, BiasedDataset, DataSplits, load_data
from ..data.batch import Input
from ..data.columns import Columns
from ..data.noise import noisy_bias_labels
from ..data.registry import is_named
from ..data.text import load_tokenizer
from ..distributed import share_object, world
from ..errors import ConfigError, DataError, PruningError
from ..export.onnx_file import export_onnx
from ..export.triton import check_repository
from ..files import is_unfinished
from ..gates.masks import GateSite, MaskSet
from ..gates.ranking import least_open
from ..gates.sites import gate_sites, sites_of
from ..metrics.accuracy import Evaluation, predictions, score
from ..metrics.subgroups import aligned_values, is_aligned
from ..models import build_model
from ..models.pretrained import published_preprocessing
from ..pruning.plan import PruningPlan
from ..pruning.planner import TOLERANCE, Planner
from ..report.files import POINT, REPORT_FILE, RESULT_FILES, STATE_FILE
from ..report.loggers import Loggers, check_loggers
from ..tracing import logits_of, run
from ..tuning.pseudo_labels import PseudoLabels, pseudo_bias_labels, with_pseudo_labels

# Called with a stage's name, and with steps done and in all where a stage has steps.
Progress = Callable[[str, int, int], None]


@dataclass
class Session:
    """What the stages of one run share.

    Attributes:
        config: its settings.
        progress: called as stages go on.
        device: to search, finetune and time on.
        checkpoint: as it was read, completed by what was found out.
        dense: its network.
        splits: data that the search may see: with noise on the bias labels, or pseudo labels, if there are any.
        specification: of the data.
        example: two samples' input.
        aligned: by the true bias labels where they are known, shape (classes, K).
        tokenizer: of texts; None for images.
        pseudo: how pseudo bias labels came out; None where true ones are used.
        timings: seconds per stage.
        loggers: where the figures of epochs and the result go besides.
    """

    config: RunConfig
    progress: Progress
    device: torch.device
    checkpoint: Checkpoint
    dense: nn.Module
    splits: DataSplits
    specification: str
    example: Input
    aligned: Tensor
    tokenizer: Any = None
    pseudo: PseudoLabels | None = None
    timings: dict[str, float] = field(default_factory=dict)
    loggers: Loggers = field(default_factory=lambda: Loggers((), {}))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and tell of it."""
        self.progress(name, 0, 0)
        start = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    def log(self, stage: str, step: int, figures: Mapping[str, Any]) -> None:
        """Send figures to the run's loggers; those of a frontier's points under their folders' names."""
        is_point = self.config.output.name.startswith(POINT)
        self.loggers.log(f"{self.config.output.name}/{stage}" if is_point else stage, step, figures)

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier."""
        return self.checkpoint.num_classes or 0

    @property
    def held_out(self) -> tuple[str, BiasedDataset]:
        """The split that results are reported on, and its name."""
        if self.splits.test is not None:
            return "test", self.splits.test
        return ("val", self.splits.val) if self.splits.val is not None else ("train", self.splits.train)

    @property
    def held_out_aligned(self) -> Tensor:
        """What "aligned" means there: by pseudo labels where these stand in for the split's own."""
        return self.aligned if self.splits.test is not None else self.search_aligned

    @property
    def search_aligned(self) -> Tensor:
        """What "aligned" means to the search, shape (classes, K): with pseudo labels, to be classified correctly."""
        return self.aligned if self.pseudo is None else torch.arange(self.num_classes)[:, None]

    def accuracy(self, model: nn.Module) -> Evaluation:
        """Of a model, on that split."""
        return self.scored(self.predicted(model))

    def predicted(self, model: nn.Module) -> Tensor:
        """The classes that a model predicts there, shape (N,)."""
        loader = BatchLoader(self.held_out[1], max(self.config.batch_size, 256), workers=self.config.workers)
        return predictions(copy.deepcopy(model).to(self.device), loader)[0]

    def scored(self, predicted: Tensor) -> Evaluation:
        """Accuracies of predicted classes there."""
        data = self.held_out[1]
        return score(predicted, data.target.cpu(), data.bias.cpu(), self.held_out_aligned)

    def train_loader(self) -> BatchLoader:
        """The training set in shuffled batches."""
        config = self.config
        data = self._near(self.splits.train)
        return BatchLoader(
            data,
            config.batch_size,
            shuffle=True,
            seed=config.search.seed,
            stratified=config.stratified,
            workers=config.workers,
            pin_memory=self.device.type == "cuda",
        )

    def val_loader(self) -> BatchLoader | None:
        """The validation set in batches."""
        val = self.splits.val
        size = max(self.config.batch_size, 256)
        return None if val is None else BatchLoader(self._near(val), size, workers=self.config.workers)

    def _near(self, data: BiasedDataset) -> BiasedDataset:
        """The data on the GPU that searches on them, if they leave it three quarters of its free memory."""
        if self.device.type != "cuda" or data.num_bytes > torch.cuda.mem_get_info(self.device)[0] // 4:
            return data
        return data.to(self.device)


def prepared(config: RunConfig, progress: Progress, dry: bool = False) -> Session:
    """Everything read and checked before any long work, pseudo bias labels found if there are no others.

    Args:
        config: the run.
        progress: called as stages go on.
        dry: whether only to look: pseudo labels are not found then.
    """
    device = check_environment(config)
    progress("load", 0, 0)
    began = time.perf_counter()
    checkpoint = load_checkpoint(config.checkpoint, config.trust_pickle)
    specification = _data_specification(config, checkpoint)
    dense, checkpoint = model_of(checkpoint, config.checkpoint, config.arch)
    if checkpoint.slim is not None:
        raise ConfigError(f"{config.checkpoint} is a pruned network already; start from the dense checkpoint")
    tokenizer = load_tokenizer(config.checkpoint) if config.checkpoint.is_dir() else None
    checkpoint = dataclasses.replace(checkpoint, preprocessing=_preprocessing(config, checkpoint))
    _check_uses(config, specification)
    splits = load_data(
        specification,
        checkpoint.preprocessing,
        tokenizer,
        columns=Columns(
            config.label_column, config.bias_columns, config.split_column, config.file_column, config.text_column
        ),
        classes=checkpoint.classes,
        skip_bad=config.skip_bad,
    )
    if splits.without_bias and not config.unsupervised:
        config = dataclasses.replace(config, unsupervised=True)
        note = "the data have no place for bias labels: pseudo labels are found, as by --unsupervised"
        splits = dataclasses.replace(splits, notes=[*splits.notes, note])
    num_classes = checkpoint.num_classes or 0
    known = splits.train.has_bias and not config.unsupervised
    _check_data(splits, num_classes, known)
    masks, _ = given_masks(config)
    learns = config.finetune is not None or (masks is None and config.criterion in ("learned", "taylor"))
    if learns and not splits.train.has_bias and not config.unsupervised:
        raise DataError(
            f"the training split has no bias labels ({splits.notes[-1]}); give some, or pass --unsupervised to find "
            "pseudo labels"
        )
    if config.probe:
        held_out = splits.test
        labelled = all(data is not None and data.has_bias for data in (splits.val, held_out))
        if not labelled or config.unsupervised:
            raise ConfigError("--probe needs validation and test data with true bias labels: heads learn on the former")
    example = _example(dense, splits.train)
    train = splits.train
    aligned = torch.arange(num_classes)[:, None]
    if train.has_bias:
        aligned = aligned_values(train.target, train.bias, num_classes)
    session = Session(config, progress, device, checkpoint, dense, splits, specification, example, aligned, tokenizer)
    _check_delivery(session)
    if masks is None:
        sites = gate_sites(dense, example, config.search.placement)
        for target in config.targets or (config.target_sparsity,):
            _check_target(dataclasses.replace(config, targets=(), target_sparsity=target), dense, sites, example)
    else:
        sites_of(masks, dense, example)
    session.timings["load"] = time.perf_counter() - began
    if config.bias_noise and known:
        generator = torch.Generator().manual_seed(config.search.seed)
        noisy = train.with_bias(noisy_bias_labels(train.bias, config.bias_noise, generator))
        note = f"{config.bias_noise:.0%} of the training set's bias labels were replaced by wrong ones"
        session.splits = dataclasses.replace(splits, train=noisy, notes=[*splits.notes, note])
    if learns and config.unsupervised and not dry:
        with session.stage("identify"):
            session.pseudo = _identify(session)
    return session


def _preprocessing(config: RunConfig, checkpoint: Checkpoint) -> dict[str, Any]:
    """What the settings say, or else the checkpoint, or else those who published its weights."""
    given = {"mean": config.mean, "std": config.std, "size": config.size}
    known = published_preprocessing(checkpoint.arch, checkpoint.sha256, checkpoint.module)
    return {**known, **checkpoint.preprocessing, **{name: value for name, value in given.items() if value is not None}}


def _identify(session: Session) -> PseudoLabels:
    """Pseudo bias labels for training and validation data, which take the place of whatever is there."""
    checkpoint, config, splits = session.checkpoint, session.config, session.splits
    if checkpoint.arch is None:
        raise ConfigError("--unsupervised trains a network of the same architecture: name it with --arch")
    others = [] if splits.val is None else [splits.val]
    with torch.random.fork_rng():
        torch.manual_seed(config.search.seed)
        pseudo = pseudo_bias_labels(
            build_model(checkpoint.arch, session.num_classes, checkpoint.arguments).to(session.device),
            splits.train,
            *others,
            epochs=config.identification_epochs,
            batch_size=config.batch_size,
            seed=config.search.seed,
        )
    pseudo = cast(PseudoLabels, share_object(pseudo))
    if not pseudo.num_conflicting:
        raise DataError(
            "no pseudo bias labels were found: the identification model classifies every training sample correctly; "
            "train it for fewer epochs (--identification-epochs), or give bias labels"
        )
    val = None if splits.val is None else with_pseudo_labels(splits.val, pseudo.labels[1])
    session.splits = dataclasses.replace(splits, train=with_pseudo_labels(splits.train, pseudo.labels[0]), val=val)
    return pseudo


def given_masks(config: RunConfig) -> tuple[MaskSet | None, PruningPlan | None]:
    """Masks and plan of an earlier run, if the settings name any; a plan's masks are those that it keeps."""
    masks = None if config.masks is None else MaskSet.load(config.masks)
    plan = None if config.plan is None else PruningPlan.load(config.plan)
    if plan is not None:
        masks = MaskSet({name: kept.float() * 2 - 1 for name, kept in plan.keep.items()})
    return masks, plan


def check_environment(config: RunConfig) -> torch.device:
    """The device to use, once it is clear that it exists and that the output folder is free and can be written to."""
    device = _device(config.device)
    folders = check_output(config)
    stopped = any((folder / STATE_FILE).is_file() for folder in (config.output, *folders))
    if config.resume and not stopped and not any((folder / REPORT_FILE).is_file() for folder in folders):
        raise ConfigError(
            f"nothing to resume: {config.output} holds no stopped search; leave --resume out to start one"
        )
    return device


def check_output(config: RunConfig) -> list[Path]:
    """The folders of a frontier's points; the first process makes sure that no result is written over.

    Raises:
        ConfigError: there is one, or a folder cannot be written to.
    """
    folders = [config.output / f"{POINT}{target:g}" for target in config.targets]
    if world()[0]:
        return folders  # the first process sees to it
    _check_output(config.output, config.resume)
    for folder in folders:
        if not (folder / REPORT_FILE).is_file():  # a point that is done is taken up
            _check_output(folder, config.resume)
    return folders


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device '{name}' was asked for, but torch sees no CUDA device; use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"'{name}' is no device; use auto, cpu, cuda or cuda:N") from error


def _check_output(output: Path, resume: bool) -> None:
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output {output} is a file; choose a folder")
    present = [name for name in RESULT_FILES if (output / name).exists()]
    if is_unfinished(output) and (resume or REPORT_FILE not in present):
        present = []  # of a run that stopped on its way, at the latest between its report and its end
    if present:
        raise ConfigError(f"output folder {output} holds results already ({present[0]}); choose another with --output")
    probe = output
    while not probe.exists():
        probe = probe.parent
    write_check = probe / f".write-check-{time.time_ns()}-{os.getpid()}"
    try:
        write_check.touch()
        write_check.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to {output}: {error.strerror}; choose another with --output") from error


def _check_uses(config: RunConfig, specification: str) -> None:
    """Whether settings for images are given for data that have images to decode."""
    given = [name for name in ("size", "mean", "std") if getattr(config, name) is not None]
    given += ["skip_bad"] if config.skip_bad else []
    if given and is_named(specification):
        raise ConfigError(
            f"{given[0]} has no use: data set '{specification.partition(',')[0]}' makes its images itself"
        )


def _data_specification(config: RunConfig, checkpoint: Checkpoint) -> str:
    specification = config.data or checkpoint.data
    if specification is None:
        raise ConfigError(
            f"no data to debias on: {config.checkpoint.name} names none, so pass --data FOLDER, a folder with images "
            "and a metadata.csv (label, bias, split, file), "
            f"e.g. bise-prune {config.checkpoint.name} --data waterbirds/"
        )
    return specification


def _check_data(splits: DataSplits, num_classes: int, has_bias: bool) -> None:
    for name, data in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        if data is not None and (int(data.target.max()) >= num_classes or int(data.target.min()) < 0):
            raise DataError(
                f"the {name} split has labels from {int(data.target.min())} to {int(data.target.max())}, but the model "
                f"has {num_classes} classes: labels must lie in [0, {num_classes - 1}]"
            )
    if not has_bias:
        return
    train = splits.train
    aligned = is_aligned(train.target, train.bias, aligned_values(train.target, train.bias, num_classes))
    for k, column in enumerate(aligned.unbind(1)):
        if bool(column.all()):
            raise DataError(
                f"no bias-conflicting sample among the {len(train)} of the training split (bias {k}): label and bias "
                "cannot be told apart there, so there is nothing to learn masks from"
            )


def _example(model: nn.Module, data: BiasedDataset) -> Input:
    example = data.example()
    try:
        with torch.no_grad():
            logits_of(run(model, example))
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = f"of shape {tuple(example.shape)}" if isinstance(example, Tensor) else f"named {', '.join(example)}"
        raise DataError(f"the model does not take inputs {what}: {reason}") from error
    return example


def _check_delivery(session: Session) -> None:
    """Whether the files that were asked for could be written, before anything long is done for them."""
    config, inputs = session.config, session.splits.train.inputs
    check_loggers(config.log)
    if config.triton is not None:
        check_repository(config.triton, model_name(config.checkpoint))
    if config.image_input and not (isinstance(inputs, Tensor) and inputs.dtype == torch.uint8 and inputs.ndim == 4):
        raise ConfigError("image_input needs images: the data have other inputs")
    if config.opset is not None and world()[0] == 0:
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(session.dense, Path(folder) / "dense.onnx", session.example, opset=config.opset)


def model_name(checkpoint: Path) -> str:
    """What the model of a checkpoint is called."""
    return checkpoint.name if checkpoint.is_dir() else checkpoint.stem


def _check_target(config: RunConfig, model: nn.Module, sites: Sequence[GateSite], example: Input) -> None:
    """Whether some masks could meet a numeric target: the widest removal leaves the floor of channels everywhere."""
    if config.target_sparsity == "auto":
        return
    floor = config.layer_floor
    logits = {
        site.name: torch.arange(site.num_channels) - site.num_channels + least_open(site.num_channels, floor) + 0.5
        for site in sites
    }
    joins: Joins = "intersection" if config.joins == "intersection" else "expand"
    widest = Planner(model, sites, example).propose(MaskSet(logits).keep, joins).plan.sparsity
    if float(config.target_sparsity) > widest + TOLERANCE:
        raise PruningError(
            f"target sparsity {config.target_sparsity:g} cannot be reached on this network with placement "
            f"'{config.search.placement}': the most is {widest:.4f}"
            + (f" with {floor:g} of every layer kept (--layer-floor)" if floor else "")
        )

"""What a run works on: everything read and checked, before any long work."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import Checkpoint
from ..config import RunConfig
from ..data import BatchLoader, BiasedDataset, DataSplits
from ..data.batch import Input
from ..gates.masks import MaskSet
from ..metrics.accuracy import Evaluation, predictions, score
from ..pruning.plan import PruningPlan
from ..report.results import Subject
from ..tuning.pseudo_labels import PseudoLabels, with_pseudo_labels


@dataclass(frozen=True)
class Session:
    """The inputs of a run.

    Attributes:
        config: its settings.
        device: to search, finetune and time on.
        checkpoint: as it was read, completed by what was found out.
        dense: its network.
        splits: data that the search may see: with noise on the bias labels, or pseudo labels, if there are any.
        specification: of the data.
        example: two samples' input.
        aligned: by the true bias labels where they are known, shape (classes, K).
        tokenizer: of texts; None for images.
        masks: of an earlier run; None where masks are to be found.
        plan: of an earlier run, to be carried out again; its masks are those that it keeps.
        pseudo: how pseudo bias labels came out; None where true ones are used, or where none have been found yet.
    """

    config: RunConfig
    device: torch.device
    checkpoint: Checkpoint
    dense: nn.Module
    splits: DataSplits
    specification: str
    example: Input
    aligned: Tensor
    tokenizer: Any = None
    masks: MaskSet | None = None
    plan: PruningPlan | None = None
    pseudo: PseudoLabels | None = None

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier."""
        return self.checkpoint.num_classes or 0

    @property
    def needs_bias_labels(self) -> bool:
        """Whether anything is to be learned from the bias labels of the training data."""
        ranks = self.masks is None and self.config.criterion in ("learned", "taylor")
        return ranks or self.config.finetune is not None

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

    @property
    def subject(self) -> Subject:
        """The same for the report."""
        is_cuda = self.device.type == "cuda"
        return Subject(
            config=self.config,
            checkpoint=self.checkpoint,
            dense=self.dense,
            splits=self.splits,
            specification=self.specification,
            num_classes=self.num_classes,
            tokenizer=self.tokenizer,
            evaluated_on=self.held_out[0],
            held_out=self.held_out[1],
            held_out_aligned=self.held_out_aligned,
            search_aligned=self.search_aligned,
            pseudo=self.pseudo,
            device=torch.cuda.get_device_name(self.device) if is_cuda else "cpu",
        )

    def with_config(self, config: RunConfig) -> Session:
        """The same inputs under other settings."""
        return dataclasses.replace(self, config=config)

    def with_pseudo(self, pseudo: PseudoLabels) -> Session:
        """The same inputs with pseudo bias labels for training and validation data in place of whatever is there."""
        splits = self.splits
        val = None if splits.val is None else with_pseudo_labels(splits.val, pseudo.labels[1])
        splits = dataclasses.replace(splits, train=with_pseudo_labels(splits.train, pseudo.labels[0]), val=val)
        return dataclasses.replace(self, splits=splits, pseudo=pseudo)

    def on_device(self, model: nn.Module) -> nn.Module:
        """A copy of a model on the run's device."""
        return copy.deepcopy(model).to(self.device)

    def accuracy(self, model: nn.Module) -> Evaluation:
        """Of a model, on the held-out split."""
        return self.scored(self.predicted(model))

    def predicted(self, model: nn.Module) -> Tensor:
        """The classes that a model predicts there, shape (N,)."""
        loader = BatchLoader(self.held_out[1], max(self.config.batch_size, 256), workers=self.config.workers)
        return predictions(self.on_device(model), loader)[0]

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

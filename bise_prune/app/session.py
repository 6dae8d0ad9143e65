"""The inputs of a run, read and checked before any long work."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
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
        config: settings of the run.
        device: device for the search, finetuning and latency.
        checkpoint: checkpoint as it was read, completed by what was found out about it.
        dense: dense network.
        splits: data set, with the bias labels that the search may use: true ones, noisy ones or pseudo labels.
        specification: specification of the data set.
        example: input of two samples.
        aligned: bias value that each class is aligned with by the true bias labels if they are known, shape (classes,
            K); by those of the validation split if only that has some.
        tokenizer: tokeniser of texts; None for images.
        masks: masks of an earlier run; None if masks are to be found.
        plan: plan of an earlier run that is to be carried out again; ``masks`` are then the plan's.
        pseudo: pseudo bias labels and their figures; None if true bias labels are used, or none have been found yet.
        halves: halves of the validation set, if masks are learned on its first half; its second half is then the
            validation set of all stages. None if masks are learned on the training set.
        predicted_bias: bias labels of the training set for finetuning, shape (N, K), predicted from those of the first
            half, if only the validation split has some; otherwise None.
        dense_file: ONNX file of the dense network, in the first process of a run; otherwise None.
        doubt: why the dense network does not seem to work, with what to check; "" if there is no reason to doubt it, or
            the settings say to go on.
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
    halves: tuple[BiasedDataset, BiasedDataset] | None = None
    predicted_bias: Tensor | None = None
    dense_file: Path | None = None
    doubt: str = ""

    @property
    def num_classes(self) -> int:
        """Number of outputs of the classifier head."""
        return self.checkpoint.num_classes or 0

    @property
    def needs_bias_labels(self) -> bool:
        """Whether the search, the ranking or finetuning uses the bias labels of the training data."""
        ranks = self.masks is None and self.config.criterion in ("learned", "taylor")
        return ranks or self.config.finetune is not None

    @property
    def needs_pseudo_labels(self) -> bool:
        """Whether pseudo bias labels are to be found for the training data."""
        return self.config.unsupervised and self.needs_bias_labels

    @property
    def val(self) -> BiasedDataset | None:
        """Validation data: the split, or the half of it that no mask is learned on; None without one."""
        return self.splits.val if self.halves is None else self.halves[1]

    @property
    def held_out(self) -> tuple[str, BiasedDataset]:
        """Name and data of the split on which results are reported: "test", or else "val", or else "train"."""
        if self.splits.test is not None:
            return "test", self.splits.test
        return ("val", self.val) if self.val is not None else ("train", self.splits.train)

    @property
    def held_out_aligned(self) -> Tensor:
        """Bias value that each class is aligned with on the held-out split, shape (classes, K).

        It follows the pseudo labels if these have replaced the split's own bias labels.
        """
        return self.aligned if self.splits.test is not None else self.search_aligned

    @property
    def search_aligned(self) -> Tensor:
        """Bias value that each class is aligned with in the search, shape (classes, K).

        With pseudo labels, the aligned samples are those whose pseudo label equals their class.
        """
        return self.aligned if self.pseudo is None else torch.arange(self.num_classes)[:, None]

    @property
    def subject(self) -> Subject:
        """The inputs of the run, as the report takes them."""
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
            halves=self.halves,
            held_out_aligned=self.held_out_aligned,
            search_aligned=self.search_aligned,
            pseudo=self.pseudo,
            device=torch.cuda.get_device_name(self.device) if is_cuda else "cpu",
        )

    def with_config(self, config: RunConfig) -> Session:
        """The same inputs with other settings."""
        return dataclasses.replace(self, config=config)

    def with_pseudo(self, pseudo: PseudoLabels) -> Session:
        """The same inputs with pseudo bias labels, which replace any bias labels of training and validation data.

        If the validation split alone has bias labels, of one bias, it keeps them for selection.
        """
        splits = self.splits
        val = None if splits.val is None else with_pseudo_labels(splits.val, pseudo.labels[1])
        if splits.val is not None and not splits.train.has_bias and splits.val.bias.shape[1] == 1:
            val = splits.val
            note = "pseudo bias labels are for the training split; the validation split keeps its own for selection"
            splits = dataclasses.replace(splits, notes=[*splits.notes, note])
        splits = dataclasses.replace(splits, train=with_pseudo_labels(splits.train, pseudo.labels[0]), val=val)
        if splits.test is None:  # the results are by pseudo labels too, which are predicted classes
            values = [f"taken for {name}" for name in splits.classes]
            splits = dataclasses.replace(splits, bias_names=["pseudo label"], bias_values=[values])
        return dataclasses.replace(self, splits=splits, pseudo=pseudo)

    def on_device(self, model: nn.Module) -> nn.Module:
        """A copy of a model on the device of the run."""
        return copy.deepcopy(model).to(self.device)

    def accuracy(self, model: nn.Module) -> Evaluation:
        """Accuracies of a model on the held-out split."""
        return self.scored(self.predicted(model))

    def predicted(self, model: nn.Module) -> Tensor:
        """Classes that a model predicts on the held-out split, shape (N,)."""
        loader = BatchLoader(self.held_out[1], max(self.config.batch_size, 256), workers=self.config.workers)
        return predictions(self.on_device(model), loader)[0]

    def scored(self, predicted: Tensor) -> Evaluation:
        """Accuracies of predicted classes, shape (N,), on the held-out split."""
        data = self.held_out[1]
        return score(predicted, data.target.cpu(), data.bias.cpu(), self.held_out_aligned)

    def train_loader(self) -> BatchLoader:
        """A loader of the training set, with predicted bias labels if it has no others, in shuffled batches."""
        train = self.splits.train
        return self._shuffled(train if self.predicted_bias is None else train.with_bias(self.predicted_bias))

    def search_loader(self) -> BatchLoader:
        """A loader of the data that masks are learned on, in shuffled batches."""
        return self._shuffled(self.splits.train if self.halves is None else self.halves[0])

    def _shuffled(self, data: BiasedDataset) -> BatchLoader:
        """A loader of shuffled batches, as the settings ask for them."""
        config = self.config
        return BatchLoader(
            self._near(data),
            config.batch_size,
            shuffle=True,
            seed=config.search.seed,
            stratified=config.stratified,
            workers=config.workers,
            pin_memory=self.device.type == "cuda",
        )

    def val_loader(self) -> BatchLoader | None:
        """A loader of the validation data; None without them."""
        size = max(self.config.batch_size, 256)
        return None if self.val is None else BatchLoader(self._near(self.val), size, workers=self.config.workers)

    def _near(self, data: BiasedDataset) -> BiasedDataset:
        """The data, moved to the GPU that the search uses if they take at most a quarter of its free memory."""
        if self.device.type != "cuda" or data.num_bytes > torch.cuda.mem_get_info(self.device)[0] // 4:
            return data
        return data.to(self.device)

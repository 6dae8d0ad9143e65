"""The results of a run's stages, from which the report record is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..checkpoint import Checkpoint
from ..config import RunConfig
from ..data import BiasedDataset, DataSplits
from ..diagnostics.probe import BiasProbe
from ..diagnostics.sweep import SweepPoint
from ..gates.masks import MaskSet
from ..mask_search import SearchResult
from ..metrics.accuracy import Evaluation
from ..metrics.cost import Latency, LatencyRatio, Measurement
from ..pruning import PruningResult
from ..pruning.verification import Verification
from ..pruning.widths import WidthTrial
from ..tuning.finetuning import FinetuneResult
from ..tuning.pseudo_labels import PseudoLabels

LATENCY_BATCHES = (1, 16)  # samples per forward pass at which latencies are measured; the last one is the headline


@dataclass(frozen=True)
class Subject:
    """The inputs of a run.

    Attributes:
        config: settings of the run.
        checkpoint: checkpoint as it was read, completed by what was found out about it.
        dense: dense network.
        splits: data set.
        specification: specification of the data set.
        num_classes: number of outputs of the classifier head.
        tokenizer: tokeniser of texts; None for images.
        evaluated_on: name of the held-out split, on which the results are reported.
        held_out: the held-out split.
        halves: halves of the validation set, if masks are learned on its first half and selected on its second; None if
            they are learned on the training set.
        held_out_aligned: bias value that each class is aligned with on the held-out split, shape (classes, K).
        search_aligned: bias value that each class is aligned with in the search, shape (classes, K).
        pseudo: pseudo bias labels and their figures; None if true bias labels are used.
        device: name of the device on which the run took place.
    """

    config: RunConfig
    checkpoint: Checkpoint
    dense: nn.Module
    splits: DataSplits
    specification: str
    num_classes: int
    tokenizer: Any
    evaluated_on: str
    held_out: BiasedDataset
    halves: tuple[BiasedDataset, BiasedDataset] | None
    held_out_aligned: Tensor
    search_aligned: Tensor
    pseudo: PseudoLabels | None
    device: str

    @property
    def learned_on(self) -> tuple[str, BiasedDataset]:
        """Split of the data that masks are learned on, and these data: the training set, or half of the other."""
        return ("train", self.splits.train) if self.halves is None else ("val", self.halves[0])


@dataclass(frozen=True)
class Figures:
    """The figures of one network on the held-out split.

    Attributes:
        predicted: predicted classes, shape (N,).
        evaluation: accuracies of these predictions.
        measurement: number of parameters, FLOPs and size.
        latencies: batch size -> latency of a forward pass of its ONNX file in onnxruntime, for LATENCY_BATCHES.
    """

    predicted: Tensor
    evaluation: Evaluation
    measurement: Measurement
    latencies: Mapping[int, Latency]


@dataclass(frozen=True)
class RungFigures:
    """The figures of one network at one rung, on the held-out split.

    Attributes:
        network: "dense" or "slim".
        rung: name of the rung; "all" for the finetuned network.
        evaluation: accuracies.
        changes: the kinds of changes that were made.
        num_changed: number of the network's numbers that differ: weights, and statistics of batch norms.
    """

    network: str
    rung: str
    evaluation: Evaluation
    changes: tuple[str, ...]
    num_changed: int


@dataclass(frozen=True)
class LadderFigures:
    """What the dense and the slim network are worth if a little more may change.

    Attributes:
        fitted_on: name of the split, and number of its samples, that changes were fitted to.
        decided_on: the same of the samples that decided which were made; None without validation data.
        delivered: rung of the slim network that is delivered.
        rows: figures of the dense network, then of the slim one, the lowest rung first.
    """

    fitted_on: tuple[str, int]
    decided_on: tuple[str, int] | None
    delivered: str
    rows: Sequence[RungFigures]


@dataclass(frozen=True)
class ExportedFile:
    """An ONNX file of the slim network.

    Attributes:
        name: name of the file.
        precision: "float32", "float16" or "int8".
        opset: version of ONNX's operator set.
        size_bytes: size of the file.
        latency: latency in onnxruntime.
        evaluation: accuracies in onnxruntime.
        refused: reason why the file was deleted again; None if it was kept.
        details: further entries for the report record.
    """

    name: str
    precision: str
    opset: int
    size_bytes: int
    latency: Latency
    evaluation: Evaluation
    refused: str | None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunResults:
    """The results of all stages of a run.

    Attributes:
        subject: inputs of the run.
        masks: masks by which channels were removed.
        found: result of the search; None without a search.
        picked: accuracies with the masks "best" and "last"; empty without a search.
        pruned: result of the removal.
        trials: what was measured to choose the widths, in the order in which it was tried; empty if they were given.
        tuned: result of finetuning; None without it.
        dense: figures of the dense network.
        slim: figures of the slim network, after finetuning.
        latency_ratios: latency of the slim network divided by the dense one's, for each of LATENCY_BATCHES.
        ladder: figures of both networks if a little more may change; None for a network without a linear head.
        before_tuning: accuracies of the slim network before finetuning.
        curve: accuracy against sparsity; None if it was not asked for.
        probes: how much of the bias label a linear head reads from the networks "dense" and "slim"; None if it was not
            asked for.
        checks: comparisons of exported files with the network.
        files: ONNX files, slim.onnx first.
        denormals: number of weights that were set to zero because processors compute slowly with them.
        timings: seconds per stage.
    """

    subject: Subject
    masks: MaskSet
    found: SearchResult | None
    picked: Mapping[str, Evaluation]
    pruned: PruningResult
    trials: Sequence[WidthTrial]
    tuned: FinetuneResult | None
    dense: Figures
    slim: Figures
    latency_ratios: Sequence[LatencyRatio]
    ladder: LadderFigures | None
    before_tuning: Evaluation
    curve: Sequence[SweepPoint] | None
    probes: Mapping[str, BiasProbe] | None
    checks: Mapping[str, Verification]
    files: Sequence[ExportedFile]
    denormals: int
    timings: Mapping[str, float]

"""All that a run came to: what the report is made of."""

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
from ..metrics.cost import Latency, Measurement
from ..pruning import PruningResult
from ..pruning.verification import Verification
from ..tuning.finetuning import FinetuneResult
from ..tuning.pseudo_labels import PseudoLabels


@dataclass(frozen=True)
class Subject:
    """What a run works on.

    Attributes:
        config: the settings.
        checkpoint: as it was read, completed by what was found out.
        dense: its network.
        splits: the data.
        specification: of the data.
        num_classes: outputs of the classifier.
        tokenizer: of texts; None for images.
        evaluated_on: name of the split that results are reported on.
        held_out: that split.
        held_out_aligned: what "aligned" means there, shape (classes, K).
        search_aligned: what "aligned" means to the search, likewise.
        pseudo: how pseudo bias labels came out; None where true ones are used.
        device: where the run took place, in words.
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
    held_out_aligned: Tensor
    search_aligned: Tensor
    pseudo: PseudoLabels | None
    device: str


@dataclass(frozen=True)
class Figures:
    """One network's figures on the held-out split.

    Attributes:
        predicted: classes, shape (N,).
        evaluation: accuracies of these.
        measurement: size and FLOPs.
        latency: of a forward pass in torch.
    """

    predicted: Tensor
    evaluation: Evaluation
    measurement: Measurement
    latency: Latency


@dataclass(frozen=True)
class ExportedFile:
    """An ONNX file of the slim network.

    Attributes:
        name: of the file.
        precision: "float32", "float16" or "int8".
        opset: of its operators.
        size_bytes: of the file.
        latency: in onnxruntime.
        evaluation: accuracies in onnxruntime.
        refused: why it was taken away again; None if it was not.
        details: what else is to be said of it.
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
    """What the stages of a run found.

    Attributes:
        subject: what was worked on.
        masks: by which channels were removed.
        found: of the search; None without one.
        picked: for "best" and "last", accuracies of these masks; empty without a search.
        pruned: the removal.
        tuned: finetuning; None without it.
        dense: the dense network's figures.
        slim: the slim network's, after finetuning.
        before_tuning: accuracies of the slim network as extracted.
        curve: accuracy against sparsity; None where it was not asked for.
        probes: what a linear head reads of the bias, for "dense" and "slim"; None where it was not asked for.
        checks: comparisons of exported files with the network.
        files: the ONNX files, slim.onnx first.
        denormals: weights set to zero since processors are slow on them.
        timings: seconds per stage.
    """

    subject: Subject
    masks: MaskSet
    found: SearchResult | None
    picked: Mapping[str, Evaluation]
    pruned: PruningResult
    tuned: FinetuneResult | None
    dense: Figures
    slim: Figures
    before_tuning: Evaluation
    curve: Sequence[SweepPoint] | None
    probes: Mapping[str, BiasProbe] | None
    checks: Mapping[str, Verification]
    files: Sequence[ExportedFile]
    denormals: int
    timings: Mapping[str, float]

"""Builds the parts of a search from its arguments, and checks that they fit together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import SearchConfig
from ..data.batch import Loader, as_batch, input_map
from ..data.loader import BatchLoader, sharded
from ..digests import state_tensors, tensors_digest
from ..distributed import world
from ..errors import ConfigError, DataError
from ..gates.masks import MaskSet
from ..metrics.accuracy import Evaluation, evaluate
from .budget import BudgetTerm
from .gate_cost import GateCost
from .heads import BiasHeads
from .network import MaskedNetwork
from .passes import Passes
from .projection import Projection
from .schedule import temperatures
from .selection import resolve
from .speed import FastPasses, Speedups
from .state import GradualState, SearchState
from .training_data import Position, TrainingData, TrainingLabels

VALIDATION_SAMPLES = 2000  # validation samples that a gradual search looks at in each round, at least
VALIDATION_PART = 4  # otherwise one for so many training samples, at most


@dataclass(frozen=True)
class Validation:
    """Validation data on which the epoch is selected.

    Attributes:
        loader: batches of the validation data.
        aligned: bias value that each class is aligned with, shape (classes, K), on the CPU.
        has_bias: whether the validation data have bias labels.
    """

    loader: Loader
    aligned: Tensor
    has_bias: bool

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Accuracies of a model on the validation data; several processes divide a ``BatchLoader``."""
        loader = sharded(self.loader)
        return evaluate(model, loader, self.aligned, sharded=loader is not self.loader)


@dataclass(frozen=True)
class Search:
    """The parts of a search that is ready to run.

    Attributes:
        config: settings of the search.
        schedule: temperature of each epoch.
        network: the masked network.
        data: training set.
        labels: labels and sample weights of the training set.
        passes: forward passes of the network over the training set.
        state: everything that changes during the search.
        budget: what makes the network come down to a budget; in the paper's search None if there is no budget.
        validation: validation data; None if there are none.
        rule: name of the rule that selects an epoch.
        weights: digest of the weights of the given network, by which a saved state is recognised.
    """

    config: SearchConfig
    schedule: list[float]
    network: MaskedNetwork
    data: TrainingData
    labels: TrainingLabels
    passes: Passes
    state: SearchState
    budget: BudgetTerm | Projection | None
    validation: Validation | None
    rule: str
    weights: str


def assemble(
    model: nn.Module,
    train_loader: Loader,
    config: SearchConfig,
    val_loader: Loader | None = None,
    aligned: Tensor | None = None,
    start: MaskSet | None = None,
    speedups: Speedups | None = None,
) -> Search:
    """Build and check the parts of a search; see :func:`bise_prune.search` for the arguments and errors."""
    if config.batchnorm != "frozen" and world()[1] > 1:
        raise ConfigError(f"batchnorm '{config.batchnorm}' needs the whole batch in one process")
    data = TrainingData(train_loader)
    parameter = next(model.parameters())
    for tensor in [data.first.input] if isinstance(data.first.input, Tensor) else data.first.input.values():
        if tensor.dtype == torch.uint8 or (tensor.is_floating_point() and tensor.dtype != parameter.dtype):
            raise DataError(f"inputs are {tensor.dtype}, the model is {parameter.dtype}: convert one of them")
    example = input_map(data.first.input, lambda tensor: tensor[:2].to(parameter.device))
    network = MaskedNetwork(model, example, config, start)  # lines 1 and 2
    schedule = temperatures(config.anneal_every, config.anneal_factor, config.min_temperature)
    budget = _budget(config, network, len(schedule))
    passes = FastPasses(network, data, speedups or Speedups())
    generator, position = torch.Generator().manual_seed(config.seed), Position()
    features, target, bias = passes.bottleneck(position)
    labels = TrainingLabels(target, bias, network.num_classes, config, aligned, network.device, network.dtype)
    heads = BiasHeads(  # line 3
        features.shape[1], labels.num_bias_classes, generator, network.dtype, network.device,
        lr=config.head_lr, momentum=config.head_momentum, weight_decay=config.head_weight_decay,
    )  # fmt: skip
    validation = None
    if val_loader is not None:
        validation = _validation(val_loader, labels.aligned.cpu(), bias.shape[1])
        if isinstance(val_loader, BatchLoader) and config.is_gradual:
            most = max(VALIDATION_SAMPLES, len(target) // VALIDATION_PART)
            validation = dataclasses.replace(validation, loader=_some_of(val_loader, most, config.seed))
    kind = GradualState if config.is_gradual else SearchState
    state = kind.at_start(network, heads, generator, position, config)
    rule = resolve(config.select, validation is not None, validation is not None and validation.has_bias)
    return Search(
        config, schedule, network, data, labels, passes, state, budget, validation, rule,
        weights=tensors_digest(state_tensors(model)),
    )  # fmt: skip


def _some_of(loader: BatchLoader, most: int, seed: int) -> BatchLoader:
    """The loader, restricted to so many random samples; with fewer samples, the loader itself."""
    if len(loader.data) <= most:
        return loader
    rows = torch.randperm(len(loader.data), generator=torch.Generator().manual_seed(seed))[:most].sort().values
    return dataclasses.replace(loader, data=loader.data.subset(rows))


def _budget(config: SearchConfig, network: MaskedNetwork, num_epochs: int) -> BudgetTerm | Projection | None:
    """What makes the search come down to its budget."""
    budget = config.budget
    if not config.is_gradual:
        return None if budget is None else BudgetTerm(budget, network, num_epochs)
    parts, sizes = (network.trace, network.model, network.sites), network.gates.sizes
    if budget is None:
        return Projection(GateCost(*parts), sizes)
    projection = Projection(GateCost(*parts, budget.of, budget.joins, budget.multiple), sizes, budget.layer_floor)
    if budget.multiple == 1 or projection.reaches(budget.share):
        return projection
    return Projection(GateCost(*parts, budget.of, budget.joins), sizes, budget.layer_floor)


def _validation(loader: Loader, aligned: Tensor, num_biases: int) -> Validation:
    """The validation data, checked: not empty, and with as many biases as the training data or none."""
    batch = next(iter(loader), None)
    if batch is None:
        raise DataError("the validation loader is empty")
    columns = as_batch(batch).bias.shape[1]
    if columns not in (0, num_biases):
        raise DataError(f"the validation data have {columns} biases, the training data {num_biases}")
    return Validation(loader, aligned, columns > 0)

"""What a reader would use instead, on the same tensors and network: each by the library that its users take."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Sampler

from bise_prune import measure
from bise_prune.baselines.ffw import ffw
from bise_prune.data import BatchLoader, BiasedDataset
from bise_prune.errors import DataError
from bise_prune.gates.bottleneck import CapturedInputs, head_name
from bise_prune.mask_search.refitted import refitted_head
from bise_prune.mask_search.weights import sample_weights
from bise_prune.tracing import run as run_network
from bise_prune.tracing import trace
from bise_prune.tuning.features import bottleneck_features
from bise_prune.tuning.norms import reestimated

from .cases import Case, Figures, timed

Rows = dict[str, Figures]
Run = Callable[[Case], Rows]

JTT_FIRST_EPOCHS, JTT_TIMES = 1, 20  # epochs of the identification, how often its errors are shown
_HALVINGS = 12
_STEPS_DOWN, _DRAWN = 60, 1_000  # steps of re-estimated scores, and samples that they are estimated on

# -- SpuCo: retraining -----------------------------------------------------------------------------


def spuco_erm(case: Case) -> Rows:
    """Plain training, as a check that SpuCo's loop and ours come to the same vanilla network."""
    from spuco.robust_train import ERM

    return {"ERM": _retrained(case, lambda **common: ERM(trainset=_dataset(case), **common), select=False)}


def spuco_group_balance(case: Case) -> Rows:
    """Batches balanced over the subgroups (RWG)."""
    from spuco.robust_train import GroupBalanceBatchERM

    def method(**common: Any) -> Any:
        dataset = _dataset(case)
        return GroupBalanceBatchERM(trainset=dataset, group_partition=dataset.group_partition, **common)

    return {"GroupBalance": _retrained(case, method)}


def spuco_group_dro(case: Case) -> Rows:
    """Distributionally robust optimisation over the subgroups."""
    from spuco.datasets import GroupLabeledDatasetWrapper
    from spuco.robust_train import GroupDRO

    def method(**common: Any) -> Any:
        dataset = _dataset(case)
        return GroupDRO(trainset=GroupLabeledDatasetWrapper(dataset, dataset.group_partition), **common)

    return {"GroupDRO": _retrained(case, method)}


def spuco_jtt(case: Case) -> Rows:
    """Just Train Twice: what a first network gets wrong is shown more often to a second one."""
    from spuco.group_inference import JTTInference
    from spuco.robust_train import ERM, CustomSampleERM

    def method(**common: Any) -> Any:
        dataset = _dataset(case)
        first = ERM(trainset=dataset, **_common(case, case.untrained()))
        _read_at_once(case, first)
        for epoch in range(JTT_FIRST_EPOCHS):
            first.train_epoch(epoch)
        network = first.trainer.model.eval()
        with torch.no_grad():
            batches = BatchLoader(case.train, 500)
            guesses = torch.cat([network(batch.to(case.device).input).argmax(1).cpu() for batch in batches])
        groups = JTTInference(guesses.tolist(), case.train.target.tolist()).infer_groups()
        shown = groups[0, 0] + JTT_TIMES * groups[0, 1]
        return CustomSampleERM(trainset=dataset, indices=shown, **common)

    return {"JTT": _retrained(case, method)}


def _common(case: Case, network: nn.Module) -> dict[str, Any]:
    recipe = case.setting.recipe
    return {
        "model": network,
        "batch_size": recipe.batch_size,
        "optimizer": recipe.optimizer(network.parameters()),
        "num_epochs": recipe.epochs,
        "device": torch.device(case.device),
    }


def _retrained(case: Case, method: Callable[..., Any], select: bool = True) -> Figures:
    """A network trained from the vanilla one's start by its recipe; the setting's rule, or the last epoch, counts."""
    from spuco.utils.random_seed import set_seed

    set_seed(case.seed)
    case.vanilla  # noqa: B018  # trained outside the time that is taken
    network, recipe = case.untrained(), case.setting.recipe
    common = _common(case, network)

    def begin() -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*worker processes.*")  # they are not used, see below
            trained = method(**common)
        _read_at_once(case, trained)
        if recipe.scheduler is not None:
            trained.trainer.lr_scheduler = recipe.scheduler(common["optimizer"])
        return trained

    trained, seconds = timed(begin)
    best = (-1.0, 0, network.state_dict())
    for epoch in range(recipe.epochs):
        seconds += timed(lambda epoch=epoch: trained.train_epoch(epoch))[1]
        network.eval()
        score = 0.0 if case.val is None or not select else case.evaluation(network, case.val).unbiased_accuracy
        if score >= best[0]:
            best = (score, epoch + 1, copy.deepcopy(network.state_dict()))
    network.load_state_dict(best[2])
    return case.figures(network.eval(), seconds, latency=True, best_epoch=best[1])


def _dataset(case: Case) -> Any:
    """The training set as SpuCo wants it; it is read a batch at a time."""
    from spuco.datasets import BaseSpuCoCompatibleDataset

    class Tensors(BaseSpuCoCompatibleDataset):  # type: ignore[misc]
        def __init__(self, data: BiasedDataset) -> None:
            super().__init__()
            self.data = data
            self._labels, self._spurious = data.target.tolist(), data.bias[:, 0].tolist()
            self._num_classes = case.num_classes
            self._group_partition: dict[tuple[int, int], list[int]] = {}
            for i, group in enumerate(zip(self._labels, self._spurious, strict=True)):
                self._group_partition.setdefault(group, []).append(i)
            self._group_weights = {key: len(rows) / len(data) for key, rows in self._group_partition.items()}

        def __getitem__(self, index: int | list[int]) -> tuple[Tensor, Tensor]:
            batch = self.data.batch(torch.as_tensor(index).reshape(-1))
            augment = case.setting.recipe.augment
            assert isinstance(batch.input, Tensor)
            return (batch.input if augment is None else augment(batch.input)), batch.target

    return Tensors(case.train)


class _Batches(Sampler[list[int]]):
    """The order of one of SpuCo's samplers, or a random one, in batches."""

    def __init__(self, order: Sampler[int] | None, size: int, batch_size: int) -> None:
        self.order, self.size, self.batch_size = order, size, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        rows = torch.randperm(self.size).tolist() if self.order is None else list(self.order)
        return (rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size))

    def __len__(self) -> int:
        return math.ceil((self.size if self.order is None else len(self.order)) / self.batch_size)  # type: ignore[arg-type]


def _read_at_once(case: Case, method: Any) -> None:
    """SpuCo starts four processes an epoch, which read samples one by one; the same order is read by batches here."""
    trainer = method.trainer
    dataset = trainer.trainset
    if hasattr(dataset, "group"):  # labelled with groups
        labelled, groups = dataset, torch.tensor(dataset.group)

        class Grouped:
            def __getitem__(self, rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
                return (*labelled.dataset[rows], groups[rows])

            def __len__(self) -> int:
                return len(labelled)

        dataset = Grouped()
    order = _Batches(trainer.sampler, len(dataset), case.setting.recipe.batch_size)
    trainer.trainloader = DataLoader(dataset, batch_size=None, sampler=order)


# -- torch-pruning: other criteria at our FLOPs ----------------------------------------------------


def torch_pruning(name: str) -> Run:
    """Torch-Pruning's pruner with one of its criteria, at the FLOPs that the search left; as is, and finetuned."""

    def run(case: Case) -> Rows:
        case.vanilla  # noqa: B018  # trained outside the time that is taken
        target = measure(case.pruned().model, case.example).flops
        (network, ratio), seconds = timed(lambda: pruned_to(case, name, target))
        tuned, more = case.tuned(network)
        return {
            "as is": case.figures(network, seconds, latency=True, pruning_ratio=ratio),
            "finetuned": case.figures(tuned, seconds + more, latency=True),
        }

    return run


CRITERIA: dict[str, Callable[[], Any]] = {
    "magnitude": lambda: tp.importance.MagnitudeImportance(p=2),
    "lamp": lambda: tp.importance.LAMPImportance(p=2),
    "taylor": lambda: tp.importance.TaylorImportance(),
    "fpgm": lambda: tp.importance.FPGMImportance(),
    "random": lambda: tp.importance.RandomImportance(),
}


def pruned_to(case: Case, name: str, target: int) -> tuple[nn.Module, float]:
    """The largest network within ``target`` FLOPs, by bisection of the pruning ratio."""
    low, high = 0.0, 1.0
    slopes = _slopes(case) if name == "taylor" else {}
    best: tuple[nn.Module, float] | None = None
    for _ in range(_HALVINGS):
        ratio = (low + high) / 2
        network = _pruned_at(case, name, ratio, slopes)
        if measure(network, case.example).flops > target:
            low = ratio
        else:
            best, high = (network, ratio), ratio
    if best is None:
        raise DataError(f"torch-pruning comes to no network of {target} FLOPs by '{name}'")
    return best


def _slopes(case: Case) -> dict[str, Tensor]:
    """Gradients of the plain cross-entropy on a quarter of the training set."""
    network = copy.deepcopy(case.vanilla).requires_grad_(True)
    for batch in BatchLoader(case.train.subset(torch.arange(0, len(case.train), 4)), 500):
        moved = batch.to(case.device)
        cross_entropy(network(moved.input), moved.target, reduction="sum").backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


def _pruned_at(case: Case, name: str, ratio: float, slopes: Mapping[str, Tensor]) -> nn.Module:
    network = copy.deepcopy(case.vanilla).requires_grad_(True)
    for key, slope in slopes.items():
        network.get_parameter(key).grad = slope.clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        _pruner(case, network, CRITERIA[name](), ratio).step()
    network.zero_grad()
    return network.eval()


def _pruner(case: Case, network: nn.Module, importance: Any, ratio: float, steps: int = 1) -> Any:
    """Torch-Pruning's pruner of all layers but the last, ranked together."""
    return tp.pruner.BasePruner(
        network,
        case.example,
        importance=importance,
        global_pruning=True,
        pruning_ratio=ratio,
        max_pruning_ratio=0.95,
        iterative_steps=steps,
        ignored_layers=[network.get_submodule(head_name(network, trace(network, case.example)))],
    )


def pruned_on_the_way_down(
    case: Case, data: BiasedDataset, shares: Sequence[float]
) -> Iterator[tuple[float, nn.Module]]:
    """Torch-Pruning's Taylor scores, estimated anew in small steps: the first network within each share of the FLOPs.

    Scores are those of samples drawn by weight; to these, statistics of batch norms and the last layer are refitted
    after each step, as the next scores and the returned networks have them.

    Args:
        case: the network.
        data: samples to draw from.
        shares: shares of the dense network's FLOPs.
    """
    network = copy.deepcopy(case.vanilla).requires_grad_(True)
    name = head_name(network, trace(network, case.example))
    pruner = _pruner(case, network, tp.importance.TaylorImportance(), 0.95, steps=_STEPS_DOWN)
    weights = sample_weights(data.target, data.bias, case.num_classes, case.aligned, "auto", None)
    generator = torch.Generator().manual_seed(case.seed)
    rows = torch.multinomial(weights(data.target, data.bias).double(), _DRAWN, True, generator=generator)
    drawn, left = data.subset(rows), sorted(shares, reverse=True)
    loader, dense = BatchLoader(drawn, 100), measure(network, case.example).flops
    for _ in range(_STEPS_DOWN):
        for batch in loader:
            moved = batch.to(case.device)
            cross_entropy(network(moved.input), moved.target, reduction="sum").backward()
        pruner.step()
        network.zero_grad()
        network.load_state_dict(reestimated(network, loader).state_dict())
        features = bottleneck_features(network, [name], drawn)
        head = refitted_head(features, drawn.target.to(features.device), case.num_classes)
        layer = network.get_submodule(name)
        with torch.no_grad():
            layer.weight.copy_(head[:, :-1])
            layer.bias.copy_(head[:, -1])
        while left and measure(network, case.example).flops <= left[0] * dense:
            yield left.pop(0), copy.deepcopy(network).eval()


# -- the last layer alone --------------------------------------------------------------------------


def last_layer(case: Case) -> Rows:
    """Logistic regression on frozen features: of the training set with the search's weights; DFR on balanced data."""
    train = case.train
    weights = sample_weights(train.target, train.bias, case.num_classes, case.aligned, "auto", None)
    given = weights(train.target, train.bias).double().numpy()
    rows = {"last layer, reweighted": _with_last_layer(case, train, given)}
    if case.val is not None:
        rows["DFR, validation set"] = _with_last_layer(case, case.val, np.ones(len(case.val)))
    return rows


def _with_last_layer(case: Case, data: BiasedDataset, weights: Any) -> Figures:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    network = copy.deepcopy(case.vanilla)
    layer = head_name(network, trace(network, case.example))

    def fit() -> tuple[Any, Any]:
        features = []
        for batch in BatchLoader(data, 500):
            with torch.no_grad(), CapturedInputs(network, layer) as bottleneck:
                run_network(network, batch.to(case.device).input)
            features.append(bottleneck.taken().cpu().double())
        scaler = StandardScaler()
        scaled = scaler.fit_transform(torch.cat(features).numpy())
        return LogisticRegression(max_iter=2_000).fit(scaled, data.target.numpy(), weights), scaler

    (regression, scaler), seconds = timed(fit)
    matrix = torch.from_numpy(regression.coef_ / scaler.scale_)
    offset = torch.from_numpy(regression.intercept_ - (regression.coef_ * scaler.mean_ / scaler.scale_).sum(1))
    if len(matrix) == 1:  # two classes: one row of log odds
        matrix, offset = torch.cat([-matrix, matrix]) / 2, torch.cat([-offset, offset]) / 2
    head = network.get_submodule(layer)
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(matrix)
        head.bias.copy_(offset)
    return case.figures(network.eval(), seconds, latency=True)


def ffw_gates(case: Case) -> Rows:
    """FFW, the predecessor: gates on single weights, learned on the biased training set; nothing becomes smaller."""
    case.vanilla  # noqa: B018  # trained outside the time that is taken
    found, seconds = timed(lambda: ffw(case.vanilla, case.loader(), max_epochs=case.setting.ffw_epochs, seed=case.seed))
    return {"FFW": case.figures(found.model, seconds, zeroed=found.sparsity)}


PEERS: dict[str, Run] = {
    "spuco-erm": spuco_erm,
    "spuco-group-balance": spuco_group_balance,
    "spuco-group-dro": spuco_group_dro,
    "spuco-jtt": spuco_jtt,
    **{f"tp-{name}": torch_pruning(name) for name in CRITERIA},
    "last-layer": last_layer,
    "ffw": ffw_gates,
}

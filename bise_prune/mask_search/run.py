"""The state of one search, and what its epochs do to it."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..artifacts import MaskSet
from ..config import SearchConfig
from ..data.batch import Batch, Input, Loader, as_batch, input_length, input_map
from ..data.loader import BatchLoader
from ..distributed import gathered, summed, world
from ..errors import BiseError, ConfigError, DataError, ModelError
from ..evaluation import Evaluation, evaluate
from ..gates import GatedModel, LearnedGates, head_name, least_open, sites_in, step_slope, with_learned_state
from ..subgroups import aligned_values, is_aligned
from ..tracing import FunctionMode, trace
from .ahead import StillNetwork, stand_still
from .cost import GateCost
from .forward import MaskedForward
from .heads import BiasHeads
from .mutual_information import JointPool
from .objective import objective_of, reweighted_cross_entropy, silent_share
from .prefix import cached_prefix
from .result import EpochRecord, SearchResult
from .schedule import temperatures
from .selection import LAST, NEED_BIAS, RULES, Selected, resolve
from .stopping import none_can_flip
from .weights import sample_weights

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_EXHAUSTED = "the training loader yields nothing on its second pass: give a loader, not an iterator"
_WITHIN = 0.01  # of the budget
_SUMS = ("objective", "cross_entropy", "mutual_information", "head_cross_entropy")


_Inputs = tuple[Input, FunctionMode | None]


class _Labels(NamedTuple):
    """Of N samples: y (N,), b (N, K), the weight r (N,), and which are bias-conflicting (N, K)."""

    target: Tensor
    bias: Tensor
    weight: Tensor
    conflicting: Tensor


class SearchRun:
    """Masks, heads, their optimiser, and what has been recorded."""

    def __init__(
        self,
        model: nn.Module,
        train_loader: Loader,
        config: SearchConfig,
        val_loader: Loader | None,
        aligned: Tensor | None,
        start: MaskSet | None,
    ) -> None:
        self.config, self.val_loader = config, val_loader
        rank, processes = world()
        if isinstance(train_loader, BatchLoader) and processes > 1:
            train_loader = dataclasses.replace(train_loader, shard=(rank, processes))
        if config.batchnorm != "frozen" and processes > 1:
            raise ConfigError(f"batchnorm '{config.batchnorm}' needs the whole batch in one process")
        self.loader = train_loader
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        first = next(iter(train_loader), None)
        if first is None:
            raise DataError("the training loader is empty")
        self.first = as_batch(first)
        for tensor in [self.first.input] if isinstance(self.first.input, Tensor) else self.first.input.values():
            if tensor.dtype == torch.uint8 or (tensor.is_floating_point() and tensor.dtype != self.dtype):
                raise DataError(f"inputs are {tensor.dtype}, the model is {self.dtype}: convert one of them")
        example = input_map(self.first.input, lambda tensor: tensor[:2].to(self.device))
        frozen = (
            copy.deepcopy(model if start is None else with_learned_state(model, start)).eval().requires_grad_(False)
        )
        if config.channels_last:
            frozen = frozen.to(memory_format=torch.channels_last)
        record = trace(frozen, example)
        self.head_layer = head_name(frozen, record)
        sites = sites_in(record, frozen, config.placement)
        self.gates = LearnedGates([site.num_channels for site in sites], config.initial_logit, self.dtype)
        if start is not None:
            parts = [start.logits.get(site.name, torch.zeros(0)) for site in sites]
            if [len(part) for part in parts] != self.gates.sizes:
                raise ModelError("the masks to start from belong to another network or placement")
            with torch.no_grad():
                self.gates.logits.copy_(torch.cat(parts))
        self.started_at = float(self.gates.logits.detach().double().sum())
        self.gated = GatedModel(frozen, sites, self.gates).to(self.device)  # lines 1 and 2
        self.norms = [module for module in frozen.modules() if isinstance(module, _BATCH_NORMS)]
        if config.batchnorm != "frozen" and not self.norms:
            raise ConfigError(f"batchnorm '{config.batchnorm}': the network has no batch norm")
        budget = config.budget
        self.cost = None if budget is None else GateCost(record, frozen, sites, budget.of, budget.joins)
        self.cost_at: tuple[Tensor, float, Tensor] | None = None
        self.limit = 1.0  # of the cost, at present
        self.num_epochs = len(temperatures(config.anneal_every, config.anneal_factor, config.min_temperature))
        self.forward = MaskedForward(self.gated, self.head_layer, config)
        self.prefix = None
        cacheable = config.batchnorm == "frozen" and not self.forward.compiled
        if config.cache_bytes and cacheable and isinstance(train_loader, BatchLoader):
            with self.forward.precision():
                self.prefix = cached_prefix(frozen, record, sites, train_loader, self.device, config.cache_bytes)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.passes, self.done, self.sums = 0, 0, torch.zeros(len(_SUMS) + 1, dtype=torch.float64)
        self.history: list[EpochRecord] = []
        self.picks: dict[str, tuple[int, float | None, dict[str, Tensor]]] = {}
        self.heads_trained = False
        self.features_at: tuple[Tensor, tuple[Tensor, Tensor, Tensor]] | None = None
        self.pushes = torch.zeros(2, len(self.gates.logits), device=self.device)
        self.closed_before = self._closed()
        self.flipped = torch.zeros_like(self.closed_before)
        self.steps = 0
        self.pool = JointPool(config.mi_pool) if config.mi_pool else None
        features, target, bias = self._features()
        self.num_features = features.shape[1]
        self._prepare_labels(target, bias, aligned)
        self.still: StillNetwork | None = None
        batch_first = all(
            call.kind != "layer_norm"
            and record.values[record.gated_call(call.index, call.kind).outputs[0]].shape[0] == input_length(example)
            for site in sites
            for call in site.calls
        )
        needed = len(target) * (self.num_features + len(self.gates.logits)) * self.gates.logits.element_size()
        self.can_remember = (
            config.batchnorm == "frozen"
            and not self.forward.compiled
            and isinstance(train_loader, BatchLoader)
            and processes == 1
            and batch_first
            and needed <= config.cache_bytes
        )

    def _prepare_labels(self, target: Tensor, bias: Tensor, aligned: Tensor | None) -> None:
        config = self.config
        if not bias.shape[1]:
            raise DataError("the training data have no bias labels: give some, or find pseudo labels for them first")
        num_classes = self.gated.model.get_submodule(self.head_layer).out_features
        if int(target.max()) >= int(num_classes) or min(int(target.min()), int(bias.min())) < 0:  # type: ignore[arg-type]
            raise DataError(
                f"labels run from {int(target.min())} to {int(target.max())}, but the model has {num_classes} classes; "
                "labels must lie in [0, classes)"
            )
        self.num_classes = int(num_classes)  # type: ignore[arg-type]
        self.aligned = aligned_values(target, bias, self.num_classes) if aligned is None else aligned.cpu()
        conflicting = (~is_aligned(target, bias, self.aligned)).sum(0)
        self.num_conflicting = tuple(conflicting.tolist())
        in_order = isinstance(self.loader, BatchLoader)
        self.label_digest = [_digest(torch.cat([target[:, None], bias], 1), in_order), self.aligned.tolist()]
        if not min(self.num_conflicting):
            raise DataError(
                f"no bias-conflicting sample among {len(target)} for bias {self.num_conflicting.index(0)}: "
                "the label and the bias cannot be told apart, so there is nothing to learn masks from"
            )
        weights = sample_weights(target, bias, self.num_classes, self.aligned, config.weighting, config.rho)
        self.weights = weights.to(self.device, self.dtype)
        self.aligned = self.aligned.to(self.device)
        self.known_labels = self._judged(target.to(self.device), bias.to(self.device))  # in the loader's order
        num_bias_classes = [max(2, int(column.max()) + 1) for column in bias.unbind(1)]
        self.heads = BiasHeads(  # line 3
            self.num_features, num_bias_classes, self.generator, self.dtype, self.device,
            lr=config.head_lr, momentum=config.head_momentum, weight_decay=config.head_weight_decay,
        )  # fmt: skip
        self.has_validation_bias = False
        if self.val_loader is not None:
            batch = next(iter(self.val_loader), None)
            if batch is None:
                raise DataError("the validation loader is empty")
            columns = as_batch(batch).bias.shape[1]
            if columns not in (0, bias.shape[1]):
                raise DataError(f"the validation data have {columns} biases, the training data {bias.shape[1]}")
            self.has_validation_bias = columns > 0
            if isinstance(self.val_loader, BatchLoader):
                val = self.val_loader.data
                self.label_digest.append(_digest(torch.cat([val.target[:, None], val.bias], 1).cpu(), True))
        self.rule = resolve(config.select, self.val_loader is not None, self.has_validation_bias)
        self.velocity = torch.zeros_like(self.gates.logits, requires_grad=False)
        self.norm_optimizer = None
        if config.batchnorm == "affine":
            self.norm_optimizer = torch.optim.SGD(
                [p.requires_grad_() for norm in self.norms for p in norm.parameters()],
                lr=config.mask_lr, momentum=config.mask_momentum, weight_decay=config.mask_weight_decay,
            )  # fmt: skip

    # -- Algorithm 1 -------------------------------------------------------------------------------

    def train_heads_first(self) -> None:
        """Line 4, unless a resumed search has it behind it."""
        if not self.heads_trained:
            self.train_heads()

    def train_heads(self) -> None:
        """Train the heads for E epochs on the masked network's features, computed once: nothing else moves."""
        if self.config.head_epochs:
            features, _, bias = self._features()
            self.heads.train(
                features,
                bias.to(self.device),
                epochs=self.config.head_epochs,
                batch_size=int(summed(torch.tensor(len(self.first.target), device=self.device))),
                generator=self.generator,
            )
        self.heads_trained = True

    def mask_epoch(self, epoch: int, temperature: float, after_batch: Callable[[], None]) -> EpochRecord:
        """Lines 7 to 10: one pass over the training set; per batch a step of the masks and one of the heads."""
        self.gates.temperature = temperature
        self.limit = self._limit(epoch)
        if self.done == 0:
            self.sums = torch.zeros(len(_SUMS) + 1, dtype=torch.float64, device=self.device)
            self.pushes = torch.zeros_like(self.pushes)
            self.closed_before = self._closed()
            self.flipped = torch.zeros_like(self.closed_before)
        for norm in self.norms:
            norm.train(self.config.batchnorm != "frozen")
        standing = self.can_remember and bool(self.history) and not self.history[-1].mask_flips
        self.still = (self.still or self.new_memory()) if standing else None
        # Of an epoch that was interrupted, the rest.
        parts: Iterator[Tensor | Batch] = itertools.islice(self._pass(), self.done, None)
        if self.still is not None and not self.flipped.any():
            parts = stand_still(self, self.still, cast(list[Tensor], list(parts)), after_batch)
        for part, inputs in self._ready(parts):
            self._step(part, inputs)
            self.done += 1
            after_batch()
        self.gated.eval()
        if not self.done:
            raise DataError(_EXHAUSTED)
        self.steps, self.done = self.done, 0
        return self._record(epoch, temperature)

    def _step(self, part: Tensor | Batch, inputs: _Inputs) -> None:
        gates = self.gate_values().requires_grad_()
        logits, features = self.forward(gates.split(self.gates.sizes), *inputs)
        labels = self.labels(part)
        terms = objective_of(
            reweighted_cross_entropy(logits, labels.target, labels.weight),
            len(labels.target),
            self.heads(features),  # the information's gradient stops at the heads' weights
            labels.bias,
            labels.conflicting,
            self.config.mi_weight,
            self.pool,
        )
        auxiliary = self.heads.step(features, labels.bias, terms.num_samples if world()[1] > 1 else None)
        terms.total.backward()
        if self.norm_optimizer is not None:
            self.norm_optimizer.step()
            self.norm_optimizer.zero_grad()
        slope = self.descend(cast(Tensor, gates.grad))
        silent = silent_share(terms.num_conflicting, self.dtype)
        shares = [terms.total, terms.cross_entropy, terms.mutual_information, auxiliary, silent]
        self.note(slope[None], torch.stack(shares).detach()[None])

    def new_memory(self) -> StillNetwork:
        """One that nothing is noted in."""
        assert isinstance(self.loader, BatchLoader)
        return StillNetwork(
            len(self.loader.data), self.num_features, len(self.gates.logits), self.gates.logits.detach()
        )

    def descend(self, slope: Tensor) -> Tensor:
        """A step of the masks down J, whose gradient with respect to the gates is ``slope``, every process's in one.

        SGD is written down; the heads make their step elsewhere.

        Returns:
            That gradient, summed over the processes and with the budget's term.
        """
        config, logits = self.config, self.gates.logits.detach()
        slope = summed(slope)
        if self.cost is not None:
            slope = slope + self._over_budget()
        gradient = (slope * step_slope(logits, self.gates.temperature)).add_(logits, alpha=config.mask_weight_decay)
        self.velocity.mul_(config.mask_momentum).add_(gradient)
        logits.sub_(self.velocity, alpha=config.mask_lr)
        if config.budget is not None:
            self._keep_floor(config.budget.layer_floor)
        self.flipped |= self._closed() != self.closed_before
        return slope

    def note(self, slopes_GM: Tensor, shares: Tensor) -> None:
        """Add up what an epoch needs to know of G steps: their gradients, and what they add to the sums (G, sums)."""
        push = torch.where(self._closed(), -slopes_GM, slopes_GM)
        self.pushes += torch.stack([push.sum(0), push.clamp(min=0).sum(0)])
        self.sums += shares.sum(0)

    def gate_values(self) -> Tensor:
        """The gates, without a gradient."""
        return (~self._closed()).to(self.dtype)

    def _closed(self) -> Tensor:
        return self.gates.logits.detach() < 0

    def _limit(self, epoch: int) -> float:
        """What the network may cost in an epoch, as a share: the budget, or on the way down to it."""
        budget = self.config.budget
        if budget is None:
            return 1.0
        way = min(1.0, (epoch - 1) / (budget.descent * self.num_epochs)) if budget.descent else 1.0
        return budget.share + (1 - budget.share) * (1 - way)

    def _over_budget(self) -> Tensor:
        """The gradient of lambda relu(cost(gates) - budget); the cost is computed anew only after a flip."""
        assert self.cost is not None and self.config.budget is not None
        state = self.gate_values().cpu()
        if self.cost_at is None or not torch.equal(self.cost_at[0], state):
            leaf = state.double().requires_grad_()
            cost = self.cost(leaf.split(self.gates.sizes))
            (slope,) = torch.autograd.grad(cost, leaf)
            self.cost_at = (state, float(cost.detach()), slope.to(self.gates.logits))
        _, value, slope = self.cost_at
        return slope * (self.config.budget.weight * (value > self.limit))

    @torch.no_grad()
    def _keep_floor(self, share: float) -> None:
        """Open the best channels of masks that the budget would close too far."""
        for logits in self.gates.logits.split(self.gates.sizes):
            least = least_open(len(logits), share)
            if int((logits >= 0).sum()) < least:
                best = logits.topk(least).indices
                logits[best] = logits[best].clamp(min=0)

    def _record(self, epoch: int, temperature: float) -> EpochRecord:
        parts = self.sums.clone()
        if world()[1] > 1:
            parts = summed(parts)
            parts[[2, 4]] /= world()[1]  # the same in every process
            parts[0] = parts[1] + self.config.mi_weight * parts[2]
        means = (parts / self.steps).tolist()
        if not all(abs(value) < float("inf") for value in means):
            raise BiseError(f"the loss is {means[0]} in epoch {epoch}: check the inputs for NaN, or lower mask_lr")
        flips, closed = int(self.flipped.sum()), self._closed()
        cost = None if self.cost is None else float(self.cost((~closed).split(self.gates.sizes)))
        record = EpochRecord(
            epoch=epoch,
            temperature=temperature,
            objective=means[0],
            cross_entropy=means[1],
            mutual_information=means[2],
            silent_share=means[4],
            head_cross_entropy=means[3],
            mask_flips=flips,
            closed=int(closed.sum()),
            cost=cost,
            validation=self._validate(flips),
        )
        self.history.append(record)
        self._pick(record)
        return record

    def _validate(self, flips: int) -> Evaluation | None:
        if self.val_loader is None:
            return None
        if not flips and self.config.batchnorm == "frozen" and self.history:
            return self.history[-1].validation
        loader, (rank, processes) = self.val_loader, world()
        shared = isinstance(loader, BatchLoader) and processes > 1
        if shared:
            loader = dataclasses.replace(loader, shard=(rank, processes))  # type: ignore[type-var]
        return evaluate(self.gated, loader, self.aligned.cpu(), sharded=shared)

    def _pick(self, record: EpochRecord) -> None:
        """Keep the epoch's masks for every rule by which they are the best so far, or equal to them."""
        learned = self.learned()
        self.picks[LAST] = (record.epoch, None, learned)
        budget = self.config.budget
        if budget is not None and (record.cost or 0.0) > budget.share + _WITHIN:
            return  # too large to be picked by its accuracy
        for rule, score in RULES.items():
            if record.validation is None or (rule in NEED_BIAS and not self.has_validation_bias):
                continue
            value = score(record.validation)
            if rule not in self.picks or value >= (self.picks[rule][1] or 0.0):
                self.picks[rule] = (record.epoch, value, learned)

    def learned(self) -> dict[str, Tensor]:
        """Mask logits by "logits", and the batch norms' tensors if they change."""
        tensors = {"logits": self.gates.logits.detach().cpu().clone()}
        if self.config.batchnorm != "frozen":
            names = {id(module): name for name, module in self.gated.model.named_modules()}
            for norm in self.norms:
                for leaf, tensor in norm.state_dict().items():
                    tensors[f"{names[id(norm)]}.{leaf}"] = tensor.detach().cpu().clone()
        return tensors

    def is_settled(self, temperatures: Sequence[float]) -> bool:
        """Whether no mask can flip any more in epochs of these temperatures."""
        if self.config.batchnorm != "frozen" or not temperatures or self.history[-1].mask_flips:
            return False
        if self.cost is not None and self.config.budget is not None:
            cost = self.history[-1].cost
            if cost is not None and cost > self.config.budget.share + _WITHIN:
                return False
            if self._limit(len(self.history) + 1) > self.config.budget.share:
                return False
        return none_can_flip(
            self.gates.logits,
            self.velocity,
            self.pushes[0],
            self.pushes[1],
            temperatures,
            lr=self.config.mask_lr,
            momentum=self.config.mask_momentum,
            weight_decay=self.config.mask_weight_decay,
            steps=self.steps,
        )

    def result(self, stopped_early: bool) -> SearchResult:
        """What was found."""
        self.picks.setdefault(self.rule, self.picks[LAST])  # no epoch met the budget
        return SearchResult(
            picks={rule: Selected(epoch, self._mask_set(epoch, rule, learned), score)
                   for rule, (epoch, score, learned) in self.picks.items()},
            rule=self.rule,
            history=tuple(self.history),
            aligned=self.aligned.cpu(),
            num_conflicting=self.num_conflicting,
            stopped_early=stopped_early,
        )  # fmt: skip

    def _mask_set(self, epoch: int, rule: str, learned: dict[str, Tensor]) -> MaskSet:
        parts = learned["logits"].split(self.gates.sizes)
        logits = {site.name: part.clone() for site, part in zip(self.gated.sites, parts, strict=True)}
        state = {name: tensor for name, tensor in learned.items() if name != "logits"}
        return MaskSet(logits, {"placement": self.config.placement, "epoch": str(epoch), "selected_by": rule}, state)

    # -- data --------------------------------------------------------------------------------------

    def _pass(self) -> Iterator[Tensor | Batch]:
        """The batches of one pass: the numbers of their samples where those are known, or what the loader yields."""
        set_epoch = getattr(self.loader, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(self.passes)
        self.passes += 1
        if isinstance(self.loader, BatchLoader):
            yield from self.loader.rows()
        else:
            yield from map(as_batch, self.loader)

    def _ready(self, parts: Iterable[Tensor | Batch]) -> Iterator[tuple[Tensor | Batch, _Inputs]]:
        """Batches, each with what the network is to run on; those of a ``BatchLoader`` are made ahead of their turn."""
        if isinstance(self.loader, BatchLoader) and self.prefix is None:
            for rows, batch in self.loader.prepared(cast(Iterable[Tensor], parts)):
                yield rows, self.inputs(batch)
        else:
            for part in parts:
                yield part, self.inputs(part)

    def inputs(self, part: Tensor | Batch) -> _Inputs:
        """A batch's input on the device, and the mode under which the network is to run on it."""
        if isinstance(part, Tensor) and self.prefix is not None:
            return self.prefix.placeholder(len(part)), self.prefix.replaying(part)
        batch = cast(BatchLoader, self.loader).data.batch(part) if isinstance(part, Tensor) else part
        return self._formatted(batch.to(self.device).input), None

    def labels(self, part: Tensor | Batch) -> _Labels:
        """A batch's labels on the device."""
        if isinstance(part, Tensor):
            rows = part.to(self.device)
            return _Labels(*(tensor.index_select(0, rows) for tensor in self.known_labels))
        return self._judged(part.target.to(self.device), part.bias.to(self.device))

    def _judged(self, target: Tensor, bias: Tensor) -> _Labels:
        return _Labels(target, bias, self.weights(target, bias), ~is_aligned(target, bias, self.aligned))

    def _formatted(self, inputs: Input) -> Input:
        if not self.config.channels_last:
            return inputs

        def formatted(tensor: Tensor) -> Tensor:
            return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

        return input_map(inputs, formatted)

    def _features(self) -> tuple[Tensor, Tensor, Tensor]:
        """Bottleneck features under the present masks on the device, with targets and biases on the CPU.

        Samples come in the data set's order where it is known, in the loader's otherwise. As long as no mask flips,
        they are computed once.
        """
        state = self._closed().cpu()
        if (
            self.features_at is not None
            and self.config.batchnorm == "frozen"
            and torch.equal(self.features_at[0], state)
        ):
            return self.features_at[1]
        features, targets, biases = [], [], []
        loader = self.loader
        with torch.no_grad():
            if isinstance(loader, BatchLoader):
                rank, processes = world()
                numbers = torch.arange(len(loader.data))[rank::processes].split(loader.batch_size)
                features = [self._bottleneck(inputs) for _, inputs in self._ready(numbers)]
                rows = torch.cat(numbers).to(self.device)
                every, rows = gathered(torch.cat(features)), gathered(rows)
                found = (every[rows.argsort()], loader.data.target.cpu(), loader.data.bias.cpu())
            else:
                for batch in map(as_batch, self._pass()):
                    features.append(self._bottleneck(self.inputs(batch)))
                    targets.append(batch.target.to(self.device))
                    biases.append(batch.bias.to(self.device))
                if not features:
                    raise DataError(_EXHAUSTED)
                parts = [gathered(torch.cat(part)) for part in (features, targets, biases)]
                found = (parts[0], parts[1].cpu(), parts[2].cpu())
        if found[0].numel() * found[0].element_size() <= self.config.cache_bytes:
            self.features_at = (state, found)
        return found

    def _bottleneck(self, inputs: _Inputs) -> Tensor:
        return self.forward(self.gates(), *inputs)[1]


def _digest(labels: Tensor, in_order: bool) -> list[Any]:
    """What tells label sets (N, columns) apart: a sum that knows the order, or the counts of distinct rows."""
    if in_order:
        return [len(labels), (torch.arange(1, len(labels) + 1) @ labels.cpu()).tolist()]
    rows, counts = labels.unique(dim=0, return_counts=True)
    return [rows.tolist(), counts.tolist()]

"""Algorithm 1 of BISE: learn masks on frozen weights against an auxiliary head that reads the bias."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..artifacts import GateSite, MaskSet
from ..config import SearchConfig
from ..data.batch import Loader, as_batch
from ..errors import BiseError, DataError
from ..evaluation import Evaluation, SubgroupAccuracy, evaluate
from ..files import atomic_path
from ..gates import CapturedInputs, GatedModel, LearnedGate, gate_sites, head_name
from ..subgroups import aligned_values, is_aligned
from ..tracing import logits_of, trace
from .heads import BiasHeads, head_loss, train_heads
from .objective import bise_objective
from .schedule import temperatures
from .weights import SampleWeights, sample_weights


@dataclass(frozen=True)
class EpochRecord:
    """One mask epoch; losses are means over its batches.

    Attributes:
        epoch: from 1.
        temperature: tau during the epoch.
        objective: J (Eq. 5).
        cross_entropy: its reweighted cross-entropy.
        mutual_information: its mutual information, summed over the biases.
        silent_share: share of (batch, bias) pairs with at most one conflicting sample, where the information is 0.
        head_cross_entropy: loss of the auxiliary heads, summed over the biases.
        mask_flips: channels that opened or closed during the epoch.
        closed: closed channels at its end.
        validation: accuracies of the masked network at its end; None without validation data.
    """

    epoch: int
    temperature: float
    objective: float
    cross_entropy: float
    mutual_information: float
    silent_share: float
    head_cross_entropy: float
    mask_flips: int
    closed: int
    validation: Evaluation | None


@dataclass(frozen=True)
class SearchResult:
    """What the search found.

    Attributes:
        best: masks of the epoch with the highest unbiased accuracy on the validation data, the later one of equals;
            the last masks without validation data.
        last: masks after the last epoch.
        best_epoch: the epoch of ``best``.
        history: one record per epoch.
        aligned: the bias value each class is aligned with, shape (classes, K).
        num_conflicting: bias-conflicting training samples, per bias.
    """

    best: MaskSet
    last: MaskSet
    best_epoch: int
    history: tuple[EpochRecord, ...]
    aligned: Tensor
    num_conflicting: tuple[int, ...]


def search(
    model: nn.Module,
    train_loader: Loader,
    config: SearchConfig | None = None,
    val_loader: Loader | None = None,
    *,
    on_epoch: Callable[[EpochRecord, int], None] | None = None,
    state_path: Path | None = None,
) -> SearchResult:
    """Run BISE (Algorithm 1) on a trained network; it stays as it is, on its device and in its precision.

    Args:
        model: the vanilla-trained classifier.
        train_loader: the biased training set: batches with fields ``input``, ``target`` (N,) and ``bias`` (N,) or
            (N, K). It is iterated once per epoch, and once before each training of the heads. A method
            ``set_epoch(n)``, if it has one, is called before each pass with the number of the pass.
        config: hyper-parameters; the paper's by default.
        val_loader: data to select the best epoch on, with the same fields.
        on_epoch: called with each epoch's record and the number of epochs.
        state_path: file to keep the state in after each epoch; an existing one of the same search is resumed.

    Raises:
        DataError: no bias-conflicting sample, or labels that do not fit the network.
        ModelError: the network has nothing to gate.
    """
    run = _Run(model, train_loader, config or SearchConfig())
    if state_path is not None:
        run.load(state_path)
    config = run.config
    schedule = temperatures(config.anneal_every, config.anneal_factor, config.min_temperature)
    if not run.heads_trained:
        run.train_heads()  # line 4
    for epoch, temperature in enumerate(schedule, start=1):  # lines 5 to 15
        if epoch <= len(run.history):
            continue
        run.gated.set_temperature(temperature)
        record = run.mask_epoch(epoch, temperature, val_loader)  # lines 7 to 10
        # Line 13; after the last epoch it could not change the masks any more.
        if epoch % config.anneal_every == 0 and epoch < len(schedule):
            run.train_heads()
        if state_path is not None:
            run.save(state_path)
        if on_epoch is not None:
            on_epoch(record, len(schedule))
    last = (len(schedule), run.gated.logits())  # line 16
    best = run.best if val_loader is not None and run.best is not None else last
    return SearchResult(
        best=run.mask_set(*best),
        last=run.mask_set(*last),
        best_epoch=best[0],
        history=tuple(run.history),
        aligned=run.aligned.cpu(),
        num_conflicting=run.num_conflicting,
    )


class _Gated(GatedModel):
    """A gated model under search, with the logits of its gates at hand."""

    def __init__(self, model: nn.Module, sites: list[GateSite], dtype: torch.dtype, initial_logit: float) -> None:
        learned = [LearnedGate(site.num_channels, dtype, initial_logit) for site in sites]
        super().__init__(model, sites, learned)
        self.learned = learned

    def set_temperature(self, temperature: float) -> None:
        for gate in self.learned:
            gate.temperature = temperature

    def logits(self) -> dict[str, Tensor]:
        return {
            site.name: gate.logits.detach().cpu().clone() for site, gate in zip(self.sites, self.learned, strict=True)
        }


class _Run:
    """The state of one search: masks, heads, their optimisers, and what has been recorded."""

    def __init__(self, model: nn.Module, train_loader: Loader, config: SearchConfig) -> None:
        self.config, self.loader = config, train_loader
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        first = next(iter(train_loader), None)
        if first is None:
            raise DataError("the training loader is empty")
        example = as_batch(first).input[:2].to(self.device)
        frozen = copy.deepcopy(model).eval().requires_grad_(False)
        self.head_layer = head_name(frozen, trace(frozen, example))
        sites = gate_sites(frozen, example, config.placement)
        self.gated = _Gated(frozen, sites, self.dtype, config.initial_logit).to(self.device)  # lines 1 and 2
        self.generator = torch.Generator().manual_seed(config.seed)
        self.passes = 0
        self.batch_size = len(as_batch(first).input)
        self.history: list[EpochRecord] = []
        self.best: tuple[int, dict[str, Tensor]] | None = None
        self.heads_trained = False
        features, target, bias = self._features()
        self._prepare_labels(features, target, bias)

    def _prepare_labels(self, features: Tensor, target: Tensor, bias: Tensor) -> None:
        config = self.config
        num_classes = self.gated.model.get_submodule(self.head_layer).out_features
        if int(target.max()) >= int(num_classes) or min(int(target.min()), int(bias.min())) < 0:  # type: ignore[arg-type]
            raise DataError(
                f"labels run from {int(target.min())} to {int(target.max())}, but the model has {num_classes} classes; "
                "labels must lie in [0, classes)"
            )
        self.num_classes = int(num_classes)  # type: ignore[arg-type]
        self.aligned = aligned_values(target, bias, self.num_classes)
        conflicting = (~is_aligned(target, bias, self.aligned)).sum(0)
        self.num_conflicting = tuple(conflicting.tolist())
        places = torch.arange(1, len(target) + 1)
        self.label_digest = (len(target), int(places @ target), [int(places @ column) for column in bias.unbind(1)])
        if not min(self.num_conflicting):
            raise DataError(
                f"no bias-conflicting sample among {len(target)} for bias {self.num_conflicting.index(0)}: "
                "the label and the bias cannot be told apart, so there is nothing to learn masks from"
            )
        weights = sample_weights(target, bias, self.num_classes, self.aligned, config.weighting, config.rho)
        self.weights: SampleWeights = weights.to(self.device, self.dtype)
        self.aligned = self.aligned.to(self.device)
        num_bias_classes = [max(2, int(column.max()) + 1) for column in bias.unbind(1)]
        self.heads = BiasHeads(features.shape[1], num_bias_classes, self.generator, self.dtype).to(
            self.device
        )  # line 3
        self.mask_optimizer = torch.optim.SGD(
            [gate.logits for gate in self.gated.learned],
            lr=config.mask_lr,
            momentum=config.mask_momentum,
            weight_decay=config.mask_weight_decay,
        )
        self.head_optimizer = torch.optim.SGD(
            self.heads.parameters(),
            lr=config.head_lr,
            momentum=config.head_momentum,
            weight_decay=config.head_weight_decay,
        )

    def train_heads(self) -> None:
        """Train the heads for E epochs on the masked network's features, computed once: nothing else moves."""
        if self.config.head_epochs:
            features, _, bias = self._features()
            train_heads(
                self.heads,
                self.head_optimizer,
                features,
                bias.to(self.device),
                epochs=self.config.head_epochs,
                batch_size=self.batch_size,
                generator=self.generator,
            )
        self.heads_trained = True

    def mask_epoch(self, epoch: int, temperature: float, val_loader: Loader | None) -> EpochRecord:
        """Lines 7 to 10: one pass over the training set; per batch a step of the masks, then one of the heads."""
        before = self.gated.logits()
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        batches, silent = 0, torch.zeros((), dtype=torch.long, device=self.device)
        with CapturedInputs(self.gated.model, self.head_layer) as bottleneck:
            for raw in self._epoch():
                batch = as_batch(raw).to(self.device)
                logits = logits_of(self.gated(batch.input))
                features = bottleneck.inputs.pop()
                aligned = is_aligned(batch.target, batch.bias, self.aligned)
                terms = bise_objective(
                    logits,
                    batch.target,
                    self.weights(batch.target, batch.bias),
                    self.heads(features),
                    batch.bias,
                    aligned,
                    self.config.mi_weight,
                )
                self.mask_optimizer.zero_grad()
                terms.total.backward()
                self.head_optimizer.zero_grad()  # the information's gradient stops at the heads' weights
                auxiliary = head_loss(self.heads(features.detach()), batch.bias)
                auxiliary.backward()
                self.mask_optimizer.step()
                self.head_optimizer.step()
                sums += torch.stack([*terms[:3], auxiliary]).detach().double()
                silent = silent + (terms.num_conflicting <= 1).sum()
                batches += 1
        means = (sums / batches).tolist()
        if not all(abs(value) < float("inf") for value in means):
            raise BiseError(f"the loss is {means[0]} in epoch {epoch}: check the inputs for NaN, or lower mask_lr")
        after = self.gated.logits()
        validation = None if val_loader is None else evaluate(self.gated, val_loader, self.aligned.cpu())
        record = EpochRecord(
            epoch=epoch,
            temperature=temperature,
            objective=means[0],
            cross_entropy=means[1],
            mutual_information=means[2],
            silent_share=float(silent) / (batches * len(self.num_conflicting)),
            head_cross_entropy=means[3],
            mask_flips=sum(int(((before[name] < 0) != (after[name] < 0)).sum()) for name in after),
            closed=sum(int((logits < 0).sum()) for logits in after.values()),
            validation=validation,
        )
        if validation is not None:
            best = max((r.validation.unbiased_accuracy for r in self.history if r.validation), default=0.0)
            if validation.unbiased_accuracy >= best:
                self.best = (epoch, after)
        self.history.append(record)
        return record

    def mask_set(self, epoch: int, logits: dict[str, Tensor]) -> MaskSet:
        """The masks of an epoch."""
        return MaskSet(logits, {"placement": self.config.placement, "epoch": str(epoch)})

    def _epoch(self) -> Loader:
        set_epoch = getattr(self.loader, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(self.passes)
        self.passes += 1
        return self.loader

    def _features(self) -> tuple[Tensor, Tensor, Tensor]:
        """Bottleneck features under the present masks, with targets and biases on the CPU, in the loader's order."""
        features, targets, biases = [], [], []
        with torch.no_grad(), CapturedInputs(self.gated.model, self.head_layer) as bottleneck:
            for raw in self._epoch():
                batch = as_batch(raw)
                self.gated(batch.input.to(self.device))
                features.append(bottleneck.inputs.pop().flatten(1))
                targets.append(batch.target.cpu())
                biases.append(batch.bias.cpu())
        if not features:
            raise DataError("the training loader yields nothing on its second pass: give a loader, not an iterator")
        return torch.cat(features), torch.cat(targets), torch.cat(biases)

    # -- a stopped search resumes ------------------------------------------------------------------

    def fingerprint(self) -> str:
        """What must be equal for a saved state to belong to this search."""
        sites = [(site.name, site.num_channels) for site in self.gated.sites]
        weights = [float(parameter.double().sum()) for parameter in self.gated.model.parameters()]
        return repr((self.config, sites, self.batch_size, self.label_digest, weights))

    def save(self, path: Path) -> None:
        """Keep the state after an epoch."""
        state = {
            "fingerprint": self.fingerprint(),
            "logits": self.gated.logits(),
            "mask_optimizer": self.mask_optimizer.state_dict(),
            "heads": self.heads.state_dict(),
            "head_optimizer": self.head_optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "passes": self.passes,
            "best": self.best,
            "history": [dataclasses.asdict(record) for record in self.history],
        }
        with atomic_path(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Take up a saved state, if there is one and it belongs to this search."""
        if not path.is_file():
            return
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise BiseError(f"{path} is no readable search state; delete it to start the search anew") from error
        if state["fingerprint"] != self.fingerprint():
            raise BiseError(
                f"{path} belongs to a search with other settings, data or weights; repeat those, "
                "or delete the file to start anew"
            )
        with torch.no_grad():
            for site, gate in zip(self.gated.sites, self.gated.learned, strict=True):
                gate.logits.copy_(state["logits"][site.name])
        self.mask_optimizer.load_state_dict(state["mask_optimizer"])
        self.heads.load_state_dict(state["heads"])
        self.head_optimizer.load_state_dict(state["head_optimizer"])
        self.generator.set_state(state["generator"])
        self.passes = state["passes"]
        self.best = state["best"]
        self.history = [_record(values) for values in state["history"]]
        self.heads_trained = True


def _record(values: dict[str, Any]) -> EpochRecord:
    validation = values["validation"]
    if validation is not None:
        subgroups = tuple(SubgroupAccuracy(**subgroup) for subgroup in validation["subgroups"])
        values = {**values, "validation": Evaluation(**{**validation, "subgroups": subgroups})}
    return EpochRecord(**values)

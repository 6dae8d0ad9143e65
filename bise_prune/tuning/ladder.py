"""The ladder: what a network is worth if a little more of it may change, from nothing to its last layer.

Each rung may change what the rungs below it may:

* *none*: nothing;
* *shift*: one offset per class on the logits (:mod:`.shift`);
* *norms*: the norm layers: statistics of batch norms, weights and additive biases (:mod:`.norms`);
* *head*: the weights of the last layer (:func:`bise_prune.mask_search.refitted.refitted_head`).

What a rung may change is fitted to balanced samples, and whether it is changed is decided by other samples: the best
candidate of a rung is taken if it is better than the rung below by more than one standard error of the difference. So a
rung can be the same as the one below it. A last layer that will be fitted to the samples that decide as well is judged
on each half of them by a fit to all others, since it gains much by more samples.

Training samples alone say little, since a network may know them by heart. So without other samples, but with bias
labels, norm layers and then the last layer behind them are changed unless that is worse on the samples that they are
fitted to. The penalty of the last layer becomes weaker if fits to either half of these are better on the other half.
"""

# Shape suffixes: N samples, D features, C classes, G groups.

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..data import BatchLoader, BiasedDataset
from ..digests import state_tensors
from ..gates.bottleneck import head_name
from ..mask_search.refitted import refitted_head
from ..metrics.accuracy import Evaluation, score, subgroup_members
from ..tracing import trace
from .features import bottleneck_features
from .norms import batch_norms, reestimated, trained
from .shift import Figure, fitted_offsets, mean_of_groups, worst_of_groups

MOST_FITTED = 5_000  # samples that a rung is fitted to, at most, as many of each subgroup as there are or as fit in
BALANCED = 1_000  # samples for the statistics of batch norms
_BATCH = 100
PENALTIES = (1.0, 0.1, 0.01, 0.001)  # of a refitted head, from which the other samples choose
WEAKER_PENALTIES = (1e-4, 1e-5, 1e-6)  # further ones if there are no other samples


class Rung(StrEnum):
    """What may change in a network; each rung may change what the ones before it may."""

    NONE = "none"
    SHIFT = "shift"
    NORMS = "norms"
    HEAD = "head"


class Norms(StrEnum):
    """What is changed in the norm layers."""

    OWN = "own"  # nothing
    BEFORE = "before"  # they are those that were trained before the channels were removed
    STATISTICS = "statistics"  # those of batch norms are estimated again
    TRAINED = "trained"  # so they are, and then weights and additive biases are trained


@dataclass(frozen=True)
class Step:
    """What a rung changes.

    Attributes:
        head: weights of the last layer with its additive bias in the last column, shape (C, D + 1).
        part: what of the head differs: Rung.SHIFT for offsets, Rung.HEAD for all of it, Rung.NONE for nothing.
        norms: what of the norm layers differs.
        penalty: penalty that a refitted head was fitted with.
    """

    head: Tensor
    part: Rung = Rung.NONE
    norms: Norms = Norms.OWN
    penalty: float = 0.0

    @property
    def changes(self) -> tuple[Rung, ...]:
        """The kinds of changes that are made."""
        norms = () if self.norms is Norms.OWN else (Rung.NORMS,)
        return norms if self.part is Rung.NONE else (*norms, self.part)


@dataclass(frozen=True)
class _Seen:
    """What the head of a network reads of some samples.

    Attributes:
        features: input of the head, shape (N, D).
        target: class labels, shape (N,).
        bias: bias labels, shape (N, K), on the CPU.
        groups: members of the groups whose accuracies the rule looks at, bool of shape (G, N).
        subgroups: members of the subgroups, bool of shape (number of subgroups, N).
    """

    features: Tensor
    target: Tensor
    bias: Tensor
    groups: Tensor
    subgroups: Tensor

    def hits(self, step: Step) -> Tensor:
        """Which samples are classified correctly after a step, shape (N,); those without finite logits are not."""
        logits = _logits(step.head, self.features)
        return (logits.argmax(1) == self.target) & logits.isfinite().all(1)


class Ladder:
    """The rungs of a network.

    Args:
        model: network that ends in a linear layer; never changed.
        fit: samples that changes are fitted to, with equal weight for each subgroup.
        choose: samples that decide which changes are made; None = those that are fitted to.
        aligned: bias value that each class is aligned with, shape (classes, K).
        rule: name of the selection rule, whose figure the changes are to raise; see :class:`bise_prune.SearchConfig`.
            With "last", that is the unbiased accuracy.
        again: samples to which the changes that were decided on, but for statistics, are fitted once more; None = the
            first fit stays.
        start: the same network with norm layers that were trained before its channels were removed, from which their
            training goes on; None to start from those of ``model``.

    Attributes:
        models: the network with each kind of norm layers.
        layers: name of its last layer, with each kind of norm layers.
        steps: what each rung changes.

    Raises:
        ModelError: the network does not end in a linear layer.
    """

    def __init__(
        self,
        model: nn.Module,
        fit: BiasedDataset,
        choose: BiasedDataset | None,
        aligned: Tensor,
        rule: str = "best",
        again: BiasedDataset | None = None,
        *,
        start: nn.Module | None = None,
    ) -> None:
        self.aligned, self.rule = aligned, rule
        self.device = next(model.parameters()).device
        example = fit.batch(torch.arange(2)).to(self.device).input
        fit = self._some_of(fit)
        self.models = {Norms.OWN: model}
        if start is not None:
            self.models[Norms.BEFORE] = start
        names = {norms: head_name(each, trace(each, example)) for norms, each in self.models.items()}
        *_, (last, start) = self.models.items()  # the kinds to come are made of this one
        self.layers = {norms: names.get(norms, names[last]) for norms in Norms}
        if batch_norms(start):
            drawn = BatchLoader(fit.subset(self._drawn(fit, BALANCED)), _BATCH)
            self.models[Norms.STATISTICS] = reestimated(start, drawn)
        self._train_norms(fit)
        fitted = self._all_seen(fit)
        chosen = None if choose is None else self._all_seen(choose)
        others = fitted if again is not None and choose is not None else None
        present = self._unchanged(Norms.OWN)
        decided = {Rung.NONE: present}
        for rung in (Rung.SHIFT, Rung.NORMS, Rung.HEAD):
            decided[rung] = present = self._decided(rung, present, fitted, chosen, others)
        if again is not None:
            again, kinds = self._some_of(again), {step.norms for step in decided.values()}
            if Norms.TRAINED in kinds:
                self._train_norms(again)
            more = self._all_seen(again, kinds)
            decided = {rung: self._fitted(step, more) for rung, step in decided.items()}
        self.steps = decided

    def model(self, rung: Rung) -> nn.Module:
        """A copy of the network with the changes of a rung."""
        step = self.steps[rung]
        copied = copy.deepcopy(self.models[step.norms])
        if step.part is not Rung.NONE:
            layer = self._layer_of(copied, step.norms)
            with torch.no_grad():
                layer.weight.copy_(step.head[:, :-1])
                layer.bias.copy_(step.head[:, -1])
        return copied

    def evaluations(self, data: BiasedDataset, aligned: Tensor) -> dict[Rung, Evaluation]:
        """Accuracies at each rung.

        Args:
            data: samples to judge on.
            aligned: bias value that each class is aligned with there, shape (classes, K).
        """
        features = {norms: self._features(norms, data) for norms in {step.norms for step in self.steps.values()}}
        predicted = {
            rung: _logits(step.head, features[step.norms]).argmax(1).cpu() for rung, step in self.steps.items()
        }
        labels = (data.target.cpu(), data.bias.cpu())
        return {rung: score(classes, *labels, aligned) for rung, classes in predicted.items()}

    def num_changed(self, rung: Rung) -> int:
        """Number of the network's numbers that a rung changes: weights, and statistics of batch norms."""
        before, changed = _numbers(self.models[Norms.OWN]), 0
        for name, tensor in _numbers(self.model(rung)).items():
            is_there = name in before and before[name].shape == tensor.shape
            changed += int((before[name] != tensor).sum()) if is_there else tensor.numel()
        return changed

    def changed_norms(self, rung: Rung) -> dict[str, Tensor]:
        """The tensors of norm layers that a rung changes, by their name in the network's state dict, on the CPU."""
        own, present = (state_tensors(self.models[norms]) for norms in (Norms.OWN, self.steps[rung].norms))
        return {name: tensor.cpu() for name, tensor in present.items() if not torch.equal(tensor, own[name])}

    # -- candidates ------------------------------------------------------------------------------

    def _candidates(self, rung: Rung, fitted: dict[Norms, _Seen], is_alone: bool) -> list[Step]:
        """The changes that a rung can make beyond those of the rungs below it.

        Args:
            rung: the rung.
            fitted: the samples that changes are fitted to, behind each kind of norm layers that may be changed further.
            is_alone: whether there are no other samples to decide.
        """
        found: list[Step] = []
        for norms in fitted:
            plain, is_own = self._unchanged(norms), norms is Norms.OWN
            if rung is Rung.NORMS and not is_own:
                found.append(plain)
            if self._layer_of(self.models[norms], norms).bias is None:  # there is no place for offsets
                continue
            if rung is (Rung.SHIFT if is_own else Rung.NORMS):
                found.append(self._fitted(replace(plain, part=Rung.SHIFT), fitted))
            if rung is Rung.HEAD:
                heads = [replace(plain, part=rung, penalty=penalty) for penalty in PENALTIES]
                heads += self._weaker(heads[-1], fitted[norms]) if is_alone else []
                found += [self._fitted(step, fitted) for step in heads]
        return found

    def _weaker(self, step: Step, seen: _Seen) -> list[Step]:
        """A head with a weaker penalty, if fits to either half of the samples are better on the other half."""
        best = step
        before = highest = self._hits(step, seen, {})
        for penalty in WEAKER_PENALTIES:
            weaker = replace(step, penalty=penalty)
            hits = self._hits(weaker, seen, {})
            if self._figure(_accuracies(hits, seen.groups)) <= self._figure(_accuracies(highest, seen.groups)):
                break
            best, highest = weaker, hits
        return [best] if self._is_better(before, highest, seen.groups) else []

    def _fitted(self, step: Step, samples: dict[Norms, _Seen]) -> Step:
        """A step whose offsets, or whose head, are fitted to samples; the same step if no fit is finite."""
        seen = samples[step.norms]
        head = self._unchanged(step.norms).head.clone()
        if step.part is Rung.SHIFT:
            logits = _logits(head, seen.features)
            head[:, -1] += fitted_offsets(logits, seen.target, seen.groups, self._figure).to(head)
        elif step.part is Rung.HEAD:
            weights = _weights(seen.subgroups)
            head = refitted_head(seen.features, seen.target, len(head), weights, step.penalty).to(head)
        return replace(step, head=head) if head.isfinite().all() else step

    def _train_norms(self, data: BiasedDataset) -> None:
        """Train the norm layers on samples with equal weight for each subgroup, if they can be trained."""
        *_, start = (model for norms, model in self.models.items() if norms is not Norms.TRAINED)
        found = trained(start, data, _weights(self._members(data.target.cpu(), data.bias.cpu())))
        if found is not None:
            self.models[Norms.TRAINED] = found

    # -- the decision ----------------------------------------------------------------------------

    def _decided(
        self, rung: Rung, below: Step, fitted: dict[Norms, _Seen], chosen: dict[Norms, _Seen] | None,
        others: dict[Norms, _Seen] | None,
    ) -> Step:  # fmt: skip
        """What a rung changes: its best candidate if that is taken, otherwise what the rung below it changes.

        Args:
            rung: the rung.
            below: what the rung below it changes.
            fitted: the samples that changes are fitted to, behind each kind of norm layers.
            chosen: those that decide; None if there are no others.
            others: as of :meth:`_hits`.
        """
        is_alone, judging = chosen is None, fitted if chosen is None else chosen
        groups = judging[below.norms].groups
        behind = {below.norms: fitted[below.norms]} if is_alone and rung is Rung.HEAD else fitted
        steps = self._candidates(rung, behind, is_alone)
        if not steps:
            return below
        before, *after = (self._hits(step, judging[step.norms], others) for step in (below, *steps))
        figures = [float(self._figure(_accuracies(hits, groups))) for hits in after]
        # Of equal ones, the last and most thorough change if all may be known by heart, otherwise the first.
        best = max(range(len(steps))[:: -1 if is_alone else 1], key=figures.__getitem__)
        if is_alone and rung is not Rung.SHIFT and fitted[below.norms].bias.shape[1]:
            return below if self._is_better(after[best], before, groups) else steps[best]
        return steps[best] if self._is_better(before, after[best], groups) else below

    @property
    def _figure(self) -> Figure:
        """The figure of the groups' accuracies that the rule looks at."""
        return worst_of_groups if self.rule in ("worst-group", "worst-class") else mean_of_groups

    def _hits(self, step: Step, seen: _Seen, others: dict[Norms, _Seen] | None) -> Tensor:
        """Which of the samples that decide are classified correctly after a step, shape (N,).

        Args:
            step: the step.
            seen: the samples that decide.
            others: those that a head is fitted to beside the samples that decide, if any; None if it is not fitted to
                the latter.
        """
        hits = seen.hits(step)
        if step.part is Rung.HEAD and others is not None:
            first = _every_other(seen.subgroups)
            for half in (first, ~first):
                fitted = self._fitted(step, {step.norms: self._joined(others.get(step.norms), seen, ~half)})
                hits[half] = seen.hits(fitted)[half]
        return hits

    def _is_better(self, before: Tensor, after: Tensor, groups: Tensor) -> bool:
        """Whether the figure rises by more than one standard error of its change.

        Args:
            before: which samples were classified correctly, shape (N,).
            after: which samples are classified correctly now, shape (N,).
            groups: members of each group, shape (G, N).
        """
        accuracies = [_accuracies(hits, groups) for hits in (before, after)]
        gain = float(self._figure(accuracies[1]) - self._figure(accuracies[0]))
        sizes = groups.sum(1) + 2  # two more samples, as for the interval of a paired change (Agresti and Min, 2005)
        moved = (groups & (before != after)).sum(1) + 1
        change = ((groups & after).sum(1) - (groups & before).sum(1)) / sizes
        variance = (moved / sizes - change.square()) / sizes
        by_worst = self._figure is worst_of_groups
        noise = variance[accuracies[0].argmin()] if by_worst else variance.sum() / len(variance) ** 2
        return gain > float(noise.sqrt())

    # -- samples ---------------------------------------------------------------------------------

    def _all_seen(self, data: BiasedDataset, kinds: Collection[Norms] | None = None) -> dict[Norms, _Seen]:
        """What the head reads of samples behind each kind of norm layers, or some of them."""
        target, device = data.target.cpu(), self.device
        subgroups = self._members(target, data.bias.cpu())
        groups = subgroups
        if self.rule == "accuracy":
            groups = torch.ones(1, len(target), dtype=torch.bool)
        elif self.rule == "worst-class":
            groups = self._members(target, data.bias[:, :0].cpu())
        labels = (target.to(device), data.bias.cpu(), groups.to(device), subgroups.to(device))
        return {norms: _Seen(self._features(norms, data), *labels) for norms in kinds or self.models}

    def _joined(self, seen: _Seen | None, more: _Seen, which: Tensor) -> _Seen:
        """Some samples, and those among others that ``which`` (N,) is True for, or a part of them if they are many."""
        rows = which.nonzero().flatten()
        rows = rows[:: max(1, -(-len(rows) // MOST_FITTED))]
        features, target, bias = more.features[rows], more.target[rows], more.bias[rows.cpu()]
        if seen is not None:
            features, target = torch.cat([seen.features, features]), torch.cat([seen.target, target])
            bias = torch.cat([seen.bias, bias])
        subgroups = self._members(target.cpu(), bias).to(target.device)
        return _Seen(features, target, bias, subgroups, subgroups)

    def _members(self, target: Tensor, bias: Tensor) -> Tensor:
        """The members of each subgroup that has some, bool of shape (G, N)."""
        return torch.stack([found for _, found in subgroup_members(target, bias, self.aligned) if found.any()])

    def _features(self, norms: Norms, data: BiasedDataset) -> Tensor:
        """What the head reads of samples behind some kind of norm layers, shape (N, D)."""
        return bottleneck_features(self.models[norms], [self.layers[norms]], data)

    def _unchanged(self, norms: Norms) -> Step:
        """The step that changes nothing but to some kind of norm layers."""
        layer = self._layer_of(self.models[norms], norms)
        bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
        return Step(torch.cat([layer.weight, bias[:, None]], 1).detach(), norms=norms)

    def _layer_of(self, model: nn.Module, norms: Norms) -> nn.Linear:
        """The head of a network of this ladder with some kind of norm layers."""
        layer = model.get_submodule(self.layers[norms])
        assert isinstance(layer, nn.Linear)
        return layer

    def _some_of(self, data: BiasedDataset) -> BiasedDataset:
        """The data, or a part of them if there are many, of each subgroup as many samples as there are or fit in."""
        if len(data) <= MOST_FITTED:
            return data
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        members = self._members(data.target.cpu(), data.bias.cpu())[:, order]
        return data.subset(order[_places(members).argsort(stable=True)[:MOST_FITTED]].sort().values)

    def _drawn(self, data: BiasedDataset, count: int) -> Tensor:
        """Numbers of samples that are drawn with equal chance for each subgroup, shape (count,)."""
        weights = _weights(self._members(data.target.cpu(), data.bias.cpu()))
        return torch.multinomial(weights, count, replacement=True, generator=torch.Generator().manual_seed(0))


def _numbers(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of numbers with a fraction in a network, each once: weights, and statistics of batch norms."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach() for name, tensor in named.items() if tensor.is_floating_point()}


def _accuracies(hits: Tensor, groups: Tensor) -> Tensor:
    """Accuracy of each group, shape (G,), float64."""
    return (groups & hits).sum(1).double() / groups.sum(1)


def _every_other(groups: Tensor) -> Tensor:
    """Which samples are the first, third, ... of their group, bool of shape (N,), for groups (G, N) without overlap."""
    return (_places(groups) % 2).bool()


def _places(groups: Tensor) -> Tensor:
    """Place of each sample in its group, from 1, shape (N,), for groups (G, N) without overlap."""
    return (groups.long().cumsum(1) * groups).sum(0)


def _weights(groups: Tensor) -> Tensor:
    """Weights of samples by which each group has the same weight, shape (N,), float64."""
    return (groups / groups.sum(1, keepdim=True).double()).sum(0)


def _logits(head: Tensor, features: Tensor) -> Tensor:
    """Logits of a head with its additive bias in the last column, shape (N, C)."""
    return linear(features, head[:, :-1], head[:, -1])

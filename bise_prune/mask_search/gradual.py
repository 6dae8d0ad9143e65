"""The gradual search: a network that starts open is closed step by step, and stays alive on the way.

It learns masks for the same two aims as the paper's search (:mod:`.algorithm`), and differs from it in how they come
down:

* **Open at the start.** The first round closes nothing, so that it ends with the whole network, which is a candidate.
* **What a channel is worth.** The straight-through gradient dJ/dgate says what an infinitely small change of a gate
  does. Closing is not small: the objective J rises by about -g + F/2, where g is the gradient and F its curvature; so
  much is an open channel worth. A closed one is worth by how much J falls if it opens, -g - F/2. The curvature of a
  cross-entropy is about the mean square of the samples' gradients (Fisher information), which is read from how much
  the gradient varies between batches.
* **Steps of one size.** A mask logit moves with what its channel is worth, in units of the gradient's spread and by no
  more than one. So a channel closes, or opens, after some steps that agree.
* **A budget by construction.** A share of the network's cost is allowed: all of it in the first round, then less and
  less, down to the budget. Whenever there is too little room, the channels that are worth least for what they cost are
  closed (:mod:`.projection`). Where widths are rounded up in what is delivered, they are so at the end of each round
  from there on, and in the trades; on the way, closing one channel of a layer would save nothing.
* **Balanced batches.** Samples are drawn by their weight r (Eq. 4) instead of being weighted by it, so that a step
  does not hang on the one rare sample of its batch. Aligned and conflicting samples make up half of the draws each:
  with many classes, r alone would leave aligned samples next to nothing.
* **Settling.** In the last rounds the search goes on from the best masks so far, ranked by worth per cost. The share is
  held, at the budget or, without one, at that of these masks, and the steps become smaller at the end.
* **Trades.** What is estimated up to here is measured at the end: from the best masks so far, channels open and others
  close in their place if that lowers the loss (:mod:`.trades`).
* **A second start.** If the last layer is refitted, masks are judged by what a refitted one reads, but the steps go by
  the network as it is; where that is at chance, they teach nothing. So halfway through the trades, an open network is
  closed by the worth of channels under refitted heads alone, and the trades go on from there if its loss is lower.
* **A way back.** If the accuracy falls in a round by more than half of the way to chance, the masks go back to those
  before the round, and the next one closes less.

The schedule is counted in steps, in rounds of equal length, and then in rounds of trades; each round is recorded as an
epoch.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..config import SearchConfig
from ..distributed import gathered, summed, world
from ..errors import DataError
from . import state_file
from .assembly import Search
from .judge import Judge
from .objective import objective_of, silent_share
from .projection import Projection
from .recording import record_epoch, result_of
from .refitted import balanced_sample, refitted_head, sample_size
from .result import EpochRecord, SearchResult
from .selection import LAST
from .state import EpochTally, GradualState
from .trades import Trades
from .training_data import EXHAUSTED, Labels, Part
from .worth import worth_of

ROUNDS = 12  # of steps
TRADING = 4  # rounds of trades after them
_SECOND_START = ROUNDS + TRADING // 2 + 1  # round of trades at which another start is tried if the head is refitted
_STEPS = 240
_FREE_SHARE = 0.3  # share of the cost at which a search without a budget ends
_WALK = 7  # round in which the share has come down, or a later one for small budgets
_MOST_CLOSED = 0.1  # share of the cost that goes in a round on the way to a small budget
_SETTLING = 2  # rounds at the end in which the steps become smaller
_MEAN, _SQUARE = 0.9, 0.95  # memory of the running means of the gradient and of its square, from step to step
_LR = 0.05  # largest step of a mask logit
_START, _SHUT = 0.67, -0.1  # mask logits of open channels at the start, and of those for which there is no room
_RANGE = 1.0  # largest mask logit, and lowest negative one
EVERY = 4  # steps between two looks at the room
_TOLD_ITERATIONS = 20  # of the fit of a head whose accuracy is only told
_NEAR = 0.05  # an accuracy that exceeds chance by at most this share of it counts as chance


def search_gradually(
    found: Search,
    on_epoch: Callable[[EpochRecord, int], None] | None,
    state_path: Path | None,
    interrupted: Callable[[], bool] | None,
) -> SearchResult:
    """Run the gradual search on the parts of a search; see :func:`bise_prune.search` for the other arguments."""
    run = Rounds(found)
    if state_path is not None:
        state_file.load(found, state_path)
    history = found.state.history

    def after_step() -> None:
        """Save the state and raise ``SearchInterrupted`` if the caller has asked the search to stop."""
        state_file.stop_if_asked(found, state_path, interrupted)

    while len(history) < ROUNDS + TRADING:
        record = run.round(len(history) + 1, after_step)
        if state_path is not None:
            state_file.save(found, state_path)
        if on_epoch is not None:
            on_epoch(record, ROUNDS + TRADING)
    return result_of(found, stopped_early=False)


def steps_per_round(config: SearchConfig) -> int:
    """Number of steps of a round.

    >>> steps_per_round(SearchConfig()), steps_per_round(SearchConfig(steps=61))
    (20, 6)
    """
    return -(-(config.steps or _STEPS) // ROUNDS)


class Rounds:
    """The rounds of a gradual search.

    Args:
        search: parts of the search; its state is a :class:`.state.GradualState`, its budget a :class:`.Projection`.
    """

    def __init__(self, search: Search) -> None:
        assert isinstance(search.state, GradualState) and isinstance(search.budget, Projection)
        self.search, self.state, self.projection = search, search.state, search.budget.by_channels()
        self.rounded = search.budget
        size = sample_size(search.config, len(search.labels.known.target))
        self.sample = balanced_sample(search.data, search.labels, search.state.position, search.state.generator, size)
        self.judge = Judge(search, self.sample)
        self.trades = Trades(search, search.budget, self.judge)
        self.batch_size = int(summed(torch.tensor(len(search.data.first.target), device=search.network.device)))
        self.per_round = steps_per_round(search.config)
        self.parts = self._parts_of(search.labels.known)
        self.weights = self._weights(search.labels.known)
        self._pass: Iterator[Part] | None = None  # what is left of a pass over a loader that is not in memory

    def _parts_of(self, known: Labels) -> tuple[float, float]:
        """Factors of the weights of aligned and of conflicting samples, by which each side has half of the weight."""
        if self.search.config.weighting == "none":
            return 1.0, 1.0
        weight, is_conflicting = known.weight.double(), known.conflicting.any(1)
        sums = [float(weight[side].sum()) for side in (~is_conflicting, is_conflicting)]
        aligned, conflicting = (len(weight) / (2 * total) if total else 0.0 for total in sums)
        return aligned, conflicting

    def _weights(self, labels: Labels) -> Tensor:
        """Weights of samples, shape (N,): r (Eq. 4) times the factor of their side; their mean over the set is 1."""
        aligned, conflicting = self.parts
        return labels.weight * torch.where(labels.conflicting.any(1), conflicting, aligned).to(labels.weight)

    @property
    def walk(self) -> int:
        """Number of the round in which the share has come down; in the rounds after it, it is held."""
        budget = self.search.config.budget
        return _WALK if budget is None else max(_WALK, 1 + math.ceil((1 - budget.share) / _MOST_CLOSED - 1e-9))

    def plan(self, number: int) -> None:
        """Set the shares at which a round starts and ends; after the way down, go back to the best masks.

        Args:
            number: number of the round, from 1.
        """
        state, budget, gates = self.state, self.search.config.budget, self.search.network.gates
        if number == 1:
            present = self.projection.cost(gates.values)
            state.shares = (present, present)
            state.drop = (present - _FREE_SHARE) / (_WALK - 1)
            logits = state.logits
            logits.copy_(torch.where(gates.closed, logits.clamp(min=-_RANGE), logits.clamp(_START, _RANGE)))
        elif number <= self.walk:
            start, left = state.shares[1], self.walk - number + 1
            end = max(_FREE_SHARE, start - state.drop) if budget is None else start + (budget.share - start) / left
            state.shares = (start, min(start, end))
        elif number == self.walk + 1:
            state.logits.copy_(self.best)
            held = self.projection.cost(gates.values) if budget is None else min(state.shares[1], budget.share)
            state.shares = (held, held)
            state.moments[0] = 0
        state.before = state.logits.clone()

    @property
    def best(self) -> Tensor:
        """Mask logits of the best masks so far, shape (M,)."""
        picks = self.state.picks
        return picks.get(self.search.rule, picks[LAST])[2]["logits"].to(self.state.logits)

    def share(self, step: int) -> float:
        """Share of the dense network's cost that is allowed at a step of the round, counted from 1."""
        start, end = self.state.shares
        return start + (end - start) * step / self.per_round

    def _rate(self, step: int) -> float:
        """Learning rate of a step, counted from 1: constant, and falling to 0 in the last rounds."""
        left = ROUNDS - (step - 1) / self.per_round
        return _LR * min(1.0, left / _SETTLING)

    def has_collapsed(self, record: EpochRecord) -> bool:
        """Whether the accuracy has fallen from that of the first round by more than half of the way to chance."""
        first, chance = self.state.history[0], 1 / self.search.network.num_classes
        whole, present = (
            r.training_accuracy if r.validation is None else r.validation.unbiased_accuracy for r in (first, record)
        )
        assert whole is not None and present is not None
        least = max(chance * (1 + _NEAR), (whole + chance) / 2)
        return present <= least < whole

    def back_out(self) -> None:
        """Go back to the masks before the round, and close less in the next one."""
        state = self.state
        state.logits.copy_(state.before)
        state.moments[0] = 0
        state.drop /= 2
        state.shares = (state.shares[0],) * 2

    def round(self, number: int, after_step: Callable[[], None]) -> EpochRecord:
        """Take the steps of a round and record it; if the network collapses, go back to the masks before it.

        Args:
            number: number of the round, from 1; from ``ROUNDS`` + 1 on, channels are traded.
            after_step: function called after each step, and after each trade that is tried.
        """
        if number > ROUNDS:
            return self._trading_round(number, after_step)
        state, gates = self.state, self.search.network.gates
        done = state.taken - self.per_round * (number - 1)
        if not done:  # otherwise the round was interrupted, at the latest after its last step
            state.tally = EpochTally(gates.closed)
            self.plan(number)
        if self.search.data.in_memory is not None:
            self._take_steps(self._drawn(number)[done:], after_step)
        else:
            self._take_steps_of_passes(self.per_round - done, after_step)
        budget = self.search.config.budget
        if budget is not None and number >= self.walk:
            state.logits[self.rounded.without_room(self.worth[0], gates.closed, budget.share)] = _SHUT
        state.tally.flipped |= gates.closed != state.tally.closed_before
        state.steps = self.per_round
        accuracies = self.accuracies(*self.outputs())
        may_go_back = budget is None or number != self.walk  # masks before that round do not meet the budget
        ranks = self.ranks(self.worth[0], gates.closed)
        with self.judge.applied():
            record = record_epoch(self.search, number, None, *accuracies, logits=ranks)
        if may_go_back and self.has_collapsed(record):
            record = dataclasses.replace(record, backed_out=True)
            state.history[-1] = record
            self.back_out()
        return record

    def _trading_round(self, number: int, after_trial: Callable[[], None]) -> EpochRecord:
        """Try some trades and record the round. The state changes at its end; a round that is interrupted is redone."""
        search, state, gates = self.search, self.state, self.search.network.gates
        budget = search.config.budget
        state.tally = EpochTally(gates.closed)
        start = (self.best >= 0).to(state.logits) if number == ROUNDS + 1 else gates.values.detach()
        generator = torch.Generator().manual_seed(search.config.seed * (ROUNDS + TRADING) + number)
        room = max(self.rounded.cost(start), 0.0 if budget is None else budget.share)
        if number == _SECOND_START and self.judge.refits:
            start = min(start, self.trades.way_down(room, after_trial), key=self.judge.loss)
        traded, worth = self.trades.round(start, room, generator, after_trial)
        state.logits.copy_(self.ranks(worth, traded == 0))
        state.tally.flipped |= gates.closed != state.tally.closed_before
        state.steps = 1
        logits, features = self.outputs()
        state.tally.sums += self._figures(logits, features)
        accuracies = self.accuracies(logits, features)
        with self.judge.applied():
            return record_epoch(search, number, None, *accuracies, is_traded=True)

    def _figures(self, logits: Tensor, features: Tensor) -> Tensor:
        """This process's shares of the figures in :data:`.state.SUMS` on the balanced sample."""
        search = self.search
        labels = [search.labels.of(part) for part in self.sample.parts]
        known = Labels(*(torch.cat(parts) for parts in zip(*labels, strict=True)))
        loss, read = cross_entropy(logits, known.target), search.state.heads(features)
        terms = objective_of(loss, len(logits), read, known.bias, known.conflicting, search.config.mi_weight)
        head_loss = sum(cross_entropy(bias, own) for bias, own in zip(read, known.bias.T, strict=True))
        head_loss = head_loss * len(logits) / terms.num_samples
        silent = silent_share(terms.num_conflicting, logits.dtype)
        return torch.stack([terms.total, terms.cross_entropy, terms.mutual_information, head_loss, silent])

    @property
    def worth(self) -> tuple[Tensor, Tensor]:
        """What each channel is worth by the running means, and the root of the mean square of the gradient, (M,)."""
        taken, closed = self.state.taken, self.search.network.gates.closed
        mean, square = self.state.moments[0] / (1 - _MEAN**taken), self.state.moments[1] / (1 - _SQUARE**taken)
        return worth_of(mean, square, closed, self.batch_size), square.sqrt() + torch.finfo(square.dtype).tiny

    @torch.no_grad()
    def ranks(self, worth: Tensor, closed: Tensor) -> Tensor:
        """Mask logits that rank the channels by what they are worth for their cost, evenly in [-1, 1], shape (M,).

        The logits of the search only tell how many steps agree. What is delivered is ranked again, by a target that is
        counted differently or where widths are rounded up.

        Args:
            worth: what each channel is worth, shape (M,).
            closed: which channels are closed, bool of shape (M,).
        """
        order = self.projection.per_cost(worth, closed).argsort(stable=True)
        ranks = torch.zeros_like(self.state.logits)
        for side, lowest in ((closed, -1.0), (~closed, 0.0)):
            numbers = order[side[order]]
            ranks[numbers] = lowest + torch.arange(len(numbers)).to(ranks) / max(1, len(numbers))
        return ranks

    @torch.no_grad()
    def outputs(self) -> tuple[Tensor, Tensor]:
        """Class logits (N, C) and bottleneck features (N, D) of this process's part of the balanced sample."""
        passes, gates = self.search.passes, self.search.network.gates.values
        seen = [passes.forward(gates, inputs) for _, inputs in passes.inputs(self.sample.batches)]
        logits, features = (torch.cat(parts) for parts in zip(*seen, strict=True))
        return logits, features

    def accuracies(self, logits: Tensor, features: Tensor) -> tuple[float, float]:
        """Accuracies on the balanced sample, of the network's head and of one that is refitted to the masks.

        Args:
            logits: class logits of this process's part, shape (N, C).
            features: its bottleneck features, shape (N, D).
        """
        target = gathered(torch.cat([self.search.labels.of(part).target for part in self.sample.parts]))
        logits, features = gathered(logits), gathered(features)
        head = refitted_head(features, target, self.search.network.num_classes, iterations=_TOLD_ITERATIONS)
        refitted = torch.addmm(head[:, -1], features, head[:, :-1].T)
        own, other = (float((read.argmax(1) == target).double().mean()) for read in (logits, refitted))
        return own, other

    def _drawn(self, number: int) -> list[Tensor]:
        """Numbers of the samples of each batch of a round, as far as this process has them."""
        generator = torch.Generator().manual_seed(self.search.config.seed * ROUNDS + number)
        rank, processes = world()
        count = self.per_round * self.batch_size
        rows = torch.multinomial(self.weights.cpu(), count, replacement=True, generator=generator)
        return [batch[rank::processes] for batch in rows.split(self.batch_size)]

    def _take_steps(self, parts: Sequence[Part] | Iterator[Part], after_step: Callable[[], None]) -> int:
        """Take a step on each batch, and return how many there were."""
        count = 0
        for part, inputs in self.search.passes.inputs(parts):
            self._step(part, inputs)
            count += 1
            after_step()
        return count

    def _take_steps_of_passes(self, count: int, after_step: Callable[[], None]) -> None:
        """Take steps on the next batches of a loader; a new pass over the training set begins where one ends."""
        position = self.state.position
        while count:
            is_new = self._pass is None
            if self._pass is None:
                self._pass = itertools.islice(self.search.data.next_pass(position), position.batches, None)
            taken = self._take_steps(itertools.islice(self._pass, count), after_step)
            count -= taken
            if count:
                if is_new and not position.batches:
                    raise DataError(EXHAUSTED)
                self._pass, position.batches = None, 0

    def _step(self, part: Part, inputs: object) -> None:
        """Take one step of the mask logits and one of the auxiliary heads."""
        search, state = self.search, self.state
        labels = search.labels.of(part)
        gates = search.network.gates.values.requires_grad_()
        logits, features = search.passes.forward(gates, inputs)
        loss = cross_entropy(logits, labels.target, reduction="none")
        if search.data.in_memory is None:  # its batches are not drawn by weight
            loss = loss * self._weights(labels)
        terms = objective_of(
            loss.mean(), len(loss), state.heads(features), labels.bias, labels.conflicting, search.config.mi_weight
        )
        head_loss = state.heads.step(features, labels.bias, terms.num_samples if world()[1] > 1 else None)
        terms.total.backward()
        assert gates.grad is not None
        slope = summed(gates.grad)
        self._descend(slope)
        silent = silent_share(terms.num_conflicting, logits.dtype)
        shares = [terms.total, terms.cross_entropy, terms.mutual_information, head_loss, silent]
        state.tally.note(slope[None], torch.stack(shares).detach()[None], search.network.gates.closed)
        state.tally.flipped |= search.network.gates.closed != state.tally.closed_before
        if search.data.in_memory is None:  # where the pass goes on if the search is resumed
            state.position.batches += 1

    @torch.no_grad()
    def _descend(self, slope: Tensor) -> None:
        """Take one step on the mask logits, and close channels for which there is no room any more.

        Args:
            slope: gradient dJ/dgate of the whole batch, shape (M,).
        """
        state, gates = self.state, self.search.network.gates
        share = self.share(state.taken % self.per_round + 1)
        state.taken += 1
        for moment, value, memory in zip(state.moments, (slope, slope.square()), (_MEAN, _SQUARE), strict=True):
            moment.lerp_(value, 1 - memory)
        worth, spread = self.worth
        if state.taken <= self.per_round:  # the first round closes nothing
            return
        logits = state.logits
        logits.add_(self._rate(state.taken) * (worth / spread).clamp(-1, 1)).clamp_(-_RANGE, _RANGE)
        logits.copy_(torch.where(self.projection.protected(logits), logits.clamp(min=0), logits))
        if state.taken % EVERY == 0 or state.taken % self.per_round == 0:
            logits[self.projection.without_room(worth, gates.closed, share)] = _SHUT

"""Trades at the end of a gradual search: the loss only falls, the cost is kept."""

import dataclasses
import itertools

import pytest
import torch
from cases import batches_of, biased_data, network
from torch.nn.functional import cross_entropy

from bise_prune import SearchConfig
from bise_prune.config import Budget
from bise_prune.data import BatchLoader
from bise_prune.mask_search.assembly import assemble
from bise_prune.mask_search.gradual import ROUNDS, TRADING, Rounds
from bise_prune.mask_search.trades import STEPS_DOWN, Trades
from bise_prune.tuning.vanilla import train_vanilla


def loader(n=240, **options):
    return BatchLoader(biased_data(n=n, **options), 20, shuffle=True, seed=1)


def trades_of(name="simple_convnet", share=0.5):
    """Trades on a trained network, and gates of random channels at a share of the cost."""
    model = network(name)
    train_vanilla(model, loader(), torch.optim.Adam(model.parameters(), lr=0.01), epochs=4)
    found = assemble(model.double(), doubled(), SearchConfig(steps=12, budget=Budget(share=share)))
    trades = Rounds(found).trades
    values = torch.rand(len(found.state.logits), generator=torch.Generator().manual_seed(2))
    return trades, trades.projection.kept(values, share).double()


def doubled():
    data = biased_data(n=240)
    return BatchLoader(dataclasses.replace(data, inputs=data.inputs.double()), 20, shuffle=True, seed=1)


def sampled(trades):
    """The sample as one batch: inputs and labels."""
    data = trades.search.data.in_memory.data
    rows = torch.cat(trades.judge.sample.parts)
    return data.inputs[rows], data.target[rows]


def masked_loss(trades, gates):
    inputs, target = sampled(trades)
    net = trades.search.network
    return cross_entropy(net.forward(gates.split(net.gates.sizes), inputs)[0], target)


@pytest.mark.parametrize("name", ["simple_convnet", "mlp", "resnet"])
def test_a_round_lowers_the_loss_at_the_same_cost(name):
    trades, gates = trades_of(name)
    calls = []
    after, worth = trades.round(gates, 0.5, torch.Generator().manual_seed(0), lambda: calls.append(1))
    assert trades.judge.loss(after) < trades.judge.loss(gates)
    assert trades.projection.cost(after) <= 0.5 and set(after.unique().tolist()) == {0.0, 1.0}
    assert len(calls) == 20
    assert torch.equal(worth, trades.worth(after)[0])  # of the masks that are returned


def test_a_round_makes_only_trades_that_lower_the_loss():
    trades, gates = trades_of()
    seen, loss = [], trades.judge.loss
    trades.judge.loss = lambda gates: seen.append((gates, loss(gates))) or seen[-1][1]
    after, _ = trades.round(gates, 0.5, torch.Generator().manual_seed(0), lambda: None)
    best = min(seen, key=lambda pair: pair[1])
    assert torch.equal(after, best[0]) and len({value for _, value in seen}) > 2


def test_the_loss_is_that_of_the_whole_sample():
    trades, gates = trades_of()
    assert trades.judge.loss(gates) == pytest.approx(float(masked_loss(trades, gates)), rel=1e-12)


def test_worth_is_read_from_the_sample():
    """The mean against the gradient of the whole, the curvature and the error against the batches' own gradients."""
    trades, gates = trades_of()
    trades.judge.sample = batches_of(50, trades.judge.sample)
    leaf = gates.clone().requires_grad_()
    (mean,) = torch.autograd.grad(masked_loss(trades, leaf), leaf)
    net, data = trades.search.network, trades.search.data.in_memory.data
    slopes = []
    for rows in trades.judge.sample.parts:
        logits = net.forward(leaf.split(net.gates.sizes), data.inputs[rows])[0]
        slopes += torch.autograd.grad(cross_entropy(logits, data.target[rows]), leaf)
    variance = torch.stack(slopes).var(0, correction=0)
    half = (50 * variance + mean.square()) / 2
    worth, error = trades.worth(gates)
    assert torch.allclose(worth, torch.where(gates == 0, -half, half) - mean)
    assert torch.allclose(error, (variance / len(slopes)).sqrt())


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("name", ["simple_convnet", "mlp", "resnet"])
def test_what_is_worth_most_for_its_cost_opens_and_what_is_worth_least_closes(name, size):
    trades, gates = trades_of(name)
    worth = torch.randn(len(gates), dtype=torch.double, generator=torch.Generator().manual_seed(1))
    traded, value = trades.trade(gates, worth, size, 0.5), trades.projection.per_cost(worth, gates == 0)
    assert trades.projection.cost(traded) <= 0.5
    opened, closed = (traded > gates).nonzero().flatten(), (traded < gates).nonzero().flatten()
    candidates = (gates == 0).nonzero().flatten()
    best = candidates[value[candidates].argsort(descending=True)][:size]
    assert set(opened.tolist()) <= set(best.tolist()) and len(opened)
    kept = ((traded > 0) & (gates > 0) & ~trades.projection.protected(value)).nonzero().flatten()
    if len(closed) and len(kept):
        assert value[closed].max() <= value[kept].min()


def test_trades_mend_masks_that_are_known_to_be_wrong():
    """One channel that matters most is closed by hand: no single trade of the oracle's is left that gains as much."""
    trades, gates = trades_of("mlp", 0.6)
    gates = trades.round(gates, 0.6, torch.Generator().manual_seed(0), lambda: None)[0]
    with torch.no_grad():
        rises = [float(masked_loss(trades, gates.index_fill(0, k, 0.0))) for k in (gates > 0).nonzero().flatten()]
    worst = int((gates > 0).nonzero().flatten()[torch.tensor(rises).argmax()])
    broken = gates.index_fill(0, torch.tensor(worst), 0.0)
    mended = trades.round(broken, 0.6, torch.Generator().manual_seed(1), lambda: None)[0]
    assert trades.judge.loss(mended) < trades.judge.loss(broken) - 0.9 * (max(rises) - trades.judge.loss(gates))


def test_the_way_down_closes_what_is_worth_least_for_its_cost_step_by_step():
    trades = trades_of()[0]
    seen, worth = [], trades.worth
    trades.worth = lambda gates: seen.append((gates.clone(), worth(gates))) or seen[-1][1]
    calls = []
    end = trades.way_down(0.4, lambda: calls.append(1))
    assert len(calls) == STEPS_DOWN == len(seen) and bool((seen[0][0] == 1).all())
    after = [gates for gates, _ in seen[1:]] + [end]
    for step, ((before, (values, _)), now) in enumerate(zip(seen, after, strict=True), 1):
        assert trades.projection.cost(now) <= 1 - 0.6 * step / STEPS_DOWN + 1e-9 and bool((now <= before).all())
        value = torch.where(before == 0, -torch.inf, trades.projection.per_cost(values, before == 0))
        free = ~trades.projection.protected(value)
        kept, closed = (now > 0) & free, (before > 0) & (now == 0)
        if kept.any() and closed.any():
            assert value[closed].max() <= value[kept].min()


def test_the_whole_network_has_nothing_to_trade():
    trades, gates = trades_of()
    whole = torch.ones_like(gates)
    after, _ = trades.round(whole, 1.0, torch.Generator().manual_seed(0), lambda: None)
    assert torch.equal(after, whole)


def test_a_search_ends_with_them_from_its_best_masks():
    model = network("simple_convnet")
    train_vanilla(model, loader(), torch.optim.Adam(model.parameters(), lr=0.01), epochs=4)
    found = assemble(model, loader(), SearchConfig(steps=24, budget=Budget(share=0.5)), loader(90, rho=0.4))
    rounds, state = Rounds(found), found.state
    starts, trade = [], Trades.round

    def noted(self, gates, *arguments):
        starts.append(gates.clone())
        return trade(self, gates, *arguments)

    for number in range(1, ROUNDS + 1):
        rounds.round(number, lambda: None)
    best = state.picks["best"][2]["logits"] >= 0
    rounds.trades.round = noted.__get__(rounds.trades)
    losses = []
    for number in range(ROUNDS + 1, ROUNDS + TRADING + 1):
        record = rounds.round(number, lambda: None)
        losses.append(record.cross_entropy)
        assert record.cost <= 0.5 and record.objective >= record.cross_entropy
        assert record.closed == int(found.network.gates.closed.sum())
    assert torch.equal(starts[0] > 0, best)
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(losses))


def test_a_round_that_is_interrupted_leaves_the_masks_as_they_were():
    """So that the same search, resumed, counts the same flips and looks at the same validation figures."""
    found = assemble(network("mlp"), loader(), SearchConfig(steps=12, budget=Budget(share=0.5)), loader(90, rho=0.4))
    rounds, state = Rounds(found), found.state
    for number in range(1, ROUNDS + 1):
        rounds.round(number, lambda: None)
    logits = state.logits.clone()
    picked = state.picks["best"][2]["logits"]
    picked.copy_(-picked)  # others than those of the last round

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rounds.round(ROUNDS + 1, interrupt)
    assert torch.equal(state.logits, logits)

"""The gradual search: open at the start, budgets met by construction, no collapse picked."""

import dataclasses
import itertools

import pytest
import torch
from cases import biased_data, biased_loader, network, same_masks, slow
from torch.nn.functional import cross_entropy

from bise_prune import SearchConfig, search
from bise_prune.config import Budget
from bise_prune.data import BatchLoader, BiasedDataset
from bise_prune.errors import ConfigError
from bise_prune.gates.ranking import least_open
from bise_prune.mask_search import recording
from bise_prune.mask_search.assembly import assemble
from bise_prune.mask_search.gradual import ROUNDS, TRADING, Rounds
from bise_prune.mask_search.recording import _pick
from bise_prune.mask_search.worth import worth_of
from bise_prune.metrics.accuracy import SubgroupAccuracy
from bise_prune.tuning.vanilla import train_vanilla


def trained(name="simple_convnet", epochs=4):
    model = network(name)
    train_vanilla(model, biased_loader(n=240), torch.optim.Adam(model.parameters(), lr=0.01), epochs=epochs)
    return model


def loader(n=240, **options):
    return BatchLoader(biased_data(n=n, **options), 20, shuffle=True, seed=1)


def doubled(n=240):
    data = biased_data(n=n)
    return BatchLoader(BiasedDataset(data.inputs.double(), data.target, data.bias), 20, shuffle=True, seed=1)


@pytest.mark.parametrize("name", ["simple_convnet", "mlp", *slow("resnet")])
@pytest.mark.parametrize("share", [0.5, 0.25])
def test_a_budget_is_met_and_the_way_there_is_gradual(name, share):
    found = search(trained(name), loader(), SearchConfig(steps=36, budget=Budget(share=share)), loader(90, rho=0.4))
    costs = [record.cost for record in found.history]
    assert costs[0] == 1.0 and found.history[0].closed == 0  # the whole network first
    assert costs[-1] <= share and min(costs) > share - 0.2
    steps = [before - after for before, after in itertools.pairwise(costs)]
    assert max(steps) < 0.35  # no round closes most of the network
    for rule in ("best", "last", "worst-group"):
        picked = found.history[found.picks[rule].epoch - 1]
        assert picked.cost <= share + 0.01
        assert found.picks[rule].masks.num_closed == picked.closed


def test_without_a_budget_the_whole_network_is_a_candidate():
    found = search(trained(), loader(), SearchConfig(steps=24), loader(90, rho=0.4))
    validated = [record.validation.unbiased_accuracy for record in found.history]
    assert found.picks["best"].score >= max(validated) - 0.005
    assert validated[found.picks["best"].epoch - 1] == found.picks["best"].score
    later = validated[found.picks["best"].epoch :]
    assert all(value < max(validated) - 0.005 for value in later)  # the smallest of those that are as good


@pytest.mark.parametrize(
    ("accuracies", "epoch"),
    [
        ([0.8, 0.79, 0.805, 0.802, 0.7], 4),
        ([0.8, 0.805, 0.796, 0.7], 2),
        ([0.6, 0.9, 0.894], 2),
        ([0.5, 0.5, 0.5], 3),
        ([0.8, 0.75, 0.7], 1),
        ([0.8, 0.75, 0.77, 0.785, 0.75], 4),  # none as good as the whole network: within a standard error
        ([0.8, 0.785, 0.81, 0.785], 3),
    ],
)
def test_a_free_search_takes_the_smallest_of_the_best_and_none_below_the_whole_by_more_than_noise(accuracies, epoch):
    found = assemble(trained(), loader(), SearchConfig(steps=12), loader(90, rho=0.4))
    record = Rounds(found).round(1, lambda: None)
    found.state.history.clear()
    found.state.picks.clear()
    groups = tuple(SubgroupAccuracy(f"{i}", 15, 12) for i in range(9))  # three and a half points are a standard error
    for number, accuracy in enumerate(accuracies, 1):
        validation = dataclasses.replace(record.validation, unbiased_accuracy=accuracy, subgroups=groups)
        found.state.history.append(
            dataclasses.replace(record, epoch=number, validation=validation, closed=10 * (number > 1))
        )
        _pick(found, found.state.history[-1], None, is_traded=False)
    assert found.state.picks["best"][0] == epoch


def test_masks_that_are_worse_on_training_samples_too_do_not_replace_the_whole_network():
    found = assemble(trained(), loader(), SearchConfig(steps=12), loader(90, rho=0.4))
    record = Rounds(found).round(1, lambda: None)
    found.state.history.clear()
    found.state.picks.clear()
    for number, (accuracy, training) in enumerate([(0.8, 0.9), (0.79, 0.5)], 1):
        validation = dataclasses.replace(record.validation, unbiased_accuracy=accuracy)
        found.state.history.append(
            dataclasses.replace(
                record, epoch=number, validation=validation, training_accuracy=training, closed=10 * (number > 1)
            )
        )
        _pick(found, found.state.history[-1], None, is_traded=False)
    assert found.state.picks["best"][0] == 1


@pytest.mark.parametrize(
    ("accuracies", "epoch"),
    [
        ([0.8, 0.5, 0.785, 0.79, 0.77], 4),
        ([0.8, 0.785, 0.796, 0.785], 3),
        ([0.8, 0.7, 0.7], 1),
        ([1.0, 0.996, 0.99], 2),
        ([1.0, 0.985, 0.991, 0.98], 3),
    ],
)
def test_without_validation_data_noise_does_not_leave_the_whole_network(accuracies, epoch, monkeypatch):
    monkeypatch.setattr(recording, "sample_size", lambda *_: 600)  # of which 1.6 points are a standard error at .8
    found = assemble(trained(), loader(), SearchConfig(steps=12))
    record = Rounds(found).round(1, lambda: None)
    found.state.history.clear()
    found.state.picks.clear()
    for number, accuracy in enumerate(accuracies, 1):
        found.state.history.append(dataclasses.replace(record, epoch=number, training_accuracy=accuracy))
        _pick(found, found.state.history[-1], None, is_traded=False)
    assert found.state.picks["last"][0] == epoch


@pytest.mark.parametrize(
    ("share", "before", "after", "epoch"),
    [
        (0.6, 0.80, 0.77, 16), (0.6, 0.80, 0.75, 12), (0.6, 0.70, 0.75, 16),
        (None, 0.80, 0.77, 16), (None, 0.80, 0.75, 12), (None, 0.80, 0.69, 12),
    ],
)  # fmt: skip
def test_after_trades_noise_does_not_decide(share, before, after, epoch, monkeypatch):
    validated = recording._validated
    groups = tuple(SubgroupAccuracy(f"{i}", 10, 8) for i in range(9))  # four points are a standard error

    def as_if(found, unchanged):
        done = len(found.state.history)
        accuracy = after if done >= ROUNDS else before if done else 0.7  # the whole network
        return dataclasses.replace(validated(found, unchanged), unbiased_accuracy=accuracy, subgroups=groups)

    monkeypatch.setattr(recording, "_validated", as_if)
    budget = None if share is None else Budget(share=share)
    found = search(trained(), loader(), SearchConfig(steps=12, budget=budget), loader(90, rho=0.4))
    assert found.picks["best"].epoch == epoch


def test_a_collapse_is_backed_out_of():
    found = assemble(trained(), loader(), SearchConfig(steps=24), loader(90, rho=0.4))
    rounds, state = Rounds(found), found.state
    assert not rounds.round(1, lambda: None).backed_out
    before, drop, without_room = state.logits.clone(), state.drop, rounds.projection.without_room
    rounds.projection.without_room = lambda worth, closed, share: torch.ones_like(closed)  # constant predictions
    record = rounds.round(2, lambda: None)
    assert record.backed_out and record.closed == len(before) and state.history[-1] == record
    assert torch.equal(state.logits, before) and state.drop == drop / 2
    assert state.picks["best"][0] == 1
    rounds.projection.without_room = without_room
    record = rounds.round(3, lambda: None)
    assert record.cost >= 0.8  # a channel of this network is a tenth of it


def test_a_budget_is_met_after_a_collapse_as_well():
    found = assemble(trained(), loader(), SearchConfig(steps=24, budget=Budget(share=0.4)), loader(90, rho=0.4))
    rounds = Rounds(found)
    rounds.has_collapsed = lambda record: record.epoch in (3, 6, 7, 11)
    records = [rounds.round(number, lambda: None) for number in range(1, ROUNDS + 1)]
    assert [record.epoch for record in records if record.backed_out] == [3, 6, 11]  # before round 7, it was not met
    assert records[3].cost >= records[2].cost - 0.1 and all(record.cost <= 0.4 for record in records[9:])


@pytest.mark.parametrize("share", [None, 0.5])
def test_after_the_way_down_it_goes_on_from_the_best_masks(share):
    budget = None if share is None else Budget(share=share)
    found = assemble(trained(), loader(), SearchConfig(steps=24, budget=budget), loader(90, rho=0.4))
    rounds, state = Rounds(found), found.state
    for number in range(1, rounds.walk + 1):
        rounds.round(number, lambda: None)
    assert not torch.equal(state.logits, rounds.best) and bool(state.moments[0].any())
    rounds.plan(rounds.walk + 1)
    assert torch.equal(state.logits, rounds.best) and not bool(state.moments[0].any())
    held = rounds.projection.cost(found.network.gates.values) if share is None else share
    assert state.shares == pytest.approx((held, held))


@pytest.mark.parametrize(("share", "walk"), [(None, 7), (0.9, 7), (0.4, 7), (0.33, 8), (0.2, 9), (0.1, 10)])
def test_a_smaller_budget_has_a_longer_way_down(share, walk):
    budget = None if share is None else Budget(share=share)
    assert Rounds(assemble(network("mlp"), loader(), SearchConfig(steps=12, budget=budget))).walk == walk


def test_no_layer_is_emptied_by_evidence_either():
    found = assemble(trained(), loader(), SearchConfig(steps=240, budget=Budget(share=0.9, layer_floor=0.3)))
    rounds, gates = Rounds(found), found.network.gates
    rounds.round(1, lambda: None)
    rounds.plan(2)
    for _ in range(100):
        rounds._descend(torch.full_like(gates.values, 0.1))  # every channel does harm
    assert [int(part.sum()) for part in gates.values.split(gates.sizes)] == [least_open(n, 0.3) for n in gates.sizes]


def test_repeated_searches_are_equal_and_seeds_differ():
    model, val = trained(), loader(60, rho=0.4)
    one, two, other = (search(model, loader(), SearchConfig(steps=24, seed=seed), val) for seed in (0, 0, 1))
    assert one.history == two.history and same_masks(one.last, two.last)
    assert not same_masks(one.last, other.last)


def test_shortcuts_change_no_mask():
    from bise_prune.mask_search.speed import Speedups

    model, config = trained(), SearchConfig(steps=24, budget=Budget(share=0.5))
    plain = Speedups(cached_prefix=False, affine_norms=False, skipped_channels=False, kept_results=False)
    double = model.double()
    fast, slow_one = (search(double, doubled(), config, speedups=speedups) for speedups in (None, plain))
    assert all(torch.equal(fast.last.keep[name], slow_one.last.keep[name]) for name in fast.last.keep)


class Streamed:
    """A loader whose samples have no numbers."""

    def __init__(self, batches):
        self.batches = batches

    def set_epoch(self, number):
        self.batches.set_epoch(number)

    def __iter__(self):
        return iter(self.batches)


def test_any_loader_will_do():
    found = search(trained(), Streamed(loader()), SearchConfig(steps=30, budget=Budget(share=0.5)))
    assert found.history[-1].cost <= 0.5 and len(found.history) == ROUNDS + TRADING


def test_aligned_and_conflicting_samples_have_half_of_the_weight_each():
    found = assemble(network("mlp"), loader(n=600, rho=0.9), SearchConfig(steps=12))
    weights, conflicting = Rounds(found).weights.double(), found.labels.known.conflicting[:, 0]
    assert float(weights[conflicting].sum()) == pytest.approx(300)
    assert float(weights.mean()) == pytest.approx(1)
    ratio = weights / found.labels.known.weight
    for side in (conflicting, ~conflicting):  # within a side they are r
        assert torch.allclose(ratio[side], ratio[side][0].expand_as(ratio[side]), rtol=1e-5)
    none = assemble(network("mlp"), loader(n=600), SearchConfig(steps=12, weighting="none"))
    assert (Rounds(none).weights == 1).all()


def test_worth_is_the_second_order_rise_of_the_objective():
    """Against running means written out as weighted sums, and the curvature as the samples' mean square gradient."""
    generator = torch.Generator().manual_seed(0)
    rounds = Rounds(assemble(trained().double(), doubled(), SearchConfig(steps=240)))
    state, gates = rounds.state, rounds.search.network.gates
    slopes = [torch.randn(len(state.logits), dtype=torch.double, generator=generator) * 0.3 for _ in range(15)]
    for slope in slopes:  # in the first round, nothing closes
        rounds._descend(slope)
    state.logits[::2] = -0.5
    closed = gates.closed
    worth, spread = rounds.worth

    def running(values, memory):
        weights = memory ** torch.arange(len(values) - 1, -1, -1, dtype=torch.double)
        return (weights[:, None] * values).sum(0) / weights.sum()

    mean, square = running(torch.stack(slopes), 0.9), running(torch.stack(slopes).square(), 0.95)
    curvature = 20 * (square - mean.square()).clamp(min=0) + mean.square()
    assert torch.allclose(worth[~closed], (-mean + curvature / 2)[~closed])
    assert torch.allclose(worth[closed], (-mean - curvature / 2)[closed])
    assert torch.allclose(spread, square.sqrt())


@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_worth_ranks_channels_as_closing_each_of_them_does(name):
    """The oracle closes one channel after the other and measures the loss; the gradient alone ranks them worse."""
    model, data = trained(name, epochs=2), biased_data(n=240)
    net = assemble(model, loader(), SearchConfig(steps=12)).network
    sizes = net.gates.sizes
    ones, slopes = torch.ones(sum(sizes)), []
    closed, generator = torch.zeros(len(ones), dtype=torch.bool), torch.Generator().manual_seed(0)

    def loss(gates, rows):
        return cross_entropy(net.forward(gates.split(sizes), net.placed(data.batch(rows)))[0], data.target[rows])

    for _ in range(60):
        gates = ones.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(gates, torch.randint(240, (20,), generator=generator)), gates)
        slopes.append(slope)
    mean, square = torch.stack(slopes).mean(0), torch.stack(slopes).square().mean(0)
    worth = worth_of(mean, square, closed, 20)
    with torch.no_grad():
        rises = torch.stack([loss(ones.index_fill(0, k, 0.0), torch.arange(240)) for k in torch.arange(len(ones))])

    def agreement(values):  # Spearman's rank correlation
        return float(torch.corrcoef(torch.stack([rises, values]).argsort(1).argsort(1).double())[0, 1])

    assert agreement(worth) > 0.6
    assert agreement(worth) > agreement(-mean) + 0.1


def test_the_masks_that_are_kept_rank_the_channels_by_worth_per_cost():
    found = assemble(trained(), loader(), SearchConfig(steps=24, budget=Budget(share=0.4)))
    rounds, state, gates = Rounds(found), found.state, found.network.gates
    for number in range(1, ROUNDS + 1):
        rounds.round(number, lambda: None)
    kept = state.picks["last"][2]["logits"]
    assert torch.equal(kept < 0, gates.closed) and bool(gates.closed.any())
    assert len(kept.unique()) >= max(gates.closed.sum(), (~gates.closed).sum()) and kept.min() == -1 and kept.max() < 1
    value = rounds.projection.per_cost(rounds.worth[0], gates.closed)
    for side in (gates.closed, ~gates.closed):
        assert torch.equal(kept[side].argsort(stable=True), value[side].argsort(stable=True))


def test_a_search_may_start_from_masks():
    model = trained()
    first = search(model, loader(), SearchConfig(steps=24, budget=Budget(share=0.6)))
    second = search(model, loader(), SearchConfig(steps=24, budget=Budget(share=0.3)), start=first.masks)
    assert second.history[0].cost <= first.history[-1].cost + 1e-9
    assert second.history[-1].cost <= 0.3


@pytest.mark.parametrize(
    ("options", "is_gradual"),
    [
        ({}, True), ({"mi_weight": 0.0}, True), ({"anneal_every": 2}, False), ({"initial_logit": 0.1}, False),
        ({"method": "paper"}, False), ({"budget": Budget(share=0.5)}, True),
        ({"budget": Budget(share=0.5, weight=5.0)}, False), ({"method": "gradual"}, True),
    ],
)  # fmt: skip
def test_settings_of_the_paper_choose_its_search(options, is_gradual):
    assert SearchConfig(**options).is_gradual == is_gradual


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gradual", "anneal_every": 2}, "anneal_every is a setting of the search 'paper'"),
        ({"method": "paper", "steps": 100}, "steps is a setting of the search 'gradual'"),
        ({"anneal_every": 2, "steps": 12}, "steps is a setting of the search 'gradual'"),
        ({"steps": 3}, "steps = 3 is out of range"),
        ({"method": "fast"}, "search = 'fast' is out of range"),
    ],
)  # fmt: skip
def test_settings_of_both_searches_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SearchConfig(**options)

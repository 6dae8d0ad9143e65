"""Masks that are judged with a refitted last layer: by the loss on other samples; the network stays as it was."""

import copy
import dataclasses

import pytest
import torch
from cases import batches_of, biased_data, network, same_masks
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from torch import nn

from bise_prune import SearchConfig, evaluate, search
from bise_prune.config import Budget
from bise_prune.data import BatchLoader
from bise_prune.errors import ConfigError
from bise_prune.mask_search import SearchInterrupted
from bise_prune.mask_search.assembly import assemble
from bise_prune.mask_search.gradual import ROUNDS, TRADING, Rounds
from bise_prune.mask_search.judge import _PENALTY
from bise_prune.tuning.vanilla import train_vanilla

CONFIG = SearchConfig(steps=12, refit="head", budget=Budget(share=0.6))
VALIDATION = BatchLoader(biased_data(n=240, rho=0.34, seed=3), 80)


def loader(dtype=torch.float32):
    data = biased_data(n=240)
    return BatchLoader(dataclasses.replace(data, inputs=data.inputs.to(dtype)), 20, shuffle=True, seed=1)


@pytest.fixture(scope="module")
def model():
    model = network("simple_convnet")
    train_vanilla(model, loader(), torch.optim.Adam(model.parameters(), lr=0.01), epochs=4)
    return model.eval()


def rounds_of(model, dtype=torch.double):
    found = assemble(model.to(dtype), loader(dtype), CONFIG, aligned=torch.arange(3)[:, None])
    rounds = Rounds(found)
    gates = torch.ones_like(found.state.logits)
    gates[::3] = 0
    return rounds, gates


def features_of(rounds, gates, sample):
    net, data = rounds.search.network, rounds.search.data.in_memory.data
    rows = torch.cat(sample.parts)
    with torch.no_grad():
        features = net.forward(gates.split(net.gates.sizes), data.inputs[rows])[1]
    return features.numpy(), data.target[rows].numpy()


def halves_of(rounds):
    """Sample by sample: the distinct ones of each subgroup by turns, copies where the first one is."""
    labels, half, seen = rounds.search.labels.known, {}, {}
    rows = torch.cat(rounds.sample.parts).tolist()
    for row in sorted(set(rows)):
        subgroup = (int(labels.target[row]), bool(labels.conflicting[row].any()))
        seen.setdefault(subgroup, []).append(row)
    start = 0
    for subgroup in sorted(seen):
        half |= {row: (start + place) % 2 for place, row in enumerate(seen[subgroup])}
        start += len(seen[subgroup])
    return torch.tensor([half[row] for row in rows]).numpy() == 1


def test_the_loss_is_that_of_a_head_fitted_to_the_other_half(model):
    rounds, gates = rounds_of(copy.deepcopy(model))
    features, target = features_of(rounds, gates, rounds.sample)
    is_odd = halves_of(rounds)
    assert len(set(torch.cat(rounds.sample.parts).tolist())) < len(target)  # some are there more than once
    total = 0.0
    for side in (is_odd, ~is_odd):
        scaler = StandardScaler().fit(features[~side])
        oracle = LogisticRegression(C=1 / (_PENALTY * (~side).sum()), tol=1e-10, max_iter=5000)
        oracle.fit(scaler.transform(features[~side]), target[~side])
        total += log_loss(target[side], oracle.predict_proba(scaler.transform(features[side])), normalize=False)
    assert rounds.judge.loss(gates) == pytest.approx(total / len(target), rel=1e-3)


def test_a_round_of_trades_lowers_it():
    rounds, gates = rounds_of(network("simple_convnet"))
    share = rounds.projection.cost(gates)
    after, _ = rounds.trades.round(gates, share, torch.Generator().manual_seed(0), lambda: None)
    assert rounds.judge.loss(after) <= rounds.judge.loss(gates) and rounds.projection.cost(after) <= share


def test_worth_is_that_of_the_loss_of_a_refitted_head():
    rounds, gates = rounds_of(network("simple_convnet"))
    rounds.judge.sample = batches_of(50, rounds.sample)
    net, data, head = rounds.search.network, rounds.search.data.in_memory.data, rounds.judge.head(gates)
    slopes = []
    for rows in rounds.judge.sample.parts:
        leaf = gates.clone().requires_grad_()
        features = net.forward(leaf.split(net.gates.sizes), data.inputs[rows])[1]
        logits = features @ head[:, :-1].T + head[:, -1]
        slopes.append(torch.autograd.grad(nn.functional.cross_entropy(logits, data.target[rows]), leaf)[0])
    error = torch.stack(slopes).std(0, correction=0) / len(slopes) ** 0.5
    assert torch.allclose(rounds.trades.worth(gates)[1], error, rtol=1e-5, atol=1e-12)


def test_validation_is_judged_with_the_refitted_head_and_the_own_one_is_put_back():
    rounds, _ = rounds_of(network("simple_convnet"), torch.float)
    net = rounds.search.network
    layer = net.model.get_submodule(net.readout.layers[0])
    own = [tensor.clone() for tensor in (layer.weight, layer.bias)]
    head = rounds.judge.head(net.gates.values.detach())
    with rounds.judge.applied():
        assert torch.equal(layer.weight, head[:, :-1]) and torch.equal(layer.bias, head[:, -1])
        inside = evaluate(net.gated, VALIDATION, torch.arange(3)[:, None])
    assert torch.equal(layer.weight, own[0]) and torch.equal(layer.bias, own[1])
    outside = evaluate(net.gated, VALIDATION, torch.arange(3)[:, None])
    assert inside.unbiased_accuracy > outside.unbiased_accuracy  # of random weights


@pytest.mark.parametrize("refit", ["none", "head"])
@pytest.mark.parametrize("is_lower", [True, False])
def test_halfway_through_the_trades_there_is_a_second_start(model, refit, is_lower):
    config = dataclasses.replace(CONFIG, refit=refit)
    rounds = Rounds(assemble(copy.deepcopy(model), loader(), config, VALIDATION))
    for number in range(1, ROUNDS + 3):
        rounds.round(number, lambda: None)
    present = rounds.search.network.gates.values.detach().clone()
    other = 1 - present
    way_down, trade, loss, starts, calls = rounds.trades.way_down, rounds.trades.round, rounds.judge.loss, [], []
    rounds.judge.loss = lambda gates: loss(gates) + (9 if torch.equal(gates, present if is_lower else other) else 0)
    rounds.trades.way_down = lambda *arguments: calls.append(way_down(*arguments)) or other
    rounds.trades.round = lambda gates, *arguments: starts.append(gates) or trade(gates, *arguments)
    rounds.round(ROUNDS + 3, lambda: None)
    rounds.round(ROUNDS + 4, lambda: None)
    assert len(calls) == (refit == "head")
    assert all(rounds.projection.cost(gates) <= 0.6 for gates in calls)
    assert torch.equal(starts[0], other if refit == "head" and is_lower else present)


def test_the_search_leaves_the_network_as_it_is_and_resumes(model, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = search(model, loader(), CONFIG, VALIDATION)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert len(whole.history) == ROUNDS + TRADING
    asked, state = 0, tmp_path / "state.pt"

    def interrupted():
        nonlocal asked
        asked += 1
        return asked == 30  # while trades are tried

    with pytest.raises(SearchInterrupted):
        search(model, loader(), CONFIG, VALIDATION, state_path=state, interrupted=interrupted)
    assert same_masks(search(model, loader(), CONFIG, VALIDATION, state_path=state).masks, whole.masks)


def test_what_it_cannot_do_is_said():
    with pytest.raises(ConfigError, match="refit is a setting of the search 'gradual'"):
        SearchConfig(method="paper", refit="head")
    headless = network("mlp")
    layer = [module for module in headless.modules() if isinstance(module, nn.Linear)][-1]
    layer.bias = None
    with pytest.raises(ConfigError, match="additive bias, which this network's does not have"):
        search(headless, loader(), CONFIG)

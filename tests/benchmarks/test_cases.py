"""A case of a benchmark stops and goes on, and gives the package's figures."""

import json

import pytest
import torch
from tables import cases, methods
from tiny_benchmark import Steps, case_in

from bise_prune import SearchConfig, evaluate, measure
from bise_prune.data import BatchLoader
from bise_prune.tuning.vanilla import train_vanilla


def test_a_case_that_is_stopped_goes_on_to_the_same_bits(tmp_path):
    whole = case_in(tmp_path / "whole")
    expected, stops = whole.found(), 0
    for count in (0, 0, 1, 2, 3, 100):
        try:
            parts = case_in(tmp_path / "parts", Steps(count))
            found = parts.found()
            break
        except cases.OutOfTime:
            stops += 1
    assert stops >= 2
    for name, tensor in whole.vanilla.state_dict().items():
        assert torch.equal(tensor, parts.vanilla.state_dict()[name])
    for name, logits in expected.last.logits.items():
        assert torch.equal(logits, found.last.logits[name])
    assert (found.best_epoch, found.epochs) == (expected.best_epoch, expected.epochs)


def test_the_vanilla_network_is_that_of_one_training(tmp_path):
    case = case_in(tmp_path)
    network = case.untrained()
    train_vanilla(
        network, case.loader(case.data.vanilla), case.setting.recipe.optimizer(network.parameters()), epochs=2
    )
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, case.vanilla.state_dict()[name])


def test_figures_are_those_of_the_package(tmp_path):
    case = case_in(tmp_path)
    rows = methods.bise(case)
    pruned = case.pruned()
    oracle = evaluate(pruned.model, BatchLoader(case.test, 300), case.aligned)
    figures = rows["best"]
    assert figures["unbiased"] == oracle.unbiased_accuracy
    assert figures["gap"] == pytest.approx(oracle.aligned_accuracy - oracle.conflicting_accuracy)
    assert figures["flops"] == measure(pruned.model, case.example).flops
    assert figures["sparsity"] == pytest.approx(pruned.plan.sparsity)
    assert figures["epochs"] > 0 and figures["latency_ms"] > 0


def test_a_cache_of_other_settings_is_not_used(tmp_path):
    first = case_in(tmp_path).found()
    other = case_in(
        tmp_path, search=SearchConfig(anneal_every=1, head_epochs=1, min_temperature=0.4, initial_logit=0.5)
    )
    masks = other.found()
    assert any(not torch.equal(first.last.logits[name], masks.last.logits[name]) for name in masks.last.logits)


def test_both_searches_meet_their_budgets(tmp_path):
    """The default search with its own settings, whatever those of the table are; not on samples that select."""
    case = case_in(tmp_path)
    gradual, paper = methods.gradual(case), methods.budgets(case)
    assert list(gradual) == ["1", "0.5", "0.33", "0.2"] and list(paper) == ["0.5", "0.33", "0.2"]
    for share in ("0.5", "0.33"):
        assert gradual[share]["flops_left"] <= float(share) + 0.01
    about = json.loads((tmp_path / "digits/small/rho0.9-seed0/masks/gradual-0.5/about.json").read_text())
    assert "method='gradual'" in about["of"] and about["epochs"] == 16

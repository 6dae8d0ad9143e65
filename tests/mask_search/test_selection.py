"""Every rule picks its own best epoch."""

import pytest
import torch
from cases import SHORT, biased_loader, images, network, same_masks

from bise_prune import SearchConfig, apply_masks, search
from bise_prune.data import BatchLoader
from bise_prune.errors import ConfigError
from bise_prune.mask_search.selection import ERRORS, LAST, RULES, description, resolve
from bise_prune.metrics.accuracy import Evaluation, SubgroupAccuracy, evaluate


def test_best_is_the_latest_epoch_with_the_highest_unbiased_accuracy():
    model, val = network("simple_convnet"), biased_loader(n=90, rho=0.4, seed=5)
    found = search(model, biased_loader(), SearchConfig(**SHORT), val)
    scores = [record.validation.unbiased_accuracy for record in found.history]
    assert found.best_epoch == max(range(1, len(scores) + 1), key=lambda epoch: (scores[epoch - 1], epoch))
    again = evaluate(apply_masks(model, found.best, images()), val, found.aligned)
    assert again.unbiased_accuracy == pytest.approx(max(scores))
    assert found.best.metadata["epoch"] == str(found.best_epoch)


def test_without_validation_best_is_last():
    found = search(network("mlp"), biased_loader(), SearchConfig(**SHORT))
    assert found.best_epoch == len(found.history)
    assert all(torch.equal(found.best.logits[name], found.last.logits[name]) for name in found.last.logits)


def test_every_rule_picks_its_own_best_epoch():
    model, val = network("simple_convnet"), biased_loader(n=90, rho=0.4, seed=5)
    found = search(model, biased_loader(), SearchConfig(**SHORT), val)
    for rule, figure in (
        ("best", "unbiased_accuracy"),
        ("worst-group", "worst_group_accuracy"),
        ("accuracy", "accuracy"),
        ("worst-class", "worst_class_accuracy"),
    ):
        scores = [getattr(record.validation, figure) for record in found.history]
        expected = max(range(1, len(scores) + 1), key=lambda epoch: (scores[epoch - 1], epoch))
        assert found.picks[rule].epoch == expected and found.picks[rule].score == max(scores)
    assert found.rule == "best" and found.masks is found.best
    for rule in ("last", "worst-class"):
        again = search(model, biased_loader(), SearchConfig(**SHORT, select=rule), val)
        assert again.rule == rule and same_masks(again.masks, found.picks[rule].masks)


def test_rules_need_no_more_than_there_is():
    assert [resolve("auto", *given) for given in ((False, False), (True, False), (True, True))] == [
        "last", "worst-class", "best",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="needs validation data"):
        resolve("accuracy", False, False)
    with pytest.raises(ConfigError, match="needs bias labels on the validation data"):
        resolve("worst-group", True, False)
    val = biased_loader(n=60)
    unlabelled = BatchLoader(val.data.with_bias(torch.zeros(60, 0, dtype=torch.long)), 20)
    found = search(network("mlp"), biased_loader(), SearchConfig(**SHORT), unlabelled)
    assert found.rule == "worst-class" and set(found.picks) == {"last", "accuracy", "worst-class"}
    assert [group.name for group in found.history[0].validation.subgroups] == ["y=0", "y=1", "y=2"]


def test_what_a_rule_picks_is_said_for_each_search():
    paper, gradual, head = SearchConfig(method="paper"), SearchConfig(), SearchConfig(refit="head")
    for rule in RULES:
        said = [description(rule, search, target) for search in (paper, gradual, head) for target in (False, True)]
        assert len(set(said)) == 4 and description(rule) == said[0] == said[1] and said[4] == said[5]
    assert description(LAST) == description(LAST, gradual, True) != description(LAST, gradual)


def test_the_standard_error_of_a_rule_is_that_of_repeated_samples():
    """Of binomial samples of two subgroups, of which one is rare, against the spread of the figure over many draws."""
    generator = torch.Generator().manual_seed(0)
    sizes, chances = (400, 25), (0.9, 0.6)
    figures = {rule: [] for rule in RULES}
    errors = {rule: [] for rule in RULES}
    for _ in range(400):
        groups = tuple(
            SubgroupAccuracy(str(n), n, int((torch.rand(n, generator=generator) < chance).sum()))
            for n, chance in zip(sizes, chances, strict=True)
        )
        correct = sum(group.correct for group in groups)
        accuracies = [group.accuracy for group in groups]
        found = Evaluation(425, correct / 425, sum(accuracies) / 2, min(accuracies), correct / 425, groups)
        for rule in RULES:
            figures[rule].append(RULES[rule](found))
            errors[rule].append(ERRORS[rule](found))
    for rule in RULES:
        assert torch.tensor(errors[rule]).mean() == pytest.approx(float(torch.tensor(figures[rule]).std()), rel=0.15)
    lone = Evaluation(1, 1.0, 1.0, 1.0, 1.0, (SubgroupAccuracy("", 1, 1),))
    assert ERRORS["best"](lone) > 0.4  # one sample, which is right, tells little

"""Accuracies by subgroup and by class."""

import pytest
import torch
from cases import biased_loader, network

from bise_prune import evaluate
from bise_prune.metrics.accuracy import score


def test_scores_of_subgroups():
    target, bias = torch.tensor([0, 0, 0, 1]), torch.tensor([[0], [0], [1], [1]])
    evaluation = score(torch.tensor([0, 1, 0, 0]), target, bias, torch.tensor([[0], [1]]))
    assert evaluation.accuracy == 0.5
    assert [(group.name, group.n, group.accuracy) for group in evaluation.subgroups] == [
        ("y=0 b=0", 2, 0.5), ("y=0 b=1", 1, 1.0), ("y=1 b=1", 1, 0.0),
    ]  # fmt: skip
    assert evaluation.unbiased_accuracy == 0.5 and evaluation.worst_group_accuracy == 0


def test_worst_class_accuracy_is_the_lowest_over_the_classes():
    model, loader = network("mlp"), biased_loader()
    evaluation = evaluate(model, loader, torch.arange(3)[:, None])
    hits = model(loader.data.inputs).argmax(1) == loader.data.target
    by_class = [hits[loader.data.target == y].double().mean().item() for y in range(3)]
    assert evaluation.worst_class_accuracy == pytest.approx(min(by_class))

"""Ways to weigh held-out samples without bias labels."""

import pytest
import torch
import unlabelled


def test_each_combination_of_labels_has_the_same_weight():
    target, other = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 1, 1, 1, 1])
    weight = unlabelled.equal_weights(target, other)
    assert weight.tolist() == pytest.approx([1 / 2, 1 / 2, 1, 1 / 3, 1 / 3, 1 / 3])


def test_a_feature_is_biased_if_it_is_higher_where_the_network_is_wrong_about_every_class():
    target = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    is_wrong = torch.tensor([1, 1, 0, 0, 1, 1, 0, 0, 0, 0]).bool()  # nothing is wrong about class 2
    both = torch.tensor([3.0, 3, 1, 1, 3, 3, 1, 1, 9, 9])
    one = torch.tensor([3.0, 3, 1, 1, 1, 1, 3, 3, 9, 9])
    found = unlabelled.biased_features(torch.stack([both, one, -both], 1), target, is_wrong)
    assert found.tolist() == [True, False, False]
    assert not unlabelled.biased_features(both[:, None], target, torch.zeros(10, dtype=torch.bool)).any()


def test_the_page_counts_where_a_way_is_ahead():
    def figures(unbiased):
        return {"unbiased_accuracy": unbiased, "worst_group_accuracy": unbiased / 2}

    ways = {way: figures(0.7) for way in unlabelled.WAYS}
    cells = {
        "a": {"dense": figures(0.5), "balanced": {**ways, "subgroups": figures(0.8)}, "biased": ways},
        "b": {"dense": figures(0.6), "balanced": {**ways, "NeuronTune": figures(0.6)}},
    }
    page = unlabelled.markdown({"cells": cells, "protocol": "p", "command": "c", "commit": "x"})
    assert "## Balanced validation split, 2 networks" in page and "## Biased validation split, 1 networks" in page
    assert "| as it is | 55.0 | 27.5 | 0 | 0 | 2 |" in page and "| classes | 70.0 | 35.0 | – | – | – |" in page
    assert "| NeuronTune | 65.0 | 32.5 | 0 | 1 | 1 |" in page
    assert "| subgroups, by bias labels | 75.0 | 37.5 | 1 | 1 | 0 |" in page

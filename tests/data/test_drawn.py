"""Batches that are drawn by weight, from one or several data sets."""

import dataclasses

import torch
from cases import biased_data

from bise_prune.data.drawn import DrawnBatches


def marked(n, mark):
    data = biased_data(n=n)
    return dataclasses.replace(data, target=torch.full_like(data.target, mark))


def test_samples_are_drawn_by_weight_and_sets_by_their_shares():
    first, second = marked(100, 0), marked(300, 1)
    weights = [torch.zeros(100).index_fill(0, torch.arange(10), 1.0), torch.ones(300)]
    batches = DrawnBatches([first, second], weights, [3, 1], 20)
    assert len(batches) == 20
    seen = []
    for number in range(20):
        batches.set_epoch(number)
        for batch in batches:
            assert len(batch.target) == 20 and len(batch.target.unique()) == 1  # of one set
            seen.append(int(batch.target[0]))
            if not seen[-1]:
                kept = {tuple(image.flatten().tolist()) for image in first.inputs[:10]}
                assert {tuple(image.flatten().tolist()) for image in batch.input} <= kept
    assert len(seen) == 400 and 60 < sum(seen) < 140


def test_passes_differ_and_repeat():
    batches = DrawnBatches([biased_data(n=60)], [torch.ones(60)], [1], 20, seed=3)

    def drawn(number):
        batches.set_epoch(number)
        return torch.cat([batch.input for batch in batches])

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))

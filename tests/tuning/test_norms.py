"""Batch-norm statistics that are estimated again, against torch's mean and variance."""

import torch
from cases import biased_data
from torch import nn

from bise_prune.data import BatchLoader
from bise_prune.tuning.norms import batch_norms, reestimated


def test_the_statistics_are_the_means_over_the_batches():
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Flatten(), nn.LazyLinear(3)).eval()
    data = biased_data(60)
    model(data.inputs[:2])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = reestimated(model, BatchLoader(data, 20))
    batches = data.inputs.split(20)
    assert torch.allclose(found[0].running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0), atol=1e-6)
    assert torch.allclose(found[0].running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0), atol=1e-5)
    assert found[0].momentum == 0.3 and not any(module.training for module in found.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    weights = dict(found.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in model.named_parameters())


def test_a_batch_of_one_sample_is_left_out():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    data = biased_data(41)
    found = reestimated(model, BatchLoader(data, 20))
    whole = reestimated(model, BatchLoader(data.subset(torch.arange(40)), 20))
    assert torch.equal(found[2].running_mean, whole[2].running_mean)


def test_norms_without_running_statistics_have_none_to_estimate():
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(192, 3))
    assert batch_norms(model) == []

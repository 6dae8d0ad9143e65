"""Batch-norm statistics against torch's mean and variance; weights of norms against a training of nothing else."""

import copy

import pytest
import torch
from cases import biased_data, network
from torch import nn
from torch.nn.functional import cross_entropy

from bise_prune.data import BatchLoader
from bise_prune.tuning.ladder import Ladder, Norms, Rung
from bise_prune.tuning.norms import batch_norms, norm_parameters, reestimated, trained


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


def test_a_norm_that_does_not_run_keeps_its_statistics():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    model.unused, model.forward = nn.BatchNorm1d(4), lambda x: model[:4](x)
    model.unused.running_mean.fill_(5.0)
    found = reestimated(model, BatchLoader(biased_data(40), 20))
    assert torch.equal(found.unused.running_mean, torch.full((4,), 5.0)) and found.unused.momentum == 0.1


def test_norms_without_running_statistics_have_none_to_estimate():
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(192, 3))
    assert batch_norms(model) == []


class Mixed(nn.Module):
    """One of each kind, one of them twice, and one without weights."""

    def __init__(self):
        super().__init__()
        self.conv, self.batch = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.group, self.instance = nn.GroupNorm(4, 8), nn.InstanceNorm2d(8, affine=True)
        self.layer, self.rms, self.bare = nn.LayerNorm(8), nn.RMSNorm(8), nn.LayerNorm(8, elementwise_affine=False)
        self.again, self.head = self.layer, nn.Linear(8, 3)

    def forward(self, x):
        x = self.instance(self.group(self.batch(self.conv(x))).relu()).mean((2, 3))
        return self.head(self.bare(self.again(self.rms(self.layer(x).relu()))))


def test_weights_and_biases_of_all_norms_are_found_once():
    model = Mixed()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert sorted(names[id(parameter)] for parameter in norm_parameters(model)) == sorted(
        ["batch.weight", "batch.bias", "group.weight", "group.bias", "instance.weight", "instance.bias",
         "layer.weight", "layer.bias", "rms.weight"]
    )  # fmt: skip
    assert norm_parameters(network("mlp")) == []


@pytest.mark.parametrize("requires_grad", [True, False])
def test_norms_alone_are_trained(requires_grad):
    torch.manual_seed(0)
    model = Mixed().eval().requires_grad_(requires_grad)
    data, weights = biased_data(300), torch.ones(300, dtype=torch.double)
    weights[data.target == 2] = 0  # never drawn
    before = copy.deepcopy(model.state_dict())
    found = trained(model, data, weights)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    changed = {name for name, value in found.state_dict().items() if not torch.equal(value, before[name])}
    names = {name for name, _ in Mixed().named_parameters()} - {"conv.weight", "conv.bias", "head.weight", "head.bias"}
    assert {name.replace("again", "layer") for name in changed} == names
    assert all(parameter.requires_grad == requires_grad and parameter.grad is None for parameter in found.parameters())
    assert not any(module.training for module in found.modules())
    drawn = data.subset((data.target != 2).nonzero().flatten())
    with torch.no_grad():
        losses = [float(cross_entropy(net(drawn.inputs), drawn.target)) for net in (model, found)]
        share_of_third = found(data.inputs).softmax(1)[:, 2].mean()
    assert losses[1] < 0.8 * losses[0] and share_of_third < 0.1


class Behind(nn.Module):
    """A layer norm, and what is done to its output."""

    def __init__(self, function):
        super().__init__()
        self.embed, self.norm, self.head, self.function = nn.Linear(192, 8), nn.LayerNorm(8), nn.Linear(8, 3), function

    def forward(self, x):
        return self.head(self.function(self.norm(self.embed(x.flatten(1)))))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.detach(),
        lambda x: (x > 0).float(),
        lambda x: x.sigmoid().mul_(2),  # its gradient needs what has been changed
        lambda x: (100 * x).exp(),
    ],
    ids=["not read", "steps", "in place", "not finite"],
)
def test_a_network_whose_norms_cannot_be_trained_has_none(function):
    torch.manual_seed(0)
    model, data = Behind(function).eval(), biased_data(60)
    assert trained(model, data, torch.ones(60, dtype=torch.double)) is None
    ladder = Ladder(model, data, data, torch.arange(3)[:, None], again=data)
    assert Norms.TRAINED not in ladder.models
    assert all(step.head.isfinite().all() for step in ladder.steps.values())


def test_a_second_training_that_fails_leaves_the_first():
    torch.manual_seed(0)
    model, data = Behind(torch.relu).eval(), biased_data(300)
    broken = type(data)(torch.full_like(data.inputs, 1e38), data.target, data.bias)
    ladder = Ladder(model, data, data, torch.arange(3)[:, None], again=broken)
    assert ladder.steps[Rung.NORMS].norms is Norms.TRAINED
    assert all(p.isfinite().all() for rung in Rung for p in ladder.model(rung).parameters())


def test_training_leaves_inference_mode():
    torch.manual_seed(0)
    model, data = Behind(torch.relu).eval(), biased_data(60)
    weights = torch.ones(60, dtype=torch.double)
    outside = trained(model, data, weights)
    with torch.inference_mode():
        inside = trained(model, data, weights)
    assert all(torch.equal(a, b) for a, b in zip(inside.parameters(), outside.parameters(), strict=True))


def test_other_parameters_of_a_norm_are_not_trained():
    class Adaptive(nn.LayerNorm):
        def __init__(self):
            super().__init__(8)
            self.table = nn.Parameter(torch.ones(8))
            self.order = nn.Parameter(torch.arange(8), requires_grad=False)

        def forward(self, x):
            return super().forward(x)[..., self.order] * self.table

    torch.manual_seed(0)
    model = Behind(torch.relu)
    model.norm = Adaptive()
    found = trained(model.eval(), biased_data(60), torch.ones(60, dtype=torch.double))
    assert torch.equal(found.norm.table, torch.ones(8)) and not torch.equal(found.norm.weight, torch.ones(8))

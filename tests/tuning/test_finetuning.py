"""Finetuning against the loop written out; structure is kept."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import biased_data, biased_loader, images, in_double, network, random_masks

from bise_prune import evaluate, prune
from bise_prune.config import FinetuneConfig
from bise_prune.data import BatchLoader
from bise_prune.errors import BiseError, ConfigError, DataError
from bise_prune.mask_search.weights import subgroup_weights
from bise_prune.metrics.subgroups import count_subgroups
from bise_prune.tuning.finetuning import finetune


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_one_epoch_of_finetuning_is_the_loop_written_out(optimizer):
    model = network("mlp").double()
    data = biased_data(n=60)
    batches = [
        {"input": data.inputs[rows].double(), "target": data.target[rows], "bias": data.bias[rows]}
        for rows in torch.arange(60).split(20)
    ]
    config = FinetuneConfig(epochs=1, optimizer=optimizer, lr=1e-2, momentum=0.5, weight_decay=1e-3)
    tuned = finetune(model, batches, config).model
    expected = copy.deepcopy(model).train()
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    extra = {"momentum": 0.5} if optimizer == "sgd" else {}
    steps = kinds[optimizer](expected.parameters(), lr=1e-2, weight_decay=1e-3, **extra)
    table = subgroup_weights(count_subgroups(data.target, data.bias[:, 0], 3, 3)).float().double()
    for batch in batches:
        r = table[batch["target"], batch["bias"][:, 0]]
        loss = (F.cross_entropy(expected(batch["input"]), batch["target"], reduction="none") * r).mean()
        steps.zero_grad()
        loss.backward()
        steps.step()
    for one, other in zip(tuned.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_finetuning_keeps_structure_and_selects_by_validation(trained):
    masks = random_masks(trained, images(), "tied", 1)
    slim = prune(trained, masks, images()).model
    before = copy.deepcopy(slim.state_dict())
    val = biased_loader(n=120, rho=1 / 3, seed=8)
    result = finetune(slim, BatchLoader(biased_data(n=240, rho=0.9), 20), FinetuneConfig(epochs=4, lr=0.05), val)
    assert {k: v.shape for k, v in result.model.state_dict().items()} == {k: v.shape for k, v in before.items()}
    assert all(torch.equal(value, before[name]) for name, value in slim.state_dict().items())  # a copy was trained
    scores = [epoch.validation.unbiased_accuracy for epoch in result.history]
    assert [epoch.epoch for epoch in result.history] == [0, 1, 2, 3, 4] and result.rule == "best"
    assert result.epoch == max(range(5), key=lambda epoch: (scores[epoch], epoch))
    again = evaluate(result.model, val, torch.arange(3)[:, None])
    assert again.unbiased_accuracy == pytest.approx(max(scores)) and not result.model.training
    assert max(scores) > scores[0]


def test_finetuning_says_what_is_wrong():
    with pytest.raises(ConfigError, match="finetuning lr = 0"):
        FinetuneConfig(lr=0)
    with pytest.raises(ConfigError, match="optimizer = 'lion' is out of range: expected one of sgd, adam, adamw"):
        FinetuneConfig(optimizer="lion")
    with pytest.raises(DataError, match="loader is empty"):
        finetune(network("mlp"), [], FinetuneConfig(epochs=1))
    with pytest.raises(ConfigError, match="'best' needs validation data"):
        finetune(network("mlp"), biased_loader(), FinetuneConfig(epochs=1, select="best"))
    with pytest.raises(BiseError, match="in epoch 1 of finetuning: lower its lr"):
        finetune(network("mlp"), biased_loader(), FinetuneConfig(epochs=1, lr=1e30))


def test_it_is_finetuned(rewired):
    slim, inputs = copy.deepcopy(rewired[0]).train(), rewired[1]
    before = slim(inputs)
    optimiser = torch.optim.SGD(slim.parameters(), lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        loss = F.cross_entropy(slim(inputs), torch.tensor([0, 1]))
        loss.backward()
        optimiser.step()
    assert all(parameter.grad is not None for parameter in slim.parameters())
    assert not torch.equal(slim(inputs), before)


def test_a_cosine_schedule_ends_at_nothing():
    """The last of two epochs has half the rate of the first; a loop written out with the same rates."""
    model, batches = network("mlp").double(), list(BatchLoader(in_double(biased_data(n=60)), 20))
    plain = dict(optimizer="sgd", momentum=0.0, weight_decay=0.0, weighting="none")
    config = FinetuneConfig(epochs=2, lr=0.1, schedule="cosine", **plain)
    tuned = finetune(model, batches, config).model
    expected = copy.deepcopy(model).train()
    for rate in (0.1, 0.05):
        for batch in batches:
            loss = F.cross_entropy(expected(batch.input), batch.target)
            gradients = torch.autograd.grad(loss, list(expected.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(expected.parameters(), gradients, strict=True):
                    parameter -= rate * gradient
    for one, other in zip(tuned.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_loaders_that_run_dry_are_named():
    with pytest.raises(DataError, match="the validation loader is empty"):
        finetune(network("mlp"), biased_loader(), FinetuneConfig(epochs=1), [])

"""Finetuning against the loop written out; structure is kept."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from cases import biased_data, biased_loader, images, in_double, network, random_masks

from bise_prune import evaluate, prune
from bise_prune.config import STRONG, FinetuneConfig
from bise_prune.data import BatchLoader
from bise_prune.errors import BiseError, ConfigError, DataError
from bise_prune.mask_search.weights import sample_weights, subgroup_weights
from bise_prune.metrics.subgroups import count_subgroups, is_aligned
from bise_prune.tuning.finetuning import _drawn, finetune


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


PLAIN = dict(optimizer="sgd", lr=0.1, momentum=0.0, weight_decay=0.0, weighting="none")


def test_a_teacher_and_a_bound_on_the_gradient_are_the_loop_written_out():
    model, teacher = network("mlp").double(), network("mlp", seed=5).double()
    batches = list(BatchLoader(in_double(biased_data(n=60)), 20))
    config = FinetuneConfig(epochs=1, distill=0.25, clip_norm=0.05, **PLAIN)
    kept = copy.deepcopy(teacher.state_dict())
    tuned = finetune(model, batches, config, teacher=teacher).model
    expected = copy.deepcopy(model).train()
    for batch in batches:
        logits, taught = expected(batch.input), teacher(batch.input).detach().softmax(1)
        divergence = (taught * (taught.log() - logits.log_softmax(1))).sum(1).mean()
        loss = 0.75 * F.cross_entropy(logits, batch.target) + 0.25 * divergence
        gradients = torch.autograd.grad(loss, list(expected.parameters()))
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert norm > 0.05
        with torch.no_grad():
            for parameter, gradient in zip(expected.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient * 0.05 / norm
    for one, other in zip(tuned.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6)  # torch divides by the norm + 1e-6
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())


def test_balanced_sampling_draws_subgroups_evenly_and_sets_by_their_conflicting_samples():
    train, more, aligned = biased_data(n=900, rho=0.9), biased_data(n=90, rho=1 / 3, seed=4), torch.arange(3)[:, None]
    weights = sample_weights(train.target, train.bias, 3, aligned, "auto", None)
    batches = _drawn(BatchLoader(train, 30), weights, aligned, more)
    numbers = [int((~is_aligned(data.target, data.bias, aligned)).sum()) for data in (train, more)]
    assert batches.shares.tolist() == numbers and len(batches) == 33
    cells = torch.zeros(9)
    for number in range(10):
        batches.set_epoch(number)
        for batch in batches:
            cells += torch.bincount(batch.target * 3 + batch.bias[:, 0], minlength=9)
    expected = cells.sum() / 9
    assert ((cells - expected).abs() < 6 * expected**0.5).all()


def test_balanced_sampling_without_bias_labels_draws_all_alike():
    data = biased_data(n=90)
    data = dataclasses.replace(data, bias=data.bias[:, :0])
    weights = sample_weights(data.target, data.bias, 3, torch.zeros(3, 0, dtype=torch.long), "none", None)
    batches = _drawn(BatchLoader(data, 30), weights, torch.zeros(3, 0, dtype=torch.long), None)
    assert batches.weights[0].tolist() == [1.0] * 90 and len(list(batches)) == 3


def test_the_strong_settings_help_and_repeat(trained):
    slim = prune(trained, random_masks(trained, images(), "tied", 1), images()).model
    val, loader = biased_loader(n=120, rho=1 / 3, seed=8), BatchLoader(biased_data(n=240, rho=0.9), 20)
    config = dataclasses.replace(STRONG, epochs=4, lr=0.01)
    one, two = (
        finetune(slim, loader, config, val, more=biased_data(n=60, rho=1 / 3, seed=9), teacher=trained)
        for _ in range(2)
    )
    assert [epoch.validation for epoch in one.history] == [epoch.validation for epoch in two.history]
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    scores = [epoch.validation.unbiased_accuracy for epoch in one.history]
    assert max(scores) > scores[0]


def test_an_augmentation_of_ones_own_replaces_the_settings():
    seen = []

    def change(images):
        seen.append(images.shape)
        return images + 1

    model, data = network("mlp"), biased_data(n=60)
    config = FinetuneConfig(epochs=1, **PLAIN)
    ours = finetune(model, BatchLoader(data, 20), config, augment=change).model
    shifted = finetune(model, BatchLoader(dataclasses.replace(data, inputs=data.inputs + 1), 20), config).model
    assert seen == [(20, 3, 8, 8)] * 3
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), shifted.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distill": 0.5}, "distillation needs a teacher"),
        ({"sampling": "balanced"}, "balanced sampling needs a BatchLoader"),
        ({"augment": "crop"}, "augment 'crop' changes images, and the inputs are none"),
    ],
)
def test_what_a_setting_needs_is_named(options, message):
    data = biased_data(n=20)
    flat = [{"input": data.inputs.flatten(1), "target": data.target, "bias": data.bias}]
    with pytest.raises(ConfigError, match=message):
        finetune(network("mlp"), flat, FinetuneConfig(epochs=1, **options))


@pytest.mark.parametrize("options", [{"distill": 2.0}, {"clip_norm": 0.0}, {"augment": "blur"}, {"sampling": "all"}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match="out of range"):
        FinetuneConfig(**options)


@pytest.mark.parametrize("sampling", ["weighted", "balanced"])
@pytest.mark.parametrize("val", ["none", "unlabelled", "labelled"])
def test_training_data_without_bias_labels_are_trained_on_alike(sampling, val):
    data = biased_data(n=60)
    bare = dataclasses.replace(data, bias=data.bias[:, :0])
    loader = {"none": None, "unlabelled": BatchLoader(bare, 20), "labelled": BatchLoader(data, 20)}[val]
    result = finetune(network("mlp"), BatchLoader(bare, 20), FinetuneConfig(epochs=1, sampling=sampling), loader)
    assert result.rule == {"none": "last", "unlabelled": "worst-class", "labelled": "best"}[val]
    assert result.history[-1].loss > 0

"""Pseudo bias labels."""

import copy

import numpy as np
import pytest
import torch
from cases import biased_data, network, torchvision_network
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from bise_prune import SearchConfig, search
from bise_prune.data import BatchLoader
from bise_prune.errors import ConfigError, DataError, ModelError
from bise_prune.models.simple_convnet import SimpleConvNet
from bise_prune.tuning import pseudo_labels
from bise_prune.tuning.pseudo_labels import (
    predicted_bias_labels,
    pseudo_bias_labels,
    untrained_copy,
    with_pseudo_labels,
)


def test_pseudo_labels_are_predictions_and_misses_are_conflicting():
    torch.manual_seed(0)
    model, train, val = SimpleConvNet(3, widths=(6, 8), kernel_size=3), biased_data(n=600, rho=0.9), biased_data(n=90)
    pseudo = pseudo_bias_labels(model, train, val, batch_size=40, lr=0.01)
    with torch.no_grad():
        predicted = model(train.inputs).argmax(1)
    assert torch.equal(pseudo.labels[0][:, 0], predicted) and pseudo.labels[1].shape == (90, 1)
    suspected, conflicting = predicted != train.target, train.bias[:, 0] != train.target
    hits = int((suspected & conflicting).sum())
    assert pseudo.num_conflicting == int(suspected.sum())
    assert pseudo.precision == pytest.approx(hits / int(suspected.sum()))
    assert pseudo.recall == pytest.approx(hits / int(conflicting.sum()))
    found = search(
        network("simple_convnet"),
        BatchLoader(with_pseudo_labels(train, pseudo.labels[0]), 50),
        SearchConfig(anneal_every=1, min_temperature=0.3, head_epochs=1),
        aligned=torch.arange(3)[:, None],
    )
    assert found.num_conflicting == (pseudo.num_conflicting,)


def test_predicted_labels_are_those_of_a_linear_classifier_on_the_features(trained):
    labelled, other = (biased_data(n=n, rho=0.5, seed=seed, biases=2) for n, seed in ((300, 1), (200, 2)))
    (found,) = predicted_bias_labels(trained.eval(), labelled, other)
    assert found.shape == (200, 2) and found.dtype == torch.int64

    def features(data):
        with torch.no_grad():
            return trained.blocks(data.inputs).mean((2, 3)).double().numpy()

    for k in range(2):
        cells = (3 * labelled.target + labelled.bias[:, k]).numpy()
        weights = 1 / np.bincount(cells)[cells]
        weights *= len(weights) / weights.sum()
        scaler = StandardScaler().fit(features(labelled), sample_weight=weights)
        oracle = LogisticRegression(C=1 / (0.01 * len(weights)), tol=1e-9, max_iter=1000)
        oracle.fit(scaler.transform(features(labelled)), labelled.bias[:, k].numpy(), sample_weight=weights)
        expected = oracle.predict(scaler.transform(features(other)))
        assert (found[:, k].numpy() == expected).mean() >= 0.99
    assert (found[:, 0] == other.bias[:, 0]).double().mean() > 0.6  # the one that the images show; chance is a third


def test_pseudo_labels_that_separate_nothing_are_warned_of():
    data = biased_data(n=300)
    constant = SimpleConvNet(3, widths=(4,), kernel_size=3)
    with torch.no_grad():
        constant.head.weight.zero_()
        constant.head.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    nothing = pseudo_bias_labels(constant, data, epochs=1, lr=1e-9)
    assert any("learned next to nothing" in warning for warning in nothing.warnings)
    easy = biased_data(n=300, rho=1.1)  # bias and class are one
    perfect = pseudo_bias_labels(
        SimpleConvNet(3, widths=(6, 8), kernel_size=3), easy, epochs=15, batch_size=20, lr=0.01
    )
    assert perfect.num_conflicting == 0 and "separates nothing" in perfect.warnings[0]
    unknown = pseudo_bias_labels(constant, data.with_bias(data.bias[:, :0]), epochs=1, lr=1e-9)
    assert unknown.precision is None and unknown.recall is None


def test_agreement_is_what_two_models_get_wrong_of_what_either_does():
    data, options = biased_data(n=600, rho=0.9), {"batch_size": 40, "lr": 0.01, "epochs": 2}
    models = []
    for seed in (0, 1, 1):
        torch.manual_seed(seed)
        models.append(SimpleConvNet(3, widths=(6, 8), kernel_size=3))
    first, second, alone = models
    pseudo = pseudo_bias_labels(first, data, second=second, seed=4, **options)
    other = pseudo_bias_labels(alone, data, seed=5, **options)
    assert other.agreement is None
    wrong, too = (set((found.labels[0][:, 0] != data.target).nonzero().flatten().tolist()) for found in (pseudo, other))
    assert pseudo.agreement == len(wrong & too) / len(wrong | too) and wrong != too


def test_the_moment_is_the_one_at_which_two_models_say_most(monkeypatch):
    """By training anew for each number of epochs."""
    monkeypatch.setattr(pseudo_labels, "_LOOKS", (1, 2, 3, 4))
    monkeypatch.setattr(pseudo_labels, "_PATIENCE", 4)
    monkeypatch.setattr(pseudo_labels, "_GAIN", 0.0)
    data, found = biased_data(n=600, rho=0.9), {}

    def labelled(epochs):
        models = []
        for seed in (0, 3):
            torch.manual_seed(seed)
            models.append(nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 3)))
        options = {"second": models[1], "epochs": epochs, "batch_size": 40, "lr": 0.01}
        return pseudo_bias_labels(models[0], data, data, **options), models

    def above_chance(model):
        predicted = model(data.inputs).argmax(1)
        accuracies = [float((predicted[data.target == y] == y).double().mean()) for y in range(3)]
        return (sum(accuracies) / 3 - 1 / 3) / (2 / 3)

    for epochs in (1, 2, 3, 4):
        pseudo, models = labelled(epochs)
        found[epochs] = pseudo.agreement * sum(map(above_chance, models)) / 2, pseudo
    chosen, _ = labelled(None)
    score, same = found[int(chosen.epochs)]
    assert score == pytest.approx(max(score for score, _ in found.values()))
    assert chosen.agreement == same.agreement and all(map(torch.equal, chosen.labels, same.labels))


def test_batch_norms_do_not_wait_for_their_running_statistics(trained):
    """They have a small momentum in some networks, and a moment is over before they fit."""
    data, models = biased_data(n=300), [copy.deepcopy(trained) for _ in range(2)]
    right = trained.eval()(data.inputs).argmax(1)
    for norm in (module for model in models for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean += 1000
        norm.momentum = 0.0
    options = {"second": models[1], "lr": 1e-9}
    found = pseudo_bias_labels(models[0], data, **options, epochs=None).labels[0][:, 0]
    late = pseudo_bias_labels(models[0], data, **options, epochs=1).labels[0][:, 0]
    assert (found == right).double().mean() > 0.9 and len(late.unique()) == 1


@pytest.mark.parametrize(
    ("scores", "best"),
    [((0.9, 0.8, 0.7), 1), ((0.5, 0.4, 0.6, 0.5), 3), ((0.1, 0.0, 0.0, 0.5), 4), ((0.9, 0.905, 0.905), 1)],
)
def test_it_is_given_up_after_two_worse_moments_but_not_before_one_is_good(trained, monkeypatch, scores, best):
    monkeypatch.setattr(pseudo_labels, "_LOOKS", (1, 2, 3, 4))
    monkeypatch.setattr(pseudo_labels, "_LEAST", 0.3)  # the accuracy above chance is about .6
    looks = iter((*scores, 1.0))  # the last one is that of the labels
    monkeypatch.setattr(pseudo_labels, "_agreement", lambda *_: next(looks))
    data, models = biased_data(n=200), [copy.deepcopy(trained) for _ in range(2)]
    data.target[::4] = (data.target[::4] + 1) % 3  # which are mistakes
    pseudo = pseudo_bias_labels(models[0], data, second=models[1], epochs=None, lr=1e-9)
    assert pseudo.epochs == best and pseudo.agreement == 1 and next(looks, None) is None


def test_a_moment_without_mistakes_says_nothing(trained, monkeypatch):
    def predicted(training, data):
        learned = training.epochs > 0.25
        return torch.where((torch.arange(len(data)) % 4 == 0) & (not learned), (data.target + 1) % 3, data.target)

    monkeypatch.setattr(pseudo_labels._Training, "predicted", predicted)
    data, models = biased_data(n=800), [copy.deepcopy(trained) for _ in range(2)]
    pseudo = pseudo_bias_labels(models[0], data, second=models[1], epochs=None)
    assert pseudo.epochs == 0.125 and pseudo.num_conflicting == 200


def test_two_models_are_needed_to_find_the_moment(trained):
    with pytest.raises(ConfigError, match="two networks are needed"):
        pseudo_bias_labels(copy.deepcopy(trained), biased_data(), epochs=None)


def test_a_class_that_is_never_predicted_is_warned_of(trained):
    """Two models agree on its samples, but these are no exceptions."""
    data, models = biased_data(n=300), [copy.deepcopy(trained) for _ in range(2)]
    for model in models:
        with torch.no_grad():
            model.head.bias[2] = -99.0
    pseudo = pseudo_bias_labels(models[0], data, second=models[1], lr=1e-9)
    assert pseudo.agreement > 0.7 and not pseudo.is_trusted
    assert [warning for warning in pseudo.warnings if "100% of the training samples of class 2" in warning]


def test_models_that_disagree_are_warned_of():
    data = biased_data(n=300)
    constant = []
    for logits in ([9.0, 0.0, 0.0], [0.0, 9.0, 0.0]):
        constant.append(SimpleConvNet(3, widths=(4,), kernel_size=3))
        with torch.no_grad():
            constant[-1].head.weight.zero_()
            constant[-1].head.bias.copy_(torch.tensor(logits))
    pseudo = pseudo_bias_labels(constant[0], data, second=constant[1], lr=1e-9)
    share = int((data.target == 2).sum()) / 300
    assert pseudo.agreement == share and not pseudo.is_trusted  # both have learned nothing as well
    assert pseudo.warnings[-1].startswith(f"two identification models share {share:.0%} of the samples")


def test_an_untrained_copy_has_new_weights():
    model = torchvision_network("resnet18")
    fresh = untrained_copy(model, seed=3)
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True) if a.ndim > 1)
    assert all(
        torch.equal(a, b) for a, b in zip(untrained_copy(model, 3).parameters(), fresh.parameters(), strict=True)
    )

    class Token(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.token = torch.nn.Parameter(torch.zeros(3))

    with pytest.raises(ModelError, match="no untrained copy of Token: Token cannot reset"):
        untrained_copy(Token())
    with pytest.raises(DataError, match=r"shape \(3, 1\) for 120 samples"):
        with_pseudo_labels(biased_data(), torch.zeros(3, 1, dtype=torch.long))

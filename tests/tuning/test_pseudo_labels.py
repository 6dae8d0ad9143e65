"""Pseudo bias labels."""

import numpy as np
import pytest
import torch
from cases import biased_data, network, torchvision_network
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from bise_prune import SearchConfig, search
from bise_prune.data import BatchLoader
from bise_prune.errors import DataError, ModelError
from bise_prune.models.simple_convnet import SimpleConvNet
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
    data, options = biased_data(n=600, rho=0.9), {"batch_size": 40, "lr": 0.01}
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
    assert pseudo.agreement > 0.7 and not pseudo.warnings and pseudo.is_trusted  # both have learned the bias


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
    assert pseudo.agreement == share and not pseudo.is_trusted
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

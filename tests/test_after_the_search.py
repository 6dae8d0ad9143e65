"""Finetuning, pseudo labels, wrong labels, other criteria, the threshold curve, the probe and FFW."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import biased_data, biased_loader, images, network, random_masks, torchvision_network

from bise_prune import SearchConfig, apply_masks, evaluate, gate_sites, prune, search
from bise_prune.baselines.ffw import ffw, weight_gate
from bise_prune.baselines.magnitude import magnitude_masks
from bise_prune.baselines.random_scores import random_masks as random_scores
from bise_prune.baselines.taylor import taylor_masks
from bise_prune.config import FinetuneConfig
from bise_prune.data import BatchLoader
from bise_prune.data.noise import noisy_bias_labels
from bise_prune.diagnostics.probe import probe_bias
from bise_prune.diagnostics.sweep import threshold_sweep
from bise_prune.errors import BiseError, ConfigError, DataError, ModelError
from bise_prune.mask_search.weights import subgroup_weights
from bise_prune.metrics.subgroups import aligned_values, count_subgroups
from bise_prune.models.simple_convnet import SimpleConvNet
from bise_prune.tuning.finetuning import finetune
from bise_prune.tuning.pseudo_labels import pseudo_bias_labels, untrained_copy, with_pseudo_labels
from bise_prune.tuning.vanilla import train_vanilla


@pytest.fixture(scope="module")
def trained():
    """A network that has learned the bias rather than the class."""
    torch.manual_seed(0)
    model = SimpleConvNet(3, widths=(6, 8, 10), kernel_size=3)
    loader = BatchLoader(biased_data(n=240, rho=0.9), 20, shuffle=True)
    train_vanilla(model, loader, torch.optim.Adam(model.parameters(), lr=0.01), epochs=6)
    return model


# -- finetuning --------------------------------------------------------------------------------------


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


# -- pseudo bias labels ------------------------------------------------------------------------------


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


# -- wrong bias labels -------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_noise_replaces_exactly_its_share_by_other_values(share):
    bias = biased_data(n=400, biases=2).bias
    noisy = noisy_bias_labels(bias, share, torch.Generator().manual_seed(0))
    assert ((noisy != bias).sum(0) == round(400 * share)).all()
    assert noisy.min() >= 0 and noisy.max() <= bias.max()
    again = noisy_bias_labels(bias, share, torch.Generator().manual_seed(0))
    assert torch.equal(noisy, again)
    with pytest.raises(ConfigError, match=r"share of noisy bias labels = 1\.5"):
        noisy_bias_labels(bias, 1.5, torch.Generator())


# -- criteria ----------------------------------------------------------------------------------------


def test_magnitudes_are_norms_of_filters():
    model = network("simple_convnet")
    masks = magnitude_masks(model, images())
    for i in range(3):
        weight = model.blocks[i][0].weight
        expected = torch.stack([filter_.square().sum().sqrt() for filter_ in weight])
        assert torch.allclose(masks.logits[f"blocks.{i}.0"], expected)
    tied = network("resnet")
    scores = magnitude_masks(tied, images())
    site = next(site for site in gate_sites(tied, images()) if len({call.layer for call in site.calls}) > 1)
    squares = sum(
        tied.get_submodule(layer).weight.flatten(1).square().sum(1)
        for layer in dict.fromkeys(call.layer for call in site.calls)
    )
    assert torch.allclose(scores.logits[site.name], squares.sqrt())


def test_taylor_scores_estimate_what_closing_a_channel_does(trained):
    """Against the change of the loss when one gate is lowered a little."""
    loader = biased_loader(n=60)
    trained.zero_grad()
    scores = taylor_masks(trained, loader)
    sites = gate_sites(trained, images())
    inputs, target = loader.data.inputs.double(), loader.data.target
    model = copy.deepcopy(trained).double()

    def loss(name, channel, value):
        keep = {site.name: torch.ones(site.num_channels) for site in sites}
        keep[name][channel] = value
        from bise_prune.gates.gated_model import constant_gates

        with torch.no_grad():
            return float(F.cross_entropy(constant_gates(model, sites, keep)(inputs), target))

    for site in sites:
        for channel in (0, site.num_channels - 1):
            slope = (loss(site.name, channel, 1 + 1e-4) - loss(site.name, channel, 1 - 1e-4)) / 2e-4
            assert scores.logits[site.name][channel].item() == pytest.approx(abs(slope), rel=1e-3, abs=1e-6)
    assert all(parameter.grad is None for parameter in trained.parameters())


def test_criteria_prune_to_a_target():
    trained = SimpleConvNet(3, widths=(24, 32, 40), kernel_size=3).eval()
    for masks in (
        random_scores(trained, images(), seed=1),
        magnitude_masks(trained, images()),
        taylor_masks(trained, biased_loader()),
    ):
        plan = prune(trained, masks, images(), 0.5).plan
        assert abs(plan.sparsity - 0.5) <= 0.01
    first, again, other = (random_scores(trained, images(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.logits["blocks.0.0"], again.logits["blocks.0.0"])
    assert not torch.equal(first.logits["blocks.0.0"], other.logits["blocks.0.0"])


# -- the curve over thresholds -----------------------------------------------------------------------


def test_the_sweep_goes_from_the_dense_network_to_none(trained):
    masks, loader = random_masks(trained, images(), "tied", 2), biased_loader(n=90)
    aligned = aligned_values(loader.data.target, loader.data.bias, 3)
    points = threshold_sweep(trained, masks, loader, aligned, images(), zetas=(0, 0.2, 0.5, 0.8, 1))
    assert [point.closed for point in points] == sorted(point.closed for point in points)
    assert points[0].closed == 0 and points[0].sparsity == 0 and points[0].flops == 1
    assert points[0].evaluation == evaluate(trained, loader, aligned)
    assert points[2].evaluation == evaluate(apply_masks(trained, masks, images()), loader, aligned)
    assert points[2].sparsity == pytest.approx(prune(trained, masks, images()).plan.sparsity)
    by_hand = sum(int((torch.sigmoid(logits) < 0.8).sum()) for logits in masks.logits.values())
    assert points[3].closed == by_hand
    assert points[4].closed == masks.num_channels and points[4].sparsity is None
    with pytest.raises(ConfigError, match=r"zetas = \[2\]"):
        threshold_sweep(trained, masks, loader, aligned, images(), zetas=(2,))


# -- the probe ---------------------------------------------------------------------------------------


def test_a_probe_reads_a_bias_that_is_there_and_none_that_is_not(trained):
    train, test = biased_loader(n=300, rho=1 / 3, seed=4), biased_loader(n=150, rho=1 / 3, seed=5)
    read = probe_bias(trained, train, test, epochs=60)
    assert read.accuracy[0] > 0.55 > 0.45 > read.majority[0] and read.n == 150
    closed = random_masks(trained, images(), "tied")
    for logits in closed.logits.values():
        logits.fill_(-1.0)
    blind = probe_bias(apply_masks(trained, closed, images()), train, test, epochs=5)
    assert blind.accuracy[0] <= blind.majority[0] + 0.02  # no feature is left
    assert probe_bias(trained, train, test, epochs=60) == read
    with pytest.raises(DataError, match="samples with bias labels"):
        unlabelled = train.data.with_bias(train.data.bias[:, :0])
        probe_bias(trained, BatchLoader(unlabelled, 20), test)


# -- FFW ---------------------------------------------------------------------------------------------


def test_ffw_prunes_weights_and_nothing_else(trained):
    before = copy.deepcopy(trained.state_dict())
    temperatures = []
    found = ffw(
        trained, biased_loader(n=120, rho=1 / 3), lr=0.05, max_epochs=12,
        on_epoch=lambda epoch, temperature, information: temperatures.append(temperature),
    )  # fmt: skip
    assert len(found.information) == 12 and temperatures[0] == 1
    zeroed = 0
    for name, tensor in found.model.state_dict().items():
        gone = (tensor == 0) & (before[name] != 0)
        zeroed += int(gone.sum())
        assert torch.equal(tensor[~gone], before[name][~gone])
        assert not bool(gone.any()) or (name.startswith("blocks") and name.endswith("0.weight"))
    assert 0 < found.sparsity == zeroed / sum(p.numel() for p in trained.parameters())
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    with pytest.raises(ConfigError, match="FFW takes one bias, the data have 2"):
        ffw(trained, biased_loader(biases=2))


def test_ffw_cools_down_when_the_information_stalls(trained):
    temperatures = []
    ffw(
        trained, biased_loader(n=40), lr=1e-12, max_epochs=200, min_temperature=0.05,
        on_epoch=lambda epoch, temperature, information: temperatures.append(temperature),
    )  # fmt: skip
    assert temperatures == sorted(temperatures, reverse=True) and set(temperatures) == {1.0, 0.1}
    assert len(temperatures) < 60


def test_the_weight_gate_of_ffw():
    logits = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    gate = weight_gate(logits, 0.5)
    assert gate.tolist() == pytest.approx([2 / (1 + torch.e**4), 1, 1])
    gate.sum().backward()
    assert logits.grad[0] > 0 and logits.grad[1] > 0 and logits.grad[2] == 0  # all start at 0 and must be able to leave

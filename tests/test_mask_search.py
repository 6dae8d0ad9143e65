import copy

import pytest
import torch
from cases import biased_data, biased_loader, images, network
from oracles import bias_information as slow_information
from oracles import literal_algorithm_1

from bise_prune import MaskSet, SearchConfig, apply_masks, search
from bise_prune.data import BatchLoader
from bise_prune.errors import BiseError, ConfigError, DataError
from bise_prune.mask_search.mutual_information import bias_information
from bise_prune.mask_search.objective import objective_of, reweighted_cross_entropy
from bise_prune.mask_search.schedule import temperatures
from bise_prune.mask_search.weights import alignment_weights, sample_weights, subgroup_weights
from bise_prune.metrics.accuracy import evaluate
from bise_prune.metrics.subgroups import aligned_bias_values, aligned_values, count_subgroups

SHORT = dict(anneal_every=2, min_temperature=0.2, head_epochs=3)

# -- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rho", "conflicting"), [(0.99, 90), (0.995, 180), (0.997, 300), (0.999, 900), (0.98, 45), (0.95, 18)]
)
def test_weights_of_equation_4(rho, conflicting):
    weights = alignment_weights([rho], 10)
    assert weights[0].item() == pytest.approx(conflicting)
    assert weights[1].item() == pytest.approx(1 / (10 * rho))


def test_weights_of_equation_b9():
    weights = alignment_weights([0.99, 0.95], 10)
    assert [round(weights[flags].item(), 2) for flags in ((1, 1), (1, 0), (0, 1), (0, 0))] == [1.06, 20.2, 105.26, 2000]


def test_subgroup_weights_give_celebas_of_equation_b8():
    # CelebA's training split without the 277 validation images of each group: dark or blond, female or male.
    counts = torch.tensor([[71629 - 277, 66874 - 277], [22880 - 277, 1387 - 277]])
    weights = subgroup_weights(counts)
    assert weights.flatten().tolist() == pytest.approx([0.566, 0.607, 1.788, 36.41], rel=1e-3)
    assert (weights * counts).sum().item() == pytest.approx(counts.sum().item())


def test_subgroup_weights_equal_equation_4_for_even_conflicts():
    counts = torch.full((10, 10), 1)
    counts.fill_diagonal_(891)  # rho = .99
    weights, expected = subgroup_weights(counts), alignment_weights([0.99], 10)
    assert weights[0, 0].item() == pytest.approx(expected[1].item())
    assert weights[0, 1].item() == pytest.approx(expected[0].item())


def test_empty_subgroups_count_as_one():
    assert subgroup_weights(torch.tensor([[5, 0], [1, 4]])).tolist() == [[0.5, 2.5], [2.5, 0.625]]


def test_labels_that_never_occur_do_not_count():
    counts = torch.tensor([[0, 4, 1], [0, 2, 1]])
    assert torch.equal(subgroup_weights(counts)[:, 1:], subgroup_weights(counts[:, 1:]))


def test_weights_follow_the_labels():
    target, bias = torch.tensor([0, 0, 1, 1]), torch.tensor([[0], [1], [1], [1]])
    aligned = aligned_values(target, bias, 2)
    weights = sample_weights(target, bias, 2, aligned, "subgroup", None)
    assert weights(target, bias).tolist() == [1, 1, 0.5, 0.5]
    both = torch.cat([bias, 1 - bias], 1)
    product = sample_weights(target, both, 2, aligned_values(target, both, 2), "alignment", (0.9, 0.8))
    assert product(target, both).tolist() == pytest.approx([1 / 0.72, 1 / 0.02, 1 / 0.72, 1 / 0.72])
    assert sample_weights(target, both, 2, aligned, "none", None)(target, both).tolist() == [1] * 4


def test_weightings_that_do_not_fit_are_refused():
    target, bias = torch.tensor([0, 1]), torch.tensor([[0, 1], [1, 0]])
    aligned = aligned_values(target, bias, 2)
    with pytest.raises(ConfigError, match="takes one bias, the data have 2"):
        sample_weights(target, bias, 2, aligned, "subgroup", None)
    with pytest.raises(ConfigError, match="rho has 1 values, the data have 2 biases"):
        sample_weights(target, bias, 2, aligned, "alignment", (0.9,))


def test_alignment_is_association_not_frequency():
    # CelebA: dark hair is aligned with men although most dark-haired people in it are women.
    counts = torch.tensor([[66874, 71629], [1387, 22880]])
    assert aligned_bias_values(counts).tolist() == [0, 1]
    assert count_subgroups(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0]), 2, 2).tolist() == [[0, 1], [2, 0]]


# -- mutual information and objective -------------------------------------------------------------


@pytest.mark.parametrize(
    ("bias", "probs", "value"),
    [
        ([0, 1], [[0.9, 0.1], [0.2, 0.8]], 0.3973126),
        ([0, 1], [[1.0, 0.0], [0.0, 1.0]], 1.0),
        ([0, 1], [[0.5, 0.5], [0.5, 0.5]], 0.0),
        ([1, 1], [[0.9, 0.1], [0.2, 0.8]], 0.0),
        ([0, 1, 2, 2], [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.3, 0.3, 0.4]], 0.1949797),
    ],
)
def test_information_golden_values(bias, probs, value):
    result = bias_information(torch.tensor(probs, dtype=torch.float64), torch.tensor(bias))
    assert result.item() == pytest.approx(value, abs=1e-7)


def test_information_against_its_definition():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        n, classes = (
            int(torch.randint(2, 30, (), generator=generator)),
            int(torch.randint(2, 6, (), generator=generator)),
        )
        probs = torch.softmax(3 * torch.randn(n, classes, generator=generator, dtype=torch.float64), 1)
        bias = torch.randint(0, classes, (n,), generator=generator)
        value = bias_information(probs, bias).item()
        assert value == pytest.approx(slow_information(probs, bias), abs=1e-12)
        assert -1e-12 <= value <= 1 + 1e-12
        order, relabelled = torch.randperm(n, generator=generator), torch.randperm(classes, generator=generator)
        assert bias_information(probs[order], relabelled[bias[order]]).item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("n", [0, 1])
def test_information_is_silent_below_two_samples(n):
    probs = torch.full((n, 3), 1 / 3, requires_grad=True)
    value = bias_information(probs, torch.zeros(n, dtype=torch.long))
    value.backward()
    assert value.item() == 0
    assert probs.grad.abs().sum().item() == 0


def test_information_gradient_is_right():
    bias = torch.tensor([0, 1, 1, 2])
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: bias_information(torch.softmax(z, 1), bias), logits)


def test_cross_entropy_is_divided_by_the_batch():
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    weights = torch.tensor([1.0, 2, 3, 4, 5])
    each = -torch.log_softmax(logits, 1)[torch.arange(5), target]
    assert reweighted_cross_entropy(logits, target, weights).item() == pytest.approx((each * weights).sum().item() / 5)


def test_objective_terms():
    generator = torch.Generator().manual_seed(1)
    logits, head = (torch.randn(8, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    target = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    bias = torch.tensor([0, 1, 2, 1, 2, 0, 2, 1])[:, None]
    aligned, weights = bias == target[:, None], torch.ones(8, dtype=torch.float64)
    loss = reweighted_cross_entropy(logits, target, weights)
    terms = objective_of(loss, 8, [head], bias, ~aligned, mi_weight=0.5)
    conflicting = ~aligned[:, 0]
    expected = slow_information(torch.softmax(head[conflicting], 1), bias[conflicting, 0])
    assert terms.mutual_information.item() == pytest.approx(expected)
    assert terms.num_conflicting.tolist() == [4]
    assert terms.total.item() == pytest.approx(terms.cross_entropy.item() + 0.5 * expected)
    without = objective_of(loss, 8, [head], bias, ~aligned, mi_weight=0.0)
    assert without.total.item() == reweighted_cross_entropy(logits, target, weights).item()
    two = objective_of(loss, 8, [head] * 2, bias.repeat(1, 2), ~aligned.repeat(1, 2), mi_weight=1.0)
    assert two.mutual_information.item() == pytest.approx(2 * expected)


def test_the_papers_schedule_has_100_epochs():
    values = temperatures(10, 0.5, 1e-3)
    assert len(values) == 100
    assert values[0] == 1 and values[10] == 0.5 and values[-1] == 2.0**-9


# -- Algorithm 1 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mi_weight", [0.0, 1.0])
def test_search_equals_the_literal_algorithm(mi_weight):
    model = network("mlp").double()
    data = biased_data(n=60, rho=0.7)
    batches = [
        {"input": data.inputs[rows].double(), "target": data.target[rows], "bias": data.bias[rows, 0]}
        for rows in torch.arange(60).split(20)
    ]
    table = subgroup_weights(count_subgroups(data.target, data.bias[:, 0], 3, 3))
    literal = literal_algorithm_1(
        model, batches, head_epochs=4, kappa=0.5, upsilon=3, tau_min=0.05, gamma=mi_weight, seed=7,
        weights={(y, b): float(table[y, b]) for y in range(3) for b in range(3)},
    )  # fmt: skip
    config = SearchConfig(head_epochs=4, anneal_every=3, min_temperature=0.05, mi_weight=mi_weight, seed=7)
    found = search(model, batches, config)
    assert len(found.history) == 15
    for expected, logits in zip(literal.values(), found.last.logits.values(), strict=True):
        assert torch.equal(expected >= 0, logits >= 0)
        assert torch.allclose(expected, logits, rtol=0, atol=1e-10)
    assert 0 < found.last.num_closed < found.last.num_channels


def test_search_leaves_the_model_alone_and_learns_masks_only():
    model = network("resnet").train()
    before = copy.deepcopy(model.state_dict())
    found = search(model, biased_loader(), SearchConfig(**SHORT))
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert any(bool((logits != 0).any()) for logits in found.last.logits.values())


def test_equal_seeds_give_equal_masks_and_other_seeds_do_not():
    model, loader = network("simple_convnet"), biased_loader()
    first, again, other = (search(model, loader, SearchConfig(**SHORT, seed=seed)).last for seed in (1, 1, 2))
    assert all(torch.equal(first.logits[name], again.logits[name]) for name in first.logits)
    assert any(not torch.equal(first.logits[name], other.logits[name]) for name in first.logits)


def test_best_is_the_latest_epoch_with_the_highest_unbiased_accuracy():
    model, val = network("simple_convnet"), biased_loader(n=90, rho=0.4, seed=5)
    found = search(model, biased_loader(), SearchConfig(**SHORT), val)
    scores = [record.validation.unbiased_accuracy for record in found.history]
    assert found.best_epoch == max(range(1, len(scores) + 1), key=lambda epoch: (scores[epoch - 1], epoch))
    again = evaluate(apply_masks(model, found.best, images()), val, found.aligned)
    assert again.unbiased_accuracy == pytest.approx(max(scores))
    assert found.best.metadata["epoch"] == str(found.best_epoch)


def test_without_validation_best_is_last():
    found = search(network("mlp"), biased_loader(), SearchConfig(**SHORT))
    assert found.best_epoch == len(found.history)
    assert all(torch.equal(found.best.logits[name], found.last.logits[name]) for name in found.last.logits)


def test_masks_may_start_above_zero():
    model, loader = network("simple_convnet"), biased_loader()
    first = [
        search(model, loader, SearchConfig(**SHORT, initial_logit=start)).history[0].closed for start in (0.0, 0.1, 9.0)
    ]
    assert first[0] > first[1] >= first[2] == 0


def test_history_records_every_epoch():
    loader = biased_loader(batch_size=2, rho=0.8)
    config = SearchConfig(**SHORT)
    found = search(network("mlp"), loader, config)
    assert [record.temperature for record in found.history] == temperatures(2, 0.5, 0.2)
    conflicting = (loader.data.target != loader.data.bias[:, 0]).view(-1, 2).sum(1)
    assert found.history[0].silent_share == pytest.approx((conflicting <= 1).double().mean().item())
    for record in found.history:
        assert record.objective == pytest.approx(record.cross_entropy + record.mutual_information, rel=1e-5)
    assert found.history[-1].closed == found.last.num_closed
    assert sum(record.mask_flips for record in found.history) >= found.last.num_closed
    assert found.num_conflicting == (int(conflicting.sum()),)


@pytest.mark.parametrize("fields", ["dict", "named tuple"])
def test_loaders_may_yield_dicts_or_named_tuples(fields):
    batches = list(biased_loader())
    as_dicts = [{"input": b.input, "target": b.target, "bias": b.bias[:, 0]} for b in batches]
    found = search(network("mlp"), as_dicts if fields == "dict" else batches, SearchConfig(**SHORT))
    assert len(found.history) == 6


def test_several_biases():
    loader = biased_loader(biases=2, n=150)
    found = search(network("mlp"), loader, SearchConfig(**SHORT), loader)
    assert found.aligned.tolist() == [[0, 0], [1, 1], [2, 2]]
    names = [group.name for group in found.history[0].validation.subgroups]
    assert names[0] == "aligned, aligned" and len(names) == 4


def test_a_stopped_search_resumes_with_the_same_result(tmp_path):
    model, val = network("simple_convnet"), biased_loader(n=60, rho=0.4, seed=3)

    def loader():
        return BatchLoader(biased_data(), 20, shuffle=True, seed=4)

    whole = search(model, loader(), SearchConfig(**SHORT), val)
    path = tmp_path / "state.pt"

    def stop(record, total):
        if record.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(model, loader(), SearchConfig(**SHORT), val, on_epoch=stop, state_path=path)
    resumed = []
    found = search(
        model, loader(), SearchConfig(**SHORT), val, on_epoch=lambda r, _: resumed.append(r.epoch), state_path=path
    )
    assert resumed == [4, 5, 6]
    assert found.history == whole.history
    for name, logits in whole.last.logits.items():
        assert torch.equal(found.last.logits[name], logits)
        assert torch.equal(found.best.logits[name], whole.best.logits[name])
    with pytest.raises(BiseError, match="other settings, data or weights"):
        search(model, loader(), SearchConfig(**SHORT, seed=9), val, state_path=path)
    path.write_bytes(b"nothing")
    with pytest.raises(BiseError, match="no readable search state"):
        search(model, loader(), SearchConfig(**SHORT), val, state_path=path)


def test_data_that_cannot_be_debiased_are_refused():
    with pytest.raises(DataError, match="no bias-conflicting sample among 120"):
        search(network("mlp"), biased_loader(rho=1.1), SearchConfig(**SHORT))
    with pytest.raises(DataError, match="labels run from 0 to 3, but the model has 3 classes"):
        search(network("mlp"), biased_loader(classes=4), SearchConfig(**SHORT))
    with pytest.raises(DataError, match="loader is empty"):
        search(network("mlp"), [], SearchConfig(**SHORT))
    with pytest.raises(DataError, match="give a loader, not an iterator"):
        search(network("mlp"), iter(biased_loader()), SearchConfig(**SHORT))
    with pytest.raises(DataError, match="no tensor field 'bias'"):
        search(network("mlp"), [{"input": images(), "target": torch.zeros(2)}], SearchConfig(**SHORT))


def test_nan_stops_the_search():
    data = biased_data()
    data.inputs[3] = float("nan")
    with pytest.raises(BiseError, match="in epoch 1: check the inputs for NaN"):
        search(network("mlp"), BatchLoader(data, 20), SearchConfig(**SHORT))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"anneal_factor": 1.0}, r"anneal_factor = 1.0 is out of range: expected a number in \(0, 1\)"),
        ({"placement": "all"}, "placement = 'all'"),
        ({"anneal_every": 0}, "anneal_every = 0"),
        ({"mi_weight": -1.0}, "mi_weight = -1.0"),
        ({"rho": (1.5,)}, "rho = 1.5"),
        ({"rho": (0.9,), "weighting": "subgroup"}, "weighting='alignment'"),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(ConfigError, match=message):
        SearchConfig(**setting)


def test_mask_sets_are_saved_and_loaded(tmp_path):
    masks = MaskSet({"b": torch.tensor([0.5, -0.5]), "a": torch.tensor([1.0])}, {"epoch": "3"})
    masks.save(tmp_path / "masks.safetensors")
    loaded = MaskSet.load(tmp_path / "masks.safetensors")
    assert list(loaded.logits) == ["b", "a"]
    assert all(torch.equal(loaded.logits[name], masks.logits[name]) for name in masks.logits)
    assert loaded.metadata == {"epoch": "3"}
    assert (loaded.num_channels, loaded.num_closed) == (3, 1)

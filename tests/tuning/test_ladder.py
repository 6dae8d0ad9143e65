"""The rungs: what each may change, that the network made is the one that was judged, and who decides."""

import copy
from dataclasses import replace

import pytest
import torch
from cases import biased_data
from torch import nn

from bise_prune import evaluate
from bise_prune.data import BatchLoader
from bise_prune.errors import ModelError
from bise_prune.mask_search.refitted import refitted_head
from bise_prune.tuning.ladder import Ladder, Norms, Rung
from bise_prune.tuning.vanilla import train_vanilla

ALIGNED = torch.arange(3)[:, None]
FIT, CHOOSE, TEST = (biased_data(n=600, rho=0.34, seed=seed) for seed in (1, 2, 3))


@pytest.fixture(scope="module")
def model():
    """A network with batch norm that has learned the classes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    train_vanilla(model, BatchLoader(FIT, 30, shuffle=True), torch.optim.Adam(model.parameters(), lr=0.01), epochs=6)
    return model.eval()


def unbiased(model, data=TEST):
    return evaluate(model, BatchLoader(data, 200), ALIGNED).unbiased_accuracy


def damaged(model, what):
    """A copy with one part of it spoiled."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        if what is Rung.SHIFT:
            copied[5].bias += torch.tensor([6.0, -6.0, 0.0])
        elif what is Rung.NORMS:  # so that all channels are 0 behind it
            copied[1].running_mean += 1000
        elif what is Rung.HEAD:
            copied[5].weight.copy_(copied[5].weight.roll(1, 0))
        elif what == "weights of norms":  # so that all samples look the same behind them
            copied[1].weight.fill_(0.0)
            copied[1].bias.fill_(0.1)
    return copied


def judged(ladder):
    return {rung: found.unbiased_accuracy for rung, found in ladder.evaluations(TEST, ALIGNED).items()}


def test_the_network_of_a_rung_is_the_one_that_was_judged(model):
    for what in (Rung.SHIFT, Rung.NORMS, Rung.HEAD, "weights of norms"):
        ladder = Ladder(damaged(model, what), FIT, CHOOSE, ALIGNED, again=CHOOSE)
        for rung, found in ladder.evaluations(TEST, ALIGNED).items():
            made = ladder.model(rung)
            assert evaluate(made, BatchLoader(TEST, 200), ALIGNED) == found, (what, rung)
            assert not made.training


@pytest.mark.parametrize("what", [Rung.SHIFT, Rung.NORMS, Rung.HEAD])
def test_each_rung_mends_what_it_may_change_and_lower_ones_do_not(model, what):
    whole, spoiled = unbiased(model), damaged(model, what)
    found = judged(Ladder(spoiled, FIT, CHOOSE, ALIGNED))
    rungs = list(Rung)
    below = rungs[rungs.index(what) - 1]
    assert found[Rung.NONE] == unbiased(spoiled) < whole - 0.1
    assert found[what] > whole - 0.03
    assert found[below] < found[what] - 0.1


def test_weights_of_norms_are_trained_where_statistics_are_not_enough(model):
    spoiled = damaged(model, "weights of norms")
    ladder = Ladder(spoiled, FIT, CHOOSE, ALIGNED)
    found = judged(ladder)
    assert ladder.steps[Rung.NORMS].norms is Norms.TRAINED
    assert found[Rung.NORMS] > max(found[Rung.SHIFT], unbiased(ladder.models[Norms.STATISTICS])) + 0.05
    assert ladder.num_changed(Rung.NORMS) in (32, 35) and found[Rung.NORMS] > unbiased(model) - 0.05


def test_what_is_changed_and_how_much(model):
    before = copy.deepcopy(model.state_dict())
    ladder = Ladder(damaged(model, Rung.SHIFT), FIT, CHOOSE, ALIGNED)
    assert ladder.steps[Rung.NONE].changes == () and ladder.num_changed(Rung.NONE) == 0
    assert ladder.steps[Rung.SHIFT].changes == (Rung.SHIFT,) and ladder.num_changed(Rung.SHIFT) == 3
    spoiled = damaged(model, Rung.SHIFT).state_dict()
    differing = {
        name for name, value in ladder.model(Rung.SHIFT).state_dict().items() if not torch.equal(value, spoiled[name])
    }
    assert differing == {"5.bias"}
    norms = Ladder(damaged(model, Rung.NORMS), FIT, CHOOSE, ALIGNED)
    assert Rung.NORMS in norms.steps[Rung.NORMS].changes and norms.num_changed(Rung.NORMS) in (16, 19)
    head = Ladder(damaged(model, Rung.HEAD), FIT, CHOOSE, ALIGNED)
    assert Rung.HEAD in head.steps[Rung.HEAD].changes and head.num_changed(Rung.HEAD) in (27, 43)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("what", [Rung.SHIFT, Rung.NORMS, Rung.HEAD, "weights of norms"])
def test_the_number_of_changes_is_counted(model, what):
    spoiled = damaged(model, what)
    ladder, before = Ladder(spoiled, FIT, CHOOSE, ALIGNED, again=CHOOSE), spoiled.state_dict()
    for rung in Rung:
        after = ladder.model(rung).state_dict()
        differing = sum(int((after[name] != before[name]).sum()) for name in before if "num_batches" not in name)
        assert ladder.num_changed(rung) == differing, rung


def test_norms_that_were_trained_before_are_for_the_rungs_that_may_change_them(model, monkeypatch):
    """They are a candidate as they are, and what their training goes on from; no rung is worse than the one below."""
    spoiled = damaged(model, "weights of norms")
    ladder = Ladder(spoiled, FIT, CHOOSE, ALIGNED, start=model)
    plain, found = Ladder(spoiled, FIT, CHOOSE, ALIGNED), judged(ladder)
    assert found[Rung.NONE] == unbiased(spoiled) and found[Rung.SHIFT] == judged(plain)[Rung.SHIFT]
    assert found[Rung.NORMS] >= unbiased(model) - 0.02
    monkeypatch.setattr("bise_prune.tuning.ladder.trained", lambda start, *_: None)
    monkeypatch.setattr("bise_prune.tuning.ladder.batch_norms", lambda model: [])
    ladder = Ladder(spoiled, FIT, CHOOSE, ALIGNED, start=model)
    step = ladder.steps[Rung.NORMS]
    assert step.norms is Norms.BEFORE and step.changes[0] is Rung.NORMS and judged(ladder)[Rung.NORMS] > 0.8
    assert ladder.num_changed(Rung.NORMS) >= 16  # weights and additive biases of the eight channels
    assert (
        evaluate(ladder.model(Rung.NORMS), BatchLoader(TEST, 200), ALIGNED).unbiased_accuracy
        == (judged(ladder)[Rung.NORMS])
    )
    worse = Ladder(model, FIT, CHOOSE, ALIGNED, start=spoiled)
    assert not any(Rung.NORMS in step.changes for step in worse.steps.values())
    assert judged(worse)[Rung.NORMS] >= judged(worse)[Rung.NONE]


def test_their_last_layer_and_widths_may_be_others(model):
    """Constants that are folded differ, and so may the number of features that the head reads."""
    start = copy.deepcopy(model)
    start[5] = nn.Linear(9, 3)
    with torch.no_grad():
        start[5].weight.copy_(torch.cat([model[5].weight, torch.zeros(3, 1)], 1))
        start[5].bias.copy_(model[5].bias)
    start.insert(5, nn.ConstantPad1d((0, 1), 0.5))
    spoiled = damaged(model, "weights of norms")
    spoiled.insert(5, nn.Identity())
    ladder = Ladder(spoiled, FIT, CHOOSE, ALIGNED, start=start)
    for rung, found in ladder.evaluations(TEST, ALIGNED).items():
        assert evaluate(ladder.model(rung), BatchLoader(TEST, 200), ALIGNED) == found
    step = ladder.steps[Rung.HEAD]
    assert step.norms is not Norms.OWN and step.head.shape == (3, 10)
    assert ladder.num_changed(Rung.HEAD) >= 27  # a weight of another shape counts as a whole


def test_the_norms_of_a_rung_can_be_given_to_the_network(model):
    spoiled = damaged(model, "weights of norms")
    ladder = Ladder(spoiled, FIT, CHOOSE, ALIGNED)
    changed = ladder.changed_norms(Rung.NORMS)
    assert {"1.weight", "1.bias"} <= changed.keys() and not ladder.changed_norms(Rung.NONE)
    given = copy.deepcopy(spoiled)
    given.load_state_dict(changed, strict=False)
    norms = ladder.models[ladder.steps[Rung.NORMS].norms]
    assert torch.equal(given(TEST.inputs), norms(TEST.inputs))


def test_a_gain_within_the_noise_changes_nothing(model):
    few = CHOOSE.subset(torch.arange(12))
    assert all(not step.changes for step in Ladder(model, FIT, few, ALIGNED).steps.values())


def test_other_samples_decide(model):
    """A shift that helps the samples it is fitted to and harms the others is not made."""
    upside_down = copy.deepcopy(CHOOSE)
    spoiled = damaged(model, Rung.SHIFT)
    predicted = spoiled(CHOOSE.inputs).argmax(1)
    agreeing = type(CHOOSE)(upside_down.inputs, predicted, upside_down.bias)
    assert not Ladder(spoiled, FIT, agreeing, ALIGNED).steps[Rung.SHIFT].changes
    assert Ladder(spoiled, FIT, None, ALIGNED).steps[Rung.SHIFT].changes  # nobody else to ask


@pytest.mark.parametrize("rule", ["best", "worst-group", "accuracy", "worst-class", "last"])
def test_any_rule_decides(model, rule):
    ladder = Ladder(damaged(model, Rung.SHIFT), FIT, CHOOSE, ALIGNED, rule)
    assert judged(ladder)[Rung.SHIFT] > unbiased(model) - 0.05


def test_without_bias_labels_the_classes_count(model):
    fit, choose = (data.with_bias(data.bias[:, :0]) for data in (FIT, CHOOSE))
    ladder = Ladder(damaged(model, Rung.SHIFT), fit, choose, ALIGNED, "worst-class")
    assert judged(ladder)[Rung.SHIFT] > unbiased(model) - 0.05


def test_networks_that_have_less_to_change():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 3, bias=False)).eval()
    ladder = Ladder(plain, FIT, CHOOSE, ALIGNED)
    assert all(not step.changes for step in ladder.steps.values())  # no norms, no place for offsets
    with pytest.raises(ModelError, match="does not end in a linear layer"):
        Ladder(nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.Softmax(1)).eval(), FIT, CHOOSE, ALIGNED)


def test_of_many_samples_as_many_of_each_subgroup_are_taken_as_there_are_or_fit_in(model, monkeypatch):
    monkeypatch.setattr("bise_prune.tuning.ladder.MOST_FITTED", 300)
    many = biased_data(n=3000, rho=0.98, seed=4)
    ladder = Ladder(damaged(model, Rung.HEAD), many, CHOOSE, ALIGNED)
    taken = ladder._some_of(many)
    there, found = (torch.bincount(3 * data.target + data.bias[:, 0], minlength=9).view(3, 3) for data in (many, taken))
    rare = ~torch.eye(3, dtype=torch.bool)
    assert torch.equal(found[rare], there[rare]) and int(there[rare].max()) < 25  # without repetition
    common = found.diag()
    assert len(taken) == 300 and int(common.max() - common.min()) <= 1
    assert judged(ladder)[Rung.HEAD] > 0.5


def test_a_head_that_is_fitted_again_is_judged_by_as_many_samples(model):
    """Each half of the samples that decide by a fit to all others: checked against fits by hand."""
    few, spoiled = FIT.subset(torch.arange(24)), damaged(model, Rung.HEAD)
    ladder = Ladder(spoiled, few, CHOOSE, ALIGNED, again=CHOOSE)
    seen, others = ladder._all_seen(CHOOSE, [Norms.OWN])[Norms.OWN], ladder._all_seen(few, [Norms.OWN])
    step = replace(ladder._unchanged(Norms.OWN), part=Rung.HEAD, penalty=0.01)
    features = spoiled[:5](CHOOSE.inputs).detach()
    cells, found = 3 * CHOOSE.target + CHOOSE.bias[:, 0], torch.zeros(600, dtype=torch.bool)
    first = torch.tensor([int((cells[:i] == cells[i]).sum()) % 2 == 0 for i in range(600)])
    for half in (first, ~first):
        inputs = torch.cat([spoiled[:5](few.inputs).detach(), features[~half]])
        target, bias = torch.cat([few.target, CHOOSE.target[~half]]), torch.cat([few.bias, CHOOSE.bias[~half]])
        counts = torch.bincount(3 * target + bias[:, 0], minlength=9)
        weights = 1 / counts[3 * target + bias[:, 0]].double()
        head = refitted_head(inputs, target, 3, weights, 0.01)
        found[half] = (features[half] @ head[:, :-1].T + head[:, -1]).argmax(1) == CHOOSE.target[half]
    assert torch.equal(ladder._hits(step, seen, others), found)
    assert torch.equal(ladder._hits(step, seen, None), seen.hits(step))


def test_of_many_samples_a_part_decides_how_a_head_is_fitted(model, monkeypatch):
    monkeypatch.setattr("bise_prune.tuning.ladder.MOST_FITTED", 70)
    ladder = Ladder(model, FIT, CHOOSE, ALIGNED)
    few, many = (ladder._all_seen(data, [Norms.OWN])[Norms.OWN] for data in (FIT.subset(torch.arange(10)), CHOOSE))
    joined = ladder._joined(few, many, torch.arange(600) < 300)
    assert len(joined.features) == len(joined.bias) == joined.subgroups.shape[1] == 10 + 60  # every fifth of 300
    assert torch.equal(joined.target[10:], CHOOSE.target[:300:5])


def test_one_sample_of_each_subgroup_can_decide(model):
    cells = 3 * CHOOSE.target + CHOOSE.bias[:, 0]
    few = CHOOSE.subset(torch.stack([(cells == cell).nonzero()[0, 0] for cell in range(9)]))
    ladder = Ladder(damaged(model, Rung.HEAD), FIT, few, ALIGNED, again=CHOOSE)
    assert judged(ladder)[Rung.HEAD] > unbiased(model) - 0.05


def test_without_other_samples_a_penalty_is_weaker_if_halves_say_so(model, monkeypatch):
    """Checked against fits to halves by hand."""
    ladder = Ladder(damaged(model, Rung.HEAD), FIT, None, ALIGNED)
    generator = torch.Generator().manual_seed(0)
    # The small difference of two large features tells the classes apart: a strong penalty does not let it count.
    size = 20 * torch.randn(600, 1, generator=generator)
    features = torch.cat([size, size + FIT.target[:, None] + 0.1 * torch.randn(600, 1, generator=generator)], 1)
    seen = replace(ladder._all_seen(FIT, [Norms.OWN])[Norms.OWN], features=features)
    step = replace(ladder._unchanged(Norms.OWN), head=torch.zeros(3, 3), part=Rung.HEAD, penalty=0.01)
    monkeypatch.setattr(ladder, "_unchanged", lambda norms: step)
    cells = 3 * FIT.target + FIT.bias[:, 0]
    first = torch.tensor([int((cells[:i] == cells[i]).sum()) % 2 == 0 for i in range(600)])

    def accuracy(penalty):
        right = torch.zeros(600, dtype=torch.bool)
        for half in (first, ~first):
            counts = torch.bincount(cells[~half], minlength=9)
            weights = 1 / counts[cells[~half]].double()
            head = refitted_head(features[~half], FIT.target[~half], 3, weights, penalty)
            right[half] = (features[half] @ head[:, :-1].T + head[:, -1]).argmax(1) == FIT.target[half]
        return torch.stack([right[cells == cell].double().mean() for cell in range(9)]).mean()

    (found,) = ladder._weaker(step, seen)
    by_penalty = {penalty: accuracy(penalty) for penalty in (0.01, 1e-4, 1e-5, 1e-6)}
    assert by_penalty[found.penalty] == max(by_penalty.values()) > by_penalty[0.01] + 0.1
    assert ladder._weaker(replace(step, penalty=found.penalty), seen) == []  # no better than that


def test_with_other_samples_they_choose_among_the_stronger_penalties(model, monkeypatch):
    monkeypatch.setattr(Ladder, "_weaker", lambda *arguments: pytest.fail("they are there to be asked"))
    assert judged(Ladder(damaged(model, Rung.HEAD), FIT, CHOOSE, ALIGNED))[Rung.HEAD] > 0.5


def test_without_other_samples_norms_and_head_are_changed_although_the_network_knows_all_by_heart(model):
    """Unless there are no bias labels, by which the changes could be balanced."""
    known = type(FIT)(FIT.inputs, model(FIT.inputs).argmax(1), FIT.bias)
    ladder = Ladder(model, known, None, ALIGNED)
    assert not ladder.steps[Rung.SHIFT].changes
    assert ladder.steps[Rung.NORMS].norms is ladder.steps[Rung.HEAD].norms is Norms.TRAINED
    assert ladder.steps[Rung.HEAD].part is Rung.HEAD
    assert not any(step.changes for step in Ladder(model, known, known, ALIGNED).steps.values())  # no gain
    without = known.with_bias(known.bias[:, :0])
    assert not any(step.changes for step in Ladder(model, without, None, ALIGNED).steps.values())


def test_without_other_samples_what_harms_is_left(model, monkeypatch):
    monkeypatch.setattr("bise_prune.tuning.ladder.trained", lambda *arguments: damaged(model, Rung.HEAD))
    monkeypatch.setattr("bise_prune.tuning.ladder.reestimated", lambda *arguments: damaged(model, Rung.HEAD))
    monkeypatch.setattr(Ladder, "_fitted", lambda self, step, samples: replace(step, head=step.head.roll(1, 0)))
    assert not any(step.changes for step in Ladder(model, FIT, None, ALIGNED).steps.values())

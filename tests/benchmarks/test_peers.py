"""Other methods come to the same size, or to what their own libraries say."""

import dataclasses

import pytest
import torch
from tables import methods, peers
from tiny_benchmark import case_in, tiny

from bise_prune import measure


@pytest.mark.parametrize("name", ["magnitude", "lamp", "taylor", "fpgm", "random"])
def test_torch_pruning_comes_close_to_the_target(tmp_path, name):
    case = case_in(tmp_path)
    dense = measure(case.vanilla, case.example).flops
    network, _ = peers.pruned_to(case, name, int(0.7 * dense))
    assert 0.4 < measure(network, case.example).flops / dense <= 0.7


def test_taylor_scores_are_estimated_anew_on_the_way_down(tmp_path):
    case = case_in(tmp_path)
    before = {name: tensor.clone() for name, tensor in case.vanilla.state_dict().items()}
    known = {value for tensor in before.values() for value in tensor.flatten().tolist()}
    dense = measure(case.vanilla, case.example).flops
    found = list(peers.pruned_on_the_way_down(case, case.val, [0.4, 0.8]))
    assert [share for share, _ in found] == [0.8, 0.4]
    for share, network in found:
        assert share - 0.2 < measure(network, case.example).flops / dense <= share and not network.training
        norm = next(module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d))
        assert not set(norm.running_mean.tolist()) & known  # they are estimated again
    assert all(torch.equal(before[name], tensor) for name, tensor in case.vanilla.state_dict().items())


def test_criteria_have_the_rungs_that_our_networks_have(tmp_path, untimed, monkeypatch):
    monkeypatch.setattr(methods, "SHARES", (0.5,))
    monkeypatch.setattr(peers, "CRITERIA", {"magnitude": peers.CRITERIA["magnitude"]})
    rows = methods.METHODS["rungs-criteria"](case_in(tmp_path))
    rungs = ("none", "shift", "norms", "head")
    assert list(rows) == [*(f"magnitude 0.5, {rung}" for rung in rungs), f"{methods.RE_ESTIMATED} 0.5, head"]
    assert all(figures["flops_left"] <= 0.5 for figures in rows.values())
    assert rows["magnitude 0.5, head"]["unbiased"] > rows["magnitude 0.5, none"]["unbiased"]


def test_the_last_layer_is_what_scikit_learn_says(tmp_path, untimed):
    from sklearn.linear_model import LogisticRegression

    case = case_in(tmp_path)
    rows = peers.last_layer(case)
    hidden = {}
    handle = case.vanilla.head.register_forward_pre_hook(lambda _, inputs: hidden.update(x=inputs[0]))
    features = []
    for data in (case.val, case.test):
        case.vanilla(data.batch(torch.arange(len(data))).input)
        features.append(hidden["x"].detach().double())
    handle.remove()
    mean, std = features[0].mean(0), features[0].std(0, correction=0)
    scaled = [((part - mean) / std).numpy() for part in features]
    model = LogisticRegression(max_iter=2_000).fit(scaled[0], case.val.target.numpy())
    hits = torch.from_numpy(model.predict(scaled[1])) == case.test.target
    assert rows["DFR, validation set"]["accuracy"] == pytest.approx(float(hits.double().mean()), abs=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of what SpuCo imports
def test_peers_that_train_anew(tmp_path, untimed):
    pytest.importorskip("spuco")
    recipe = dataclasses.replace(tiny().recipe, batch_size=100)  # GroupDRO wants as many samples as there are groups
    case, found = case_in(tmp_path, recipe=recipe), {}
    for name in ("spuco-erm", "spuco-group-balance", "spuco-group-dro", "spuco-jtt"):
        (found[name],) = methods.METHODS[name](case).values()
        assert found[name]["flops_left"] == 1 and found[name]["epochs"] > 0
    assert found["spuco-erm"]["best_epoch"] == recipe.epochs
    plain = case.evaluation(case.vanilla)
    assert abs(found["spuco-erm"]["accuracy"] - plain.accuracy) < 0.1
    assert len({figures["accuracy"] for figures in found.values()}) > 1

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

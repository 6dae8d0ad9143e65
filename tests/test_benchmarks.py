"""The benchmarks' own machinery: runs stop and go on, records are read back, pages are those of the records."""

import dataclasses
import json
import re
import statistics
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import results  # noqa: E402
import run  # noqa: E402
from tables import cases, finetunings, methods, peers  # noqa: E402
from tables.costs import power_law  # noqa: E402
from tables.paper import EXPLAINED, TABLES, table_of  # noqa: E402
from tables.plans import PLANS  # noqa: E402
from tables.recorded import Recorded, Where, spread  # noqa: E402
from tables.settings import Data, Recipe, Setting, setting_of  # noqa: E402

from bise_prune import SearchConfig, evaluate, measure  # noqa: E402
from bise_prune.config import FinetuneConfig  # noqa: E402
from bise_prune.data import BatchLoader, load_data  # noqa: E402
from bise_prune.data.multi_color_mnist import TRAIN_RHO  # noqa: E402
from bise_prune.models import build_model  # noqa: E402
from bise_prune.tuning.vanilla import train_vanilla  # noqa: E402

NETWORK = {"kernel_size": 3, "widths": [8, 8], "strides": [2, 2]}
RECORDED = Recorded(ROOT / "benchmarks" / "records")
# Decimals in the README that are no results: versions, settings and examples of the command line.
NO_RESULTS = {"3.11", "2.51", "1.0", ".5", ".95", ".98", ".99"}
PAIR = r"\d+(?:\.\d+)? ± \d+(?:\.\d+)?"
SCALES = (1, 100, 1e-3, 1e-6)


def load(root, rho, seed):
    splits = load_data(f"digits,samples=1000,rho={rho},seed={seed}")
    parts = {
        name: data.subset(torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:300])
        for name, data in splits.by_name.items()
    }
    return Data(parts["train"], dataclasses.replace(splits, **parts))


def tiny(**changes):
    setting = Setting(
        "digits",
        "small",
        "a test",
        load,
        lambda root, work: build_model("simple_convnet", 10, NETWORK),
        Recipe(lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9), 2, 50),
        SearchConfig(anneal_every=1, head_epochs=1, min_temperature=0.4),
        FinetuneConfig(epochs=1),
        rhos=(0.9,),
        ffw_epochs=1,
    )
    return dataclasses.replace(setting, **changes)


def case_in(folder, clock=None, **changes):
    return cases.Case(tiny(**changes), 0.9, 0, Path(), folder, "cpu", clock or cases.Clock())


@pytest.fixture
def untimed(monkeypatch):
    """Exports take longer than all the rest."""
    monkeypatch.setattr(cases.Case, "latency", lambda self, model: {})


class Steps(cases.Clock):
    """Time is over after so many questions."""

    def __init__(self, count):
        super().__init__(1.0)
        self.count = count

    def is_over(self):
        self.count -= 1
        return self.count < 0


def test_a_case_that_is_stopped_goes_on_to_the_same_bits(tmp_path):
    whole = case_in(tmp_path / "whole")
    expected, stops = whole.found(), 0
    for count in (0, 0, 1, 2, 3, 100):
        try:
            parts = case_in(tmp_path / "parts", Steps(count))
            found = parts.found()
            break
        except cases.OutOfTime:
            stops += 1
    assert stops >= 2
    for name, tensor in whole.vanilla.state_dict().items():
        assert torch.equal(tensor, parts.vanilla.state_dict()[name])
    for name, logits in expected.last.logits.items():
        assert torch.equal(logits, found.last.logits[name])
    assert (found.best_epoch, found.epochs) == (expected.best_epoch, expected.epochs)


def test_the_vanilla_network_is_that_of_one_training(tmp_path):
    case = case_in(tmp_path)
    network = case.untrained()
    train_vanilla(
        network, case.loader(case.data.vanilla), case.setting.recipe.optimizer(network.parameters()), epochs=2
    )
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, case.vanilla.state_dict()[name])


def test_figures_are_those_of_the_package(tmp_path):
    case = case_in(tmp_path)
    rows = methods.bise(case)
    pruned = case.pruned()
    oracle = evaluate(pruned.model, BatchLoader(case.test, 300), case.aligned)
    figures = rows["best"]
    assert figures["unbiased"] == oracle.unbiased_accuracy
    assert figures["gap"] == pytest.approx(oracle.aligned_accuracy - oracle.conflicting_accuracy)
    assert figures["flops"] == measure(pruned.model, case.example).flops
    assert figures["sparsity"] == pytest.approx(pruned.plan.sparsity)
    assert figures["epochs"] > 0 and figures["latency_ms"] > 0


def test_a_record_is_written_once(tmp_path, monkeypatch, capsys, untimed):
    monkeypatch.setattr("tables.plans.setting_of", lambda name, size: tiny())
    command = [
        "--table", "peers-digits", "--methods", "vanilla", "--seeds", "0", "--data-root", str(tmp_path),
        "--work", str(tmp_path / "work"), "--records", str(tmp_path / "records"),
    ]  # fmt: skip
    assert run.main(command) == 0
    (path,) = (tmp_path / "records").rglob("*.json")
    assert path == tmp_path / "records" / "digits" / "small" / "rho-0.9" / "vanilla-seed0.json"
    record = json.loads(path.read_text())
    assert record["n"]["train"] == 300 and record["seeds"] == [0] and record["method"] == "vanilla"
    before = path.stat().st_mtime_ns
    assert run.main(command) == 0 and path.stat().st_mtime_ns == before
    assert run.main([*command[:2], "--methods", "bise", *command[4:], "--minutes", "0"]) == 75
    assert "goes on from here" in capsys.readouterr().err
    read = Recorded(tmp_path / "records")
    (value,) = read.values(Where("digits", "small", 0.9, "vanilla", "vanilla"), "unbiased")
    assert value == record["rows"]["vanilla"]["unbiased"]


def test_seeds_are_read_as_people_write_them():
    assert run._seeds("0-2") == [0, 1, 2] and run._seeds("0,3-4") == [0, 3, 4]


@pytest.mark.parametrize("name", ["magnitude", "lamp", "taylor", "fpgm", "random"])
def test_torch_pruning_comes_close_to_the_target(tmp_path, name):
    case = case_in(tmp_path)
    dense = measure(case.vanilla, case.example).flops
    network, _ = peers._pruned_to(case, name, int(0.7 * dense))
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


def test_ways_to_finetune_begin_with_the_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(finetunings, "EPOCHS", 1)

    def two_biases(root, rho, seed):
        data = load(root, rho, seed)
        parts = {
            name: part.with_bias(torch.cat([part.bias, part.bias.roll(1, 0)], 1))
            for name, part in data.splits.by_name.items()
        }
        return Data(parts["train"], dataclasses.replace(data.splits, **parts))

    weighted = {"weighting": "alignment", "rho": TRAIN_RHO}
    case = case_in(
        tmp_path, load=two_biases, rule="last",
        search=dataclasses.replace(tiny().search, **weighted),
        finetune=FinetuneConfig(epochs=1, optimizer="adam", select="last", **weighted),
    )  # fmt: skip
    expected, _ = case.tuned(case.pruned().model)
    (found,) = finetunings.networks(case, finetunings.Way("as in the tables", finetunings.product))
    (other,) = finetunings.networks(case, finetunings.WAYS["equal"])
    # not the biases in front of batch norms: their gradients are rounding errors, which Adam makes steps of
    assert torch.allclose(expected.head.weight, found.head.weight, atol=1e-5)
    assert not torch.allclose(expected.head.weight, other.head.weight, atol=1e-5)


def test_weights_of_the_ways_to_finetune():
    groups = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    assert finetunings.product(groups).tolist() == pytest.approx([1.0633, 20.2020, 105.2632, 2000.0], rel=1e-4)
    for name, expected in {
        "sum": [2.0627, 21.0101, 101.0526, 120.0],
        "sum-eq4": [0.20627, 18.1010, 90.1053, 108.0],
        "any": [1.0633, 16.8067, 16.8067, 16.8067],
        "left": [1.0101, 1.0101, 100.0, 100.0],
    }.items():
        assert finetunings.WAYS[name].weights(groups).tolist() == pytest.approx(expected, rel=1e-4)


def test_plans_name_runs_and_settings_that_exist():
    for plan in PLANS.values():
        assert set(plan.methods) <= set(methods.METHODS)
        assert set(plan.full_only) <= set(plan.methods)
        assert plan.rhos("full" if plan.name == "multi_color_mnist" else "small")
    assert PLANS["1"].rhos("full") == (0.99, 0.995, 0.997, 0.999) and PLANS["K"].rhos("full") == (0.99, 0.995, 0.997)
    wanted = {(row.method, row.rho) for table in TABLES if table.setting == "biased_mnist" for row in table.rows}
    planned = {
        (method, rho) for plan in PLANS.values() if plan.name == "biased_mnist" for method in plan.runs("full")
        for rho in plan.rhos("full")
    }  # fmt: skip
    assert wanted <= planned


@pytest.mark.parametrize("rho", [0.99, 0.999])
def test_the_full_settings_are_the_papers(rho):
    setting = setting_of("biased_mnist", "full").at(setting_of("biased_mnist", "full"), rho)
    assert sum(p.numel() for p in setting.network(Path(), Path()).parameters()) == 531_210
    assert (setting.search.head_epochs, setting.search.anneal_every, setting.finetune.epochs) == (50, 10, 50)
    assert setting.search.rho == setting.finetune.rho == (rho,)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = setting.recipe.optimizer([parameter])
    scheduler, rates = setting.recipe.scheduler(optimizer), []
    for _ in range(setting.recipe.epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    cuts = [epoch for epoch in range(1, len(rates)) if rates[epoch] < rates[epoch - 1]]
    assert (len(rates), cuts, rates[0]) == ((80, [40, 60], 0.1) if rho < 0.997 else (100, [80, 90], 0.1))


def test_records_are_of_the_settings_as_they_are():
    for by_seed in RECORDED.runs.values():
        for record in by_seed.values():
            assert record["protocol"] == setting_of(record["setting"], record["size"]).protocol


def test_a_cache_of_other_settings_is_not_used(tmp_path):
    first = case_in(tmp_path).found()
    other = case_in(
        tmp_path, search=SearchConfig(anneal_every=1, head_epochs=1, min_temperature=0.4, initial_logit=0.5)
    )
    masks = other.found()
    assert any(not torch.equal(first.last.logits[name], masks.last.logits[name]) for name in masks.last.logits)


def test_power_law():
    assert power_law([1, 10, 100], [2, 20, 200]) == pytest.approx((2, 1))


# -- pages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [ROOT / "docs" / "results.md", *results.PAGES], ids=lambda path: path.name)
def test_pages_are_up_to_date(path):
    assert path.read_text() == results.pages()[path], "run: python benchmarks/results.py"


def test_full_size_agrees_with_the_paper():
    checked = 0
    for table in TABLES:
        for row in table.rows:
            values = RECORDED.values(Where(table.setting, "full", row.rho, row.method, row.row), row.key)
            if values:
                assert len(values) >= 3
                far = abs(statistics.fmean(values) * row.scale - row.mean) > 2 * row.std
                assert far == ((table.name, row.label) in EXPLAINED), row.label
                checked += 1
    assert checked >= 10


def test_the_explanation_of_what_is_far_from_the_paper_holds():
    """Weights for two groups come to all of the paper's finetuned figures, by the same extracted networks."""
    rows = [row for row in table_of("7").rows if row.row == "finetuned"]
    assert len(rows) == 5
    for row in rows:
        where = Where("multi_color_mnist", "full", 0.0, "finetuned-any", f"{finetunings.EPOCHS} epochs")
        values = RECORDED.values(where, row.key)
        assert len(values) >= 3
        assert abs(100 * statistics.fmean(values) - row.mean) <= 2 * row.std + 0.05, row.label  # + what rounding hides


def numbers(value):
    """Every figure of a record, with the mean and spread of its summaries."""
    if isinstance(value, dict):
        for part in value.values():
            yield from numbers(part)
    elif isinstance(value, list):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, (int, float)):
        yield float(value)


def without_tables():
    """The README's own words: no tables that are written, no code."""
    text = (ROOT / "README.md").read_text()
    return re.sub(r"<!-- evidence -->.*?<!-- end -->|```.*?```|`[^`]*`", "", text, flags=re.DOTALL)


def test_no_mean_in_the_readme_is_without_a_record():
    pairs = set()
    for path in (ROOT / "benchmarks" / "records").glob("*.json"):

        def walk(value):
            if isinstance(value, dict):
                if {"mean", "std"} <= set(value):
                    add(value["mean"], value["std"])
                for part in value.values():
                    walk(part)

        def add(mean, std):
            pairs.update(
                f"{mean * scale:.{digits}f} ± {std * scale:.{digits}f}" for scale in SCALES for digits in (0, 1)
            )

        walk(json.loads(path.read_text()))
    for (setting, size, rho, method), by_seed in RECORDED.runs.items():
        for row, figures in next(iter(by_seed.values()))["rows"].items():
            for key in figures:
                values = RECORDED.values(Where(setting, size, rho, method, row), key)
                if len(values) > 1:
                    pairs.update(spread(values, scale, digits) for scale in SCALES for digits in (0, 1, 2))
    for table in TABLES:
        pairs.update(f"{row.mean:.{row.digits}f} ± {row.std:.{row.digits}f}" for row in table.rows)
    text = without_tables()
    assert not set(re.findall(PAIR, text)) - pairs


def test_decimals_in_the_readme_are_in_the_records_that_stand_beside_them():
    def linked(part):
        return re.findall(r"\(benchmarks/(records/[\w/.-]+\.json)\)", part)

    checked = 0
    for section in re.split(r"\n(?=## )", without_tables()):
        for block in re.split(r"\n\n|\n(?=- )", section):
            decimals = set(re.findall(r"(?<![\w.])\d*\.\d+(?![\w.])", re.sub(PAIR, "", block))) - NO_RESULTS
            found = [
                value
                for name in linked(block) or linked(section)
                for value in numbers(json.loads((ROOT / "benchmarks" / name).read_text()))
            ]
            known = {f"{value * scale:.{digits}f}" for value in found for scale in (1, 100) for digits in (1, 2)}
            assert not decimals - known - {number.lstrip("0") for number in known}, block
            checked += len(decimals)
    assert checked > 10

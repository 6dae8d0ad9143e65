"""What a search can be told besides the paper's main setting, each against a reduction, an oracle or a bound."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import NETWORKS, biased_data, biased_loader, images, network, random_masks, torchvision_network
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bise_prune import MaskSet, SearchConfig, apply_masks, evaluate, gate_sites, prune, search
from bise_prune.config import Budget
from bise_prune.data import BatchLoader, BiasedDataset
from bise_prune.errors import BiseError, ConfigError, DataError, ModelError
from bise_prune.mask_search import SearchInterrupted
from bise_prune.mask_search.algorithm import _mask_epoch
from bise_prune.mask_search.assembly import assemble
from bise_prune.mask_search.heads import BiasHeads
from bise_prune.mask_search.mutual_information import JointPool, bias_information, information, joint_sums
from bise_prune.mask_search.selection import resolve
from bise_prune.mask_search.speed import FastPasses, Speedups
from bise_prune.mask_search.speed import skipped_channels as closed
from bise_prune.mask_search.speed.cached_prefix import cached_prefix
from bise_prune.mask_search.stopping import is_settled, none_can_flip
from bise_prune.tracing import trace

SHORT = dict(anneal_every=2, min_temperature=0.2, head_epochs=3)


def same(first, second):
    return all(torch.equal(first.logits[name], second.logits[name]) for name in first.logits)


# -- heads in closed form --------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("classes", [[3, 3], [4], [2, 5, 2]])
def test_heads_are_trained_as_autograd_and_sgd_would(momentum, classes):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    bias = torch.stack([torch.randint(0, size, (50,), generator=generator) for size in classes], 1)
    settings = dict(lr=0.1, momentum=momentum, weight_decay=1e-2)
    ours = BiasHeads(6, classes, torch.Generator().manual_seed(1), torch.float64, **settings)
    weights = [part.clone().requires_grad_() for part in ours.state.matrix.split(classes)]
    optimizer = torch.optim.SGD(weights, **settings)

    def theirs(rows):
        inputs = torch.cat([features[rows], torch.ones(len(rows), 1, dtype=torch.float64)], 1)
        losses = [F.cross_entropy(inputs @ part.T, bias[rows, k]) for k, part in enumerate(weights)]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        return sum(losses).detach()

    for phase in range(2):  # the second takes the momentum up
        ours.train(features, bias, epochs=3, batch_size=20, generator=torch.Generator().manual_seed(phase))
        order = torch.Generator().manual_seed(phase)
        for _ in range(3):
            for rows in torch.randperm(50, generator=order).split(20):
                theirs(rows)
    for rows in torch.arange(50).split(15):
        before = ours.state
        assert torch.allclose(ours.step(features[rows], bias[rows]), theirs(rows), rtol=0, atol=1e-12)
        assert ours.state is not before and not torch.equal(ours.state.matrix, before.matrix)
    assert torch.allclose(ours.state.matrix, torch.cat(weights), rtol=0, atol=1e-12)
    logits = [features @ part[:, :-1].T + part[:, -1] for part in weights]
    for mine, other in zip(ours(features), logits, strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-12)


# -- the cached prefix ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("placement", ["tied", "paper"])
def test_the_cached_prefix_gives_the_same_logits(name, placement):
    model, loader = network(name).double(), BatchLoader(_double(biased_data(n=30)), 8, shuffle=True)
    inputs = loader.data.example()
    record, sites = trace(model, inputs), gate_sites(model, inputs, placement)
    cache = cached_prefix(model, record, sites, loader, torch.device("cpu"), 2**30)
    masks = random_masks(model, inputs, placement)
    masked = apply_masks(model, masks, inputs)
    rows = torch.tensor([7, 0, 29])
    expected = masked(loader.data.inputs[rows])
    if cache is None:  # too little is in front of the first gate
        saved = name in ("simple_convnet", "mlp")
        assert not saved
        return
    with torch.no_grad(), cache.replaying(rows):
        assert torch.allclose(masked(cache.placeholder(3)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "simple_convnet", "resnet"])
def test_the_cache_changes_no_mask(name):
    model = network(name).double()

    def loader():
        return BatchLoader(_double(biased_data()), 20, shuffle=True, seed=2)

    cached, plain = (search(model, loader(), SearchConfig(**SHORT, cache_bytes=size)) for size in (2**30, 0))
    for site in cached.last.logits:
        assert torch.allclose(cached.last.logits[site], plain.last.logits[site], rtol=0, atol=1e-10)


def test_a_cache_that_does_not_fit_is_not_made():
    model, loader = network("mlp"), biased_loader()
    inputs = loader.data.example()
    record, sites = trace(model, inputs), gate_sites(model, inputs)
    assert cached_prefix(model, record, sites, loader, torch.device("cpu"), 1000) is None
    assert cached_prefix(model, record, sites, loader, torch.device("cpu"), 2**20) is not None


def test_a_network_that_looks_at_its_activations_has_no_cache():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(192, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = self.a(x.flatten(1))
            if float(x.sum()) > 1e9:
                x = -x
            return self.head(F.relu(self.b(F.relu(x))))

    torch.manual_seed(0)
    model, loader = Looks().eval(), biased_loader()
    sites = gate_sites(model, loader.data.example())
    record = trace(model, loader.data.example())
    assert cached_prefix(model, record, sites, loader, torch.device("cpu"), 2**30) is None
    assert len(search(model, loader, SearchConfig(**SHORT)).history) == 6


def _double(data):
    return BiasedDataset(data.inputs.double(), data.target, data.bias)


# -- closed channels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layer, shape", [
    (nn.Conv2d(9, 7, 3, stride=2, padding=1, dilation=2), (4, 9, 11, 11)),
    (nn.Conv2d(9, 7, (3, 1), padding=(1, 0), bias=False), (4, 9, 6, 5)),
    (nn.Conv1d(9, 7, 5), (4, 9, 12)),
    (nn.Conv3d(9, 7, 3, stride=(1, 2, 1)), (2, 9, 5, 6, 5)),
    (nn.Linear(9, 7), (4, 9)),
    (nn.Linear(9, 7, bias=False), (2, 3, 9)),
])  # fmt: skip
def test_closed_channels_are_left_out_of_both_directions(layer, shape, monkeypatch):
    monkeypatch.setattr(closed, "_LEAST_MACS", 0)
    layer = layer.double().requires_grad_(False)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dim = 1 if isinstance(layer, nn.modules.conv._ConvNd) else -1
    x.index_fill_(dim, torch.tensor([0, 4, 8]), 0.0)
    x[0].zero_()  # a sample that says nothing of the channels
    out = torch.tensor([1.0, 0, 1, 1, 0, 0, 1], dtype=torch.float64)
    weight = torch.randn(layer(x).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight = weight * out.view([-1 if d == dim % weight.ndim else 1 for d in range(weight.ndim)])
    plain, spared = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = layer(plain)
    shapes = []
    with _Counted(shapes), _Sparing():
        found = layer(spared)
        (found * weight).sum().backward()
    (expected * weight).sum().backward()
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert torch.allclose(spared.grad, plain.grad, rtol=0, atol=1e-12)
    assert any(6 in shape for shape in shapes) and any(4 in shape for shape in shapes)  # open inputs, open outputs


class _Sparing(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = closed.without_closed_channels(func, args, kwargs or {})
        return func(*args, **(kwargs or {})) if found is None else found


class _Counted(TorchDispatchMode):
    """Notes the shapes of weights that convolutions and products really read."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes = shapes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in ("convolution", "mm", "linear")):
            self.shapes += [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]
        return func(*args, **(kwargs or {}))


def test_a_layer_whose_channels_are_all_closed_is_computed_none_the_less(monkeypatch):
    monkeypatch.setattr(closed, "_LEAST_MACS", 0)
    layer = nn.Conv2d(4, 5, 3, padding=1).requires_grad_(False)
    x = torch.zeros(2, 4, 6, 6, requires_grad=True)
    with _Sparing():
        found = layer(x)
        (found * 0).sum().backward()
    assert torch.equal(found, layer(x)) and torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("name", ["simple_convnet", "resnet", "mlp"])
def test_a_search_that_spares_closed_channels_finds_the_same(name, monkeypatch):
    model = network(name).double()
    loader = BatchLoader(_double(biased_data(n=60)), 20, shuffle=True)
    plain = search(model, loader, SearchConfig(**SHORT))
    monkeypatch.setattr(closed, "_LEAST_MACS", 0)
    loader = BatchLoader(_double(biased_data(n=60)), 20, shuffle=True)
    spared = search(model, loader, SearchConfig(**SHORT))
    assert plain.last.num_closed
    for site, logits in plain.last.logits.items():
        assert torch.allclose(spared.last.logits[site], logits, rtol=0, atol=1e-9)


# -- while no mask flips -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"mi_pool": 30}, {"mi_weight": 0.0}, {"budget": Budget(share=0.6)}])
def test_a_network_that_stands_still_is_run_once_per_sample(options, monkeypatch):
    model = network("simple_convnet").double()
    options = dict(anneal_every=6, min_temperature=0.02, head_epochs=2, mask_lr=0.1, early_stop=False, **options)
    forward = FastPasses.forward

    def run(remember):
        samples = []

        def counted(self, gates, inputs):
            samples.append(len(inputs.input))
            return forward(self, gates, inputs)

        monkeypatch.setattr(FastPasses, "forward", counted)
        loader = BatchLoader(_double(biased_data(n=120, rho=0.9)), 20, shuffle=True)
        speedups = Speedups(batched_steps=remember)
        return search(model, loader, SearchConfig(**options), speedups=speedups), sum(samples)

    (kept, few), (anew, many) = run(True), run(False)
    still = [not record.mask_flips for record in anew.history]
    spared = sum(now and before and earlier for earlier, before, now in zip(still, still[1:], still[2:], strict=False))
    conflicting = 20  # at most, and the information needs them in every epoch
    assert spared > 3 and many - few >= (120 - conflicting) * spared - conflicting * sum(still)
    for site, logits in anew.last.logits.items():
        assert torch.allclose(kept.last.logits[site], logits, rtol=0, atol=1e-9)
    for mine, other in zip(kept.history, anew.history, strict=True):
        assert (mine.mask_flips, mine.closed) == (other.mask_flips, other.closed)
        for name in ("objective", "cross_entropy", "mutual_information", "head_cross_entropy", "silent_share"):
            assert getattr(mine, name) == pytest.approx(getattr(other, name), abs=1e-9), name


# -- early stop --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_stopping_early_changes_no_mask(seed):
    model = network("simple_convnet", seed)
    options = dict(anneal_every=4, min_temperature=1e-3, head_epochs=1, mask_lr=0.1, seed=seed)

    def run(early_stop):
        loader = BatchLoader(biased_data(seed=seed), 20, shuffle=True, seed=seed)
        return search(model, loader, SearchConfig(**options, early_stop=early_stop), biased_loader(n=60, rho=0.4))

    early, late = run(True), run(False)
    assert early.stopped_early and not late.stopped_early
    assert len(early.history) < len(late.history) == 40
    for rule in ("best", "last", "worst-group", "accuracy", "worst-class"):
        first, second = early.picks[rule].masks.keep, late.picks[rule].masks.keep
        assert all(torch.equal(first[site], second[site]) for site in first), rule
    assert early.history == late.history[: len(early.history)]


def test_a_mask_that_flips_and_comes_back_does_not_stand_still():
    config = SearchConfig(**SHORT, mask_lr=1e-9, initial_logit=1.0)
    run = assemble(network("simple_convnet"), BatchLoader(biased_data(), 20), config)

    def disturb():
        run.state.logits[0] = -1.0 if run.state.position.batches == 2 else 1.0

    assert _mask_epoch(run, 1, 1.0, disturb).mask_flips == 1
    assert bool((run.state.logits > 0).all()) and not is_settled(run, [1e-3])
    assert _mask_epoch(run, 2, 1.0, lambda: None).mask_flips == 0
    assert is_settled(run, [1e-3])


def test_the_bound_stops_only_what_stands():
    m = torch.tensor([0.5, -0.4])
    still = dict(lr=0.01, momentum=0.9, weight_decay=1e-4, steps=100)
    calm = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])
    assert none_can_flip(m, None, *calm, [2.0**-7] * 10, **still)
    pushed = torch.tensor([0.0, 0.0]), torch.tensor([100.0, 100.0])
    assert not none_can_flip(m, None, *pushed, [1.0] * 10, **still)  # too warm
    assert none_can_flip(m, None, *pushed, [2.0**-7] * 10, **still)
    assert not none_can_flip(torch.tensor([0.5, -1e-3]), None, *calm, [2.0**-7] * 10, **still)  # too near
    assert not none_can_flip(m, torch.tensor([9.0, 0.0]), *calm, [2.0**-7] * 10, **still)  # moving


def test_the_bound_holds_for_gradients_that_push_as_hard_as_it_allows():
    """A simulation of SGD on the worst gradients that the bound admits never crosses zero."""
    generator = torch.Generator().manual_seed(0)
    stopped = 0
    for _ in range(200):
        m0 = float(torch.rand((), generator=generator)) + 0.01
        temperature = 2.0 ** -float(torch.randint(1, 9, (), generator=generator))
        toward, steps, epochs = float(torch.rand((), generator=generator)) * 20, 20, 6
        settings = dict(lr=0.01, momentum=0.9, weight_decay=1e-4, steps=steps)
        tensors = torch.tensor([m0]), None, torch.tensor([-1.0]), torch.tensor([toward])
        if not none_can_flip(*tensors, [temperature] * epochs, **settings):
            continue
        stopped += 1
        m, velocity = m0, 0.0
        for _, step in itertools.product(range(epochs), range(steps)):
            gate = 2 * toward * 0.1 / steps + (2 * toward if step == 0 and velocity == 0 else 0)
            s = 1 / (1 + 2.718281828 ** (m / temperature))
            velocity = 0.9 * velocity + gate * s * (1 - s) / temperature + 1e-4 * m
            m -= 0.01 * velocity
            assert m > 0
    assert 20 < stopped < 200


# -- selection ---------------------------------------------------------------------------------------


def test_every_rule_picks_its_own_best_epoch():
    model, val = network("simple_convnet"), biased_loader(n=90, rho=0.4, seed=5)
    found = search(model, biased_loader(), SearchConfig(**SHORT), val)
    for rule, figure in (
        ("best", "unbiased_accuracy"),
        ("worst-group", "worst_group_accuracy"),
        ("accuracy", "accuracy"),
        ("worst-class", "worst_class_accuracy"),
    ):
        scores = [getattr(record.validation, figure) for record in found.history]
        expected = max(range(1, len(scores) + 1), key=lambda epoch: (scores[epoch - 1], epoch))
        assert found.picks[rule].epoch == expected and found.picks[rule].score == max(scores)
    assert found.rule == "best" and found.masks is found.best
    for rule in ("last", "worst-class"):
        again = search(model, biased_loader(), SearchConfig(**SHORT, select=rule), val)
        assert again.rule == rule and same(again.masks, found.picks[rule].masks)


def test_rules_need_no_more_than_there_is():
    assert [resolve("auto", *given) for given in ((False, False), (True, False), (True, True))] == [
        "last", "worst-class", "best",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="needs validation data"):
        resolve("accuracy", False, False)
    with pytest.raises(ConfigError, match="needs bias labels on the validation data"):
        resolve("worst-group", True, False)
    val = biased_loader(n=60)
    unlabelled = BatchLoader(val.data.with_bias(torch.zeros(60, 0, dtype=torch.long)), 20)
    found = search(network("mlp"), biased_loader(), SearchConfig(**SHORT), unlabelled)
    assert found.rule == "worst-class" and set(found.picks) == {"last", "accuracy", "worst-class"}
    assert [group.name for group in found.history[0].validation.subgroups] == ["y=0", "y=1", "y=2"]


def test_worst_class_accuracy_is_the_lowest_over_the_classes():
    model, loader = network("mlp"), biased_loader()
    evaluation = evaluate(model, loader, torch.arange(3)[:, None])
    hits = model(loader.data.inputs).argmax(1) == loader.data.target
    by_class = [hits[loader.data.target == y].double().mean().item() for y in range(3)]
    assert evaluation.worst_class_accuracy == pytest.approx(min(by_class))


# -- batch norms that follow -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["statistics", "affine"])
def test_batch_norms_follow_and_come_with_the_masks(mode, tmp_path):
    model, val = network("simple_convnet"), biased_loader(n=60, rho=0.4, seed=3)
    loader = BatchLoader(biased_data(), 20, shuffle=True)
    found = search(model, loader, SearchConfig(**SHORT, batchnorm=mode), val)
    dense = model.state_dict()
    changed = {name for name, tensor in found.last.state.items() if not torch.equal(tensor, dense[name])}
    assert {"blocks.0.1.running_mean", "blocks.2.1.running_var"} <= changed
    assert ("blocks.1.1.weight" in changed) == (mode == "affine")
    assert not any(name.startswith("blocks.0.0") for name in found.last.state)  # no convolution moved
    scores = {epoch.epoch: epoch.validation.unbiased_accuracy for epoch in found.history}
    masked = apply_masks(model, found.best, images())
    assert evaluate(masked, val, found.aligned).unbiased_accuracy == pytest.approx(scores[found.best_epoch])
    found.best.save(tmp_path / "masks.safetensors")
    loaded = MaskSet.load(tmp_path / "masks.safetensors")
    result = prune(model, loaded, images())  # which verifies it against the masked network
    assert torch.allclose(result.model(images(5)), masked(images(5)), atol=1e-4)
    with pytest.raises(ModelError, match="does not have"):
        apply_masks(
            network("mlp"), MaskSet(random_masks(network("mlp"), images(), "tied").logits, {}, loaded.state), images()
        )


def test_batch_norms_that_are_frozen_do_not_move():
    found = search(network("simple_convnet"), biased_loader(), SearchConfig(**SHORT))
    assert not found.last.state
    with pytest.raises(ConfigError, match="the network has no batch norm"):
        search(network("mlp"), biased_loader(), SearchConfig(**SHORT, batchnorm="affine"))


# -- mutual information over a pool ------------------------------------------------------------------


def test_a_pool_that_holds_one_batch_is_that_batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    bias, counted = torch.arange(12) % 3, torch.arange(12) % 4 != 0
    pool = JointPool(500)
    pooled = information(*pool.add(0, joint_sums(torch.softmax(logits, 1), bias, counted), counted.sum()))
    plain = bias_information(torch.softmax(logits[counted], 1), bias[counted])
    assert pooled.item() == pytest.approx(plain.item(), abs=1e-12)
    ours, theirs = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (pooled, plain))
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_a_pool_remembers_as_many_samples_as_it_holds():
    generator = torch.Generator().manual_seed(0)
    pool, probs, biases = JointPool(40), [], []
    for _ in range(9):
        probs.append(torch.softmax(2 * torch.randn(10, 3, generator=generator, dtype=torch.float64), 1))
        biases.append(torch.randint(0, 3, (10,), generator=generator))
        every = torch.ones(10, dtype=torch.bool)
        sums, count = pool.add(0, joint_sums(probs[-1], biases[-1], every), every.sum())
        assert float(count) == min(40, 10 * len(probs))
    few = information(*JointPool(10).add(0, joint_sums(probs[0], biases[0], every), every.sum()))
    assert float(information(sums, count)) < float(few)  # less of it is chance


def test_pooled_information_is_not_silent_in_small_batches():
    loader = biased_loader(batch_size=4, rho=0.9)
    plain, pooled = (search(network("mlp"), loader, SearchConfig(**SHORT, mi_pool=size)) for size in (0, 200))
    assert plain.history[0].silent_share > 0.5 > pooled.history[0].silent_share
    assert not same(plain.last, pooled.last)


# -- stratified batches ------------------------------------------------------------------------------


def test_stratified_batches_share_every_subgroup_evenly():
    data = biased_data(n=600, rho=0.9)
    loader = BatchLoader(data, 60, shuffle=True, stratified=True)
    cells = data.target * 3 + data.bias[:, 0]
    seen = []
    for rows in loader.rows():
        seen.append(rows)
        for cell in cells.unique().tolist():
            fair = float((cells == cell).sum()) / 10
            assert abs(int((cells[rows] == cell).sum()) - fair) <= 2
    assert torch.cat(seen).sort().values.tolist() == list(range(600))
    loader.set_epoch(0)
    assert all(torch.equal(a, b) for a, b in zip(loader.rows(), seen, strict=True))


# -- other settings ----------------------------------------------------------------------------------


def test_class_and_bias_counts_may_differ_and_alignment_may_be_given():
    data = biased_data(n=120)
    four = data.with_bias(torch.where(data.target == data.bias[:, 0], data.target, 3)[:, None])
    found = search(network("mlp"), BatchLoader(four, 20), SearchConfig(**SHORT))
    assert found.aligned.tolist() == [[0], [1], [2]] and found.num_conflicting == (int((four.bias == 3).sum()),)
    given = search(network("mlp"), BatchLoader(data, 20), SearchConfig(**SHORT), aligned=torch.tensor([[1], [2], [0]]))
    assert given.aligned.tolist() == [[1], [2], [0]] and given.num_conflicting[0] > found.num_conflicting[0]


def test_a_search_may_start_from_masks():
    model, loader = network("simple_convnet"), biased_loader()
    start = random_masks(model, images(), "tied")
    frozen = SearchConfig(**SHORT, mask_lr=1e-12, mask_weight_decay=0.0)
    found = search(model, loader, frozen, start=start)
    assert all(torch.allclose(found.last.logits[name], start.logits[name]) for name in start.logits)
    with pytest.raises(ModelError, match="belong to another network or placement"):
        search(network("mlp"), loader, frozen, start=start)


def test_training_data_without_bias_labels_are_refused():
    data = biased_data()
    with pytest.raises(DataError, match="no bias labels"):
        search(network("mlp"), BatchLoader(data.with_bias(data.bias[:, :0]), 20), SearchConfig(**SHORT))


@pytest.mark.parametrize("options", [{"channels_last": True}, {"precision": "tf32"}])
def test_faster_arithmetic_computes_the_same_objective(options):
    model, loader = torchvision_network("resnet18", 3), biased_loader(n=40)
    config = dict(anneal_every=1, min_temperature=0.6, head_epochs=1, initial_logit=1.0, cache_bytes=0)
    plain, fast = (search(model, loader, SearchConfig(**config, **extra)) for extra in ({}, options))
    assert fast.history[0].objective == pytest.approx(plain.history[0].objective, rel=1e-3)


def test_bfloat16_is_near(monkeypatch):
    monkeypatch.setattr(closed, "_LEAST_MACS", 0)
    model, loader = network("mlp"), biased_loader(n=40)
    config = dict(anneal_every=1, min_temperature=0.6, head_epochs=1, initial_logit=1.0)
    plain, half = (search(model, loader, SearchConfig(**config, precision=p)) for p in ("float32", "bfloat16"))
    assert half.history[0].objective == pytest.approx(plain.history[0].objective, rel=0.05)
    assert half.last.logits["body.1"].dtype == torch.float32


@pytest.mark.filterwarnings("ignore")  # torch.compile's own
def test_a_compiled_network_computes_the_same():
    model, loader = network("simple_convnet"), biased_loader(n=40)
    config = dict(anneal_every=1, min_temperature=0.6, head_epochs=1, cache_bytes=0)
    plain, compiled = (search(model, loader, SearchConfig(**config, compile=flag)) for flag in (False, True))
    for name, logits in plain.last.logits.items():
        assert torch.allclose(compiled.last.logits[name], logits, atol=1e-5)


def test_mask_gradients_are_those_of_the_plain_network():
    """The search's own forward pass (affine batch norms, replayed prefix) against hooks and autograd."""
    model = network("resnet").double()
    data = _double(biased_data(n=20))
    run = assemble(model, BatchLoader(data, 20), SearchConfig(head_epochs=1, mi_weight=0.0))
    gates = run.network.gates.flat()
    gates.retain_grad()
    ((rows, inputs),) = run.passes.inputs(run.data.next_pass(run.state.position))
    logits, _ = run.passes.forward(gates, inputs)
    F.cross_entropy(logits, run.labels.of(rows).target).backward()
    ones = [torch.ones(site.num_channels, dtype=torch.float64, requires_grad=True) for site in run.network.sites]
    with run.network.gated.gating(ones):
        plain = model(data.inputs)
    F.cross_entropy(plain, data.target).backward()
    assert torch.allclose(gates.grad, torch.cat([one.grad for one in ones]), rtol=0, atol=1e-12)


# -- interruption ------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [0.0, 0.15, 0.3, 0.55, 0.75, 0.95])
@pytest.mark.parametrize(
    "options", [{}, {"batchnorm": "affine"}, {"mi_pool": 50}, {"initial_logit": 1.0, "early_stop": False}]
)
def test_a_search_stopped_after_any_batch_resumes_to_the_same_bits(tmp_path, moment, options):
    model, val = network("simple_convnet"), biased_loader(n=60, rho=0.4, seed=3)
    config = SearchConfig(**SHORT, **options)

    def loader():
        return BatchLoader(biased_data(), 20, shuffle=True, seed=4)

    questions = itertools.count()
    whole = search(model, loader(), config, val, interrupted=lambda: next(questions) < 0)
    after = int(moment * next(questions))
    asked = itertools.count()
    path = tmp_path / "state.pt"
    with pytest.raises(SearchInterrupted, match="takes up where it stopped"):
        search(model, loader(), config, val, state_path=path, interrupted=lambda: next(asked) >= after)
    found = search(model, loader(), config, val, state_path=path)
    assert found.history == whole.history
    assert found.picks.keys() == whole.picks.keys()
    for rule in whole.picks:
        assert same(found.picks[rule].masks, whole.picks[rule].masks)
        assert found.picks[rule].epoch == whole.picks[rule].epoch
        for name, tensor in whole.picks[rule].masks.state.items():
            assert torch.equal(found.picks[rule].masks.state[name], tensor)


def test_a_finished_search_resumes_to_its_end(tmp_path):
    model, path = network("mlp"), tmp_path / "state.pt"
    first = search(model, biased_loader(), SearchConfig(**SHORT), state_path=path)
    epochs = []
    again = search(model, biased_loader(), SearchConfig(**SHORT), state_path=path, on_epoch=lambda *a: epochs.append(a))
    assert not epochs and same(first.last, again.last)


# -- less usual inputs ----------------------------------------------------------------------------------


def test_batch_norms_behind_the_prefix_are_counted():
    """A downsampling branch whose batch norm comes after gated ones, and is no part of the cached prefix's end."""
    from torchvision.models.resnet import Bottleneck, ResNet

    torch.manual_seed(0)
    model, data = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=3).eval(), biased_data(n=40)
    options = dict(anneal_every=1, min_temperature=0.6, head_epochs=1, placement="paper")
    cached, plain = (search(model, BatchLoader(data, 20), SearchConfig(**options, cache_bytes=n)) for n in (2**30, 0))
    assert all(torch.allclose(cached.last.logits[n], plain.last.logits[n], atol=1e-5) for n in plain.last.logits)


def test_a_start_brings_its_batch_norms_along():
    model, loader = network("simple_convnet"), biased_loader()
    start = search(model, loader, SearchConfig(**SHORT, batchnorm="affine")).last
    frozen = search(model, loader, SearchConfig(**SHORT, mask_lr=1e-12, batchnorm="affine"), start=start)
    name = "blocks.0.1.weight"
    assert torch.allclose(frozen.last.state[name], start.state[name], atol=1e-6)
    assert not torch.allclose(start.state[name], model.state_dict()[name], atol=1e-6)


def test_a_resumed_search_knows_its_validation_data(tmp_path):
    model, path = network("mlp"), tmp_path / "state.pt"
    val = biased_loader(n=60, rho=0.4, seed=3)
    search(model, biased_loader(), SearchConfig(**SHORT), val, state_path=path)
    other = BatchLoader(val.data.with_bias(2 - val.data.bias), 20)
    with pytest.raises(BiseError, match="other settings, data or weights"):
        search(model, biased_loader(), SearchConfig(**SHORT), other, state_path=path)


def test_a_shuffling_loader_of_torch_resumes(tmp_path):
    model, path, data = network("mlp"), tmp_path / "state.pt", biased_data()
    rows = [{"input": data.inputs[i], "target": data.target[i], "bias": data.bias[i]} for i in range(len(data))]

    def loader():
        return torch.utils.data.DataLoader(rows, batch_size=20, shuffle=True)

    asked = itertools.count(1)
    with pytest.raises(SearchInterrupted):
        search(model, loader(), SearchConfig(**SHORT), state_path=path, interrupted=lambda: next(asked) > 9)
    assert len(search(model, loader(), SearchConfig(**SHORT), state_path=path).history) == 6


def test_a_remainder_of_one_sample_joins_the_batch_before():
    loader = BatchLoader(biased_data(n=101), 20, shuffle=True)
    sizes = [len(rows) for rows in loader.rows()]
    assert sizes == [20, 20, 20, 20, 21] and len(loader) == 5
    search(network("simple_convnet"), loader, SearchConfig(**SHORT, batchnorm="statistics"))


def test_inputs_that_do_not_fit_are_named():
    data = biased_data()
    with pytest.raises(DataError, match=r"inputs are torch\.float32, the model is torch\.float64"):
        search(network("mlp").double(), BatchLoader(data, 20), SearchConfig(**SHORT))
    raw = [{"input": data.inputs.to(torch.uint8), "target": data.target, "bias": data.bias}]
    with pytest.raises(DataError, match=r"inputs are torch\.uint8"):
        search(network("mlp"), raw, SearchConfig(**SHORT))
    with pytest.raises(DataError, match="the validation data have 2 biases, the training data 1"):
        search(network("mlp"), biased_loader(), SearchConfig(**SHORT), biased_loader(biases=2))

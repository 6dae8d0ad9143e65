"""A stopped search resumes to the same bits."""

import copy
import dataclasses
import itertools

import pytest
import torch
from cases import SHORT, biased_data, biased_loader, network, same_masks, slow

from bise_prune import SearchConfig, search
from bise_prune.config import Budget
from bise_prune.data import BatchLoader
from bise_prune.errors import BiseError
from bise_prune.mask_search import SearchInterrupted


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
    with pytest.raises(BiseError, match=r"differs from this one in seed \(0 there, 9 here\): repeat"):
        search(model, loader(), SearchConfig(**SHORT, seed=9), val, state_path=path)
    path.write_bytes(b"nothing")
    with pytest.raises(BiseError, match="no readable search state"):
        search(model, loader(), SearchConfig(**SHORT), val, state_path=path)


@pytest.mark.parametrize("moment", [0.15, 0.3, 0.4, 0.75, *slow(0.0, 0.55, 0.95)])
@pytest.mark.parametrize(
    "options",
    [
        SHORT,
        {**SHORT, "batchnorm": "affine"},
        {**SHORT, "mi_pool": 50},
        {**SHORT, "initial_logit": 1.0, "early_stop": False},
        {"steps": 36},
        {"steps": 36, "budget": Budget(share=0.4)},
    ],
)
def test_a_search_stopped_after_any_batch_resumes_to_the_same_bits(tmp_path, moment, options):
    model, val = network("simple_convnet"), biased_loader(n=60, rho=0.4, seed=3)
    config = SearchConfig(**options)

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
        assert same_masks(found.picks[rule].masks, whole.picks[rule].masks)
        assert found.picks[rule].epoch == whole.picks[rule].epoch
        for name, tensor in whole.picks[rule].masks.state.items():
            assert torch.equal(found.picks[rule].masks.state[name], tensor)


def test_a_finished_search_resumes_to_its_end(tmp_path):
    model, path = network("mlp"), tmp_path / "state.pt"
    first = search(model, biased_loader(), SearchConfig(**SHORT), state_path=path)
    epochs = []
    again = search(model, biased_loader(), SearchConfig(**SHORT), state_path=path, on_epoch=lambda *a: epochs.append(a))
    assert not epochs and same_masks(first.last, again.last)


def test_a_resumed_search_knows_its_validation_data(tmp_path):
    model, path = network("mlp"), tmp_path / "state.pt"
    val = biased_loader(n=60, rho=0.4, seed=3)
    search(model, biased_loader(), SearchConfig(**SHORT), val, state_path=path)
    other = BatchLoader(val.data.with_bias(2 - val.data.bias), 20)
    with pytest.raises(BiseError, match="differs from this one in the validation data: repeat"):
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


def _stopped(model, loader, path, **options):
    asked = itertools.count(1)
    with pytest.raises(SearchInterrupted):
        search(model, loader, SearchConfig(**SHORT), state_path=path, interrupted=lambda: next(asked) > 9, **options)


def _loader(**changes):
    return BatchLoader(dataclasses.replace(biased_data(), **changes), 20, shuffle=True, seed=4)


def _swapped(tensor):
    return torch.cat([tensor[1:2], tensor[:1], tensor[2:]])


class Halved(torch.nn.Module):
    """The network, whose logits are halved: the same weights, another forward pass."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x * self.scale)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("the training data", lambda d: {"inputs": d.inputs + 1e-6}),
        ("the training data", lambda d: {"inputs": _swapped(d.inputs), "target": _swapped(d.target)}),
        ("the training data", lambda d: {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
        ("the training data", lambda d: {"mean": (0.1,) * 3, "std": (1.0,) * 3}),
    ],
)
def test_a_state_is_bound_to_the_content_of_the_data(tmp_path, what, change):
    path = tmp_path / "state.pt"
    _stopped(network("mlp"), _loader(), path)
    with pytest.raises(BiseError, match=f"{what}: repeat"):
        search(network("mlp"), _loader(**change(biased_data())), SearchConfig(**SHORT), state_path=path)


def test_a_state_is_bound_to_the_network_and_the_batches(tmp_path):
    path, model = tmp_path / "state.pt", Halved(network("simple_convnet"))
    model.scale = 1.0
    _stopped(model, _loader(), path)
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    others = {"forward pass": {"scale": 0.5}, "weights": {}}
    for what, attributes in others.items():
        other = copy.deepcopy(model)
        vars(other).update(attributes)
        if what == "weights":  # a buffer, whose sum stays
            named = dict(other.named_modules())[next(n for n, m in model.named_modules() if m is norm)]
            named.running_mean[:2] = _swapped(named.running_mean[:2]) + torch.tensor([1e-3, -1e-3])
        with pytest.raises(BiseError, match=f"the network's {what}: repeat"):
            search(other, _loader(), SearchConfig(**SHORT), state_path=path)
    with pytest.raises(BiseError, match=r"the batches \(.*4.* there, .*5.* here\): repeat"):
        search(model, BatchLoader(biased_data(), 20, shuffle=True, seed=5), SearchConfig(**SHORT), state_path=path)
    assert len(search(model, _loader(), SearchConfig(**SHORT), state_path=path).history) == 6


def test_a_state_that_was_damaged_says_what_to_delete(tmp_path):
    path = tmp_path / "state.pt"
    _stopped(network("mlp"), _loader(), path)
    whole = path.read_bytes()
    places = torch.randint(len(whole), (40,), generator=torch.Generator().manual_seed(0)).tolist()
    damaged = [b"", b"[]", b"\xff" * 4000, whole[:-1], whole + b"x", whole[: len(whole) // 2]]
    damaged += [whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :] for place in places]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(BiseError, match=r"state\.pt is no readable search state; delete it"):
            search(network("mlp"), _loader(), SearchConfig(**SHORT), state_path=path)

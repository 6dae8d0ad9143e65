"""Names of weights are matched with the network's; what does not belong to it is left out, and what should is told."""

import pytest
import torch
from cases import images

from bise_prune import load_model
from bise_prune.errors import CheckpointError
from bise_prune.models import build_model
from bise_prune.models.matching import difference, left_out, matched

EXPECTED = {"a.weight": torch.zeros(2), "a.num_batches_tracked": torch.tensor(0), "b.bias": torch.zeros(3)}


def _named(prefix="", **more):
    return {f"{prefix}a.weight": torch.ones(2), f"{prefix}b.bias": torch.ones(3), **more}


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.net.", "teacher."])
def test_any_prefix_is_found(prefix):
    state = _named(prefix, **{"criterion.weight": torch.ones(2)})
    found = matched(EXPECTED, state)
    assert list(found) == ["a.weight", "b.bias"] and not difference(EXPECTED, found).count
    assert left_out(state, found) == ["criterion.weight"]


def test_a_prefix_of_the_networks_own_is_put_back():
    expected = {f"model.{name}": tensor for name, tensor in EXPECTED.items()}
    assert list(matched(expected, _named())) == ["model.a.weight", "model.b.bias"]


def test_what_is_of_the_networks_own_parts_is_not_left_out():
    """The names of a small network are all in the file of a larger one of its kind."""
    found = matched(EXPECTED, _named(**{"a.2.weight": torch.ones(2)}))
    assert difference(EXPECTED, found).unexpected == ("a.2.weight",)
    state = {f"net.{name}": tensor for name, tensor in build_model("resnet34", 2).state_dict().items()}
    like = build_model("resnet18", 2).state_dict()
    assert difference(like, matched(like, state)).unexpected


def test_of_two_networks_the_plain_one_counts():
    one, other = _named("student."), {name: tensor + 1 for name, tensor in _named("ema.").items()}
    assert float(matched(EXPECTED, {**one, **other})["a.weight"][0]) == 1
    other = {name: tensor + 1 for name, tensor in _named("second.").items()}
    with pytest.raises(CheckpointError, match=r"m\.pt holds several networks that fit, 'second\.', 'student\.'"):
        matched(EXPECTED, {**one, **other}, "m.pt")
    assert matched(EXPECTED, {**one, **_named("second.")})


def test_a_difference_names_what_differs():
    found = difference(EXPECTED, {"a.weight": torch.ones(4), "c": torch.ones(1)})
    assert str(found) == (
        "1 missing: b.bias; 1 unexpected: c; 1 misshaped: a.weight (4,) instead of (2,)"
    )  # fmt: skip


def test_the_nearest_architecture_is_named_key_by_key(tmp_path):
    model = build_model("resnet18", 2)
    model.fc = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(512, 2))
    torch.save({"net": model.state_dict(), "lr": 0.1}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"fit resnet18 but for 2 missing: fc\.weight, fc\.bias; 2 unexp"):
        load_model(tmp_path / "m.pt")


def test_an_architecture_is_recognised_beside_other_tensors(tmp_path):
    model = build_model("resnet18", 4).eval()
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items() if "tracked" not in name}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(4)}}, tmp_path / "m.ckpt")
    loaded, found = load_model(tmp_path / "m.ckpt")
    assert (found.arch, found.num_classes) == ("resnet18", 4)
    assert found.notes == ("1 tensor beside the network left out: criterion.weight",)
    assert torch.equal(loaded(images(size=32)), model(images(size=32)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "holds NaN"),
        (float("inf"), "holds infinity"),
        (1j, "is complex"),
    ],
)
def test_weights_that_cannot_be_are_named(tmp_path, value, message):
    state = build_model("mlp", 3, {"in_features": 4, "hidden": [5]}).state_dict()
    name = next(iter(state))
    state[name] = state[name].to(torch.complex64) if isinstance(value, complex) else state[name]
    state[name][0, 0] = value
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=rf"'{name}' {message}"):
        load_model(tmp_path / "m.pt", "mlp(in_features=4, hidden=[5])")


def test_the_number_of_classes_is_the_factorys_own_first(tmp_path, monkeypatch):
    (tmp_path / "factory_classes.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes=3):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(4, num_classes)\n"
        "        self.scale = nn.Parameter(__import__('torch').ones(7))\n"
        "    def forward(self, x):\n"
        "        return self.head(x)\n"
    )
    monkeypatch.chdir(tmp_path)
    for classes in (3, 7):
        torch.save(build_model("factory_classes:Net", classes).state_dict(), "m.pt")
        assert load_model("m.pt", "factory_classes:Net")[1].num_classes == classes

"""Weights as users wrap them."""

import pytest
import torch
from cases import images, slow

from bise_prune import load_model
from bise_prune.checkpoint import load_checkpoint, save_checkpoint
from bise_prune.errors import CheckpointError, ConfigError
from bise_prune.models import build_model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {0: torch.zeros(1)}}},
        lambda s: {"model": s},
        lambda s: {"model": {"state_dict": s}, "args": {"lr": 0.1}},
        lambda s: {"ema_state_dict": s, "epoch": 1},
        lambda s: {"model_ema": {"n_averaged": torch.tensor(3), **s}},
    ],
)
@pytest.mark.parametrize(
    "prefix", ["", "module._orig_mod.", *slow("module.", "_orig_mod.", "model.", "_orig_mod.module.")]
)
def test_users_checkpoints_are_unwrapped(tmp_path, wrap, prefix):
    model = build_model("resnet18", 4).eval()
    torch.save(wrap({prefix + key: value for key, value in model.state_dict().items()}), tmp_path / "my-resnet18.pt")
    loaded, found = load_model(tmp_path / "my-resnet18.pt")
    assert (found.arch, found.num_classes) == ("resnet18", 4)
    assert torch.equal(loaded(images(size=32)), model(images(size=32)))


def test_plain_weights_go_before_averaged_ones(tmp_path):
    torch.save({"model_ema": {"a": torch.zeros(1)}, "model": {"a": torch.ones(1)}}, tmp_path / "m.pt")
    found = load_checkpoint(tmp_path / "m.pt")
    assert float(found.state["a"]) == 1
    assert found.notes == ("m.pt holds averaged weights as well ('model_ema'); the plain ones ('model') count",)
    torch.save({"model_ema": {"a": torch.zeros(1)}, "model": {}}, tmp_path / "m.pt")
    assert load_checkpoint(tmp_path / "m.pt").notes == ("the weights are averaged ones ('model_ema' in m.pt)",)


def test_a_network_whose_names_look_wrapped(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes, width=4):\n"
        "        super().__init__()\n"
        "        layers = nn.Flatten(), nn.Linear(12, width), nn.ReLU(), nn.Linear(width, num_classes)\n"
        "        self.model = nn.Sequential(*layers)\n"
        "    def forward(self, x):\n"
        "        return self.model(x)\n"
        "def number(): return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    model = build_model("mine:Net", 3, {"width": 6}).eval()
    torch.save(model.state_dict(), "m.pt")
    loaded, found = load_model("m.pt", "mine:Net(width=6)")
    assert (found.arch, found.num_classes, found.arguments) == ("mine:Net", 3, {"width": 6})
    assert torch.equal(loaded(images(size=2)), model(images(size=2)))
    save_checkpoint(tmp_path / "own.safetensors", found)
    with pytest.raises(CheckpointError, match="which is not run unasked: pass --arch mine:Net"):
        load_model("own.safetensors")
    assert load_model("own.safetensors", "mine:Net")[1].arguments == {"width": 6}
    for arch, message in (
        ("mine:Other", "'mine' has no function or class 'Other'"),
        ("nowhere:Net", "cannot import 'nowhere'"),
        ("mine:number", "returned int, not an nn.Module"),
        ("mine:Net(6)", "arguments are key=value|is no architecture"),
        ("mine:Net(width=__import__('os'))", "is no architecture"),
        ("mine:Net(depth=6)", "does not take"),
        ("hf:nowhere", "no Hugging Face configuration at"),
        ("mine:Net(width={[]: 1})", "is no architecture"),
        ("mine:Net(width={1})", "is no architecture"),
        (":Net", "something is missing beside the colon"),
        ("mine:Net(width=-1)", "cannot be built"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_model("m.pt", arch)


def test_a_module_in_a_wrapper_is_taken_out(tmp_path):
    model = build_model("resnet18", 4).eval()
    torch.save({"model": torch.nn.DataParallel(model)}, tmp_path / "m.pt")
    loaded, found = load_model(tmp_path / "m.pt")
    assert (found.arch, found.num_classes) == ("resnet18", 4)
    assert torch.equal(loaded(images(size=32)), model(images(size=32)))

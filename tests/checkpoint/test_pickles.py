"""Pickles: what wants code is refused and not run, and whole modules of known classes are read."""

import argparse
import collections
import functools
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import TinyResNet, images, slow
from safetensors.torch import save_file

from bise_prune import load_model
from bise_prune.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bise_prune.checkpoint.pickles import _module_class
from bise_prune.errors import CheckpointError
from bise_prune.models import build_model


class Gadget:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


class Shell(Gadget):
    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


class Evaluated(Gadget):
    def __reduce__(self):
        return (eval, (f"open({str(self.path)!r}, 'w')",))


class Imported(Gadget):
    def __reduce__(self):
        return (functools.partial(open, str(self.path), "w"), ())


class State(Gadget):
    """A harmless class whose state is set by a function of choice."""

    def __reduce__(self):
        return (torch.nn.Identity, (), None, None, iter([("a", Gadget(self.path))]))


@pytest.mark.parametrize("gadget", [Gadget, Shell, Evaluated, Imported, State])
@pytest.mark.parametrize("place", ["alone", "beside weights", "in a module", "as a key"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "pickle protocol 4"])
def test_what_a_pickle_wants_to_run_is_not_run(tmp_path, gadget, place, form):
    bait, path = tmp_path / "bait", tmp_path / "m.pt"
    content = gadget(bait)
    if place == "beside weights":
        content = {"state_dict": {"a": torch.zeros(2)}, "optimizer": content}
    elif place == "in a module":
        module = torch.nn.Linear(2, 2)
        module.extra = content
        content = module
    elif place == "as a key":
        content = {"state_dict": {"a": torch.zeros(2)}, "epoch": (content,)}
    if form in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes(pickle.dumps(content, protocol=4 if form.endswith("4") else 2))
    if place in ("alone", "in a module"):
        with pytest.raises(CheckpointError, match=r"wants to run code.*--trust-pickle|holds no state dict") as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)
    else:
        found = load_checkpoint(path)
        assert found.state["a"].tolist() == [0, 0] and "was left out and not run (" in found.notes[-1]
    assert not bait.exists()


def test_a_refusal_names_what_the_file_wants(tmp_path):
    for legacy in (False, True):
        torch.save(Shell(tmp_path / "bait"), tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError, match=r"holds no state dict .* but an object of posix\.system"):
            load_checkpoint(tmp_path / "m.pt")


class Settings(dict):
    """A mapping of a class that is not there when the file is read."""


def test_harmless_neighbours_do_not_block_the_weights(tmp_path):
    state, path = {"a": torch.arange(3.0)}, tmp_path / "m.pt"
    optimizer = torch.optim.Adam(torch.nn.Linear(2, 2).parameters())
    beside = {
        "namespace": argparse.Namespace(lr=0.1), "path": Path("x"), "scalar": np.float64(0.9), "array": np.zeros(3),
        "default": collections.defaultdict(list, a=[1]), "enum": signal.SIGINT, "settings": Settings(lr=1),
        "optimizer": optimizer, "counter": collections.Counter("ab"), "set": {1, 2},
    }  # fmt: skip
    for name, value in beside.items():
        for zipped in (True, False):
            torch.save({"model": state, "args": value}, path, _use_new_zipfile_serialization=zipped)
            assert load_checkpoint(path).state["a"].tolist() == [0, 1, 2], name


@pytest.mark.filterwarnings("ignore")  # quantised tensors are deprecated
def test_tensors_that_cannot_be_pruned_are_named(tmp_path):
    path = tmp_path / "m.pt"
    unusual = {
        "sparse": torch.eye(2).to_sparse(), "meta": torch.zeros(2, device="meta"),
        "quantised": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8),
    }  # fmt: skip
    for tensor in unusual.values():
        torch.save({"model": {"a": torch.zeros(2), "b": tensor}}, path)
        with pytest.raises(CheckpointError, match=r"'b' is no plain tensor but made by torch\._utils\._rebuild"):
            load_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_the_weights_of_a_module_of_any_class_are_read(tmp_path, zipped):
    model, path = TinyResNet().eval(), tmp_path / "m.pt"
    torch.save({"net": model, "val_acc": 87.5}, path, _use_new_zipfile_serialization=zipped)
    found = load_checkpoint(path)
    assert list(found.state) == list(model.state_dict()) and found.module is None and found.accuracy == 0.875
    assert all(torch.equal(found.state[name], tensor) for name, tensor in model.state_dict().items())
    assert "holds a whole module of class cases.TinyResNet, of which the weights alone were read" in found.notes[0]


def test_tensors_of_all_kinds_are_as_they_were(tmp_path):
    base = torch.arange(24.0).view(4, 6)
    state = {
        "view": base[1:3, ::2], "transposed": base.t(), "scalar": torch.tensor(3), "empty": torch.zeros(0, 4),
        "half": base.half(), "bfloat": base.bfloat16(), "double": base.double(), "bool": base > 3, "bytes": base.byte(),
        "parameter": torch.nn.Parameter(base.clone()), "shared": base,
    }  # fmt: skip
    for write in (torch.save, lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False)):
        write(state, tmp_path / "m.pt")
        found = load_checkpoint(tmp_path / "m.pt").state
        for name, tensor in state.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(state, protocol=2))
    found = load_checkpoint(tmp_path / "m.pkl").state
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_a_trusted_pickle_is_unpickled(tmp_path):
    bait = tmp_path / "bait"
    torch.save({"state_dict": {"a": torch.ones(2)}, "more": Shell(bait)}, tmp_path / "m.pt")
    assert torch.equal(load_checkpoint(tmp_path / "m.pt", trust_pickle=True).state["a"], torch.ones(2))
    assert bait.exists()


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v3_small",
        *slow("vit_b_32", "swin_t", "shufflenet_v2_x0_5"),
    ],
)
def test_whole_modules_of_well_known_classes_are_read(tmp_path, name):
    model = build_model(name, 4).eval()
    path = tmp_path / "whole.pt"
    torch.save(model, path)
    loaded, found = load_model(path)
    assert (found.arch, found.num_classes) == (name, 4)
    inputs = images(size=224 if name == "vit_b_32" else 64)
    with torch.no_grad():
        assert torch.equal(loaded(inputs), model(inputs))


def test_whole_modules_of_the_old_format_are_read(tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    torch.save(model, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    for trust in (False, True):
        loaded, found = load_model(tmp_path / "m.pt", trust_pickle=trust)
        assert found.num_classes == 3 and type(loaded) is torch.nn.Sequential
        assert torch.equal(loaded(images(size=2)), model(images(size=2)))


def test_a_changed_module_stays_as_it_is(tmp_path):
    model = build_model("resnet18", 4).eval()
    model.maxpool = torch.nn.Identity()  # same names, same shapes
    torch.save(model, tmp_path / "resnet18.pt")
    loaded, found = load_model(tmp_path / "resnet18.pt")
    assert found.arch is None and found.num_classes == 4
    assert torch.equal(loaded(images(size=32)), model(images(size=32)))
    assert type(loaded) is type(model) and type(loaded.conv1) is torch.nn.Conv2d


class Made(torch.nn.Identity):
    """Pickled as a call of a well-known module's constructor."""

    def __reduce__(self):
        return (torch.nn.Linear, (2, 2))


def test_a_module_that_is_more_than_a_module_is_refused(tmp_path):
    path = tmp_path / "m.pt"
    torch.save(Made(), path)
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_checkpoint(path)
    torch.save(torch.nn.Sequential(Made()), path)
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_checkpoint(path)

    def shadowed(model):
        vars(model)["forward"] = torch.nn.ReLU()

    def renamed(model):
        model._modules['a", exec("1"))#'] = torch.nn.Identity()

    def hooked(model):
        model._forward_hooks[0] = torch.nn.ReLU()

    for change in (shadowed, renamed, hooked):
        model = torch.nn.Sequential(torch.nn.Linear(2, 2))
        change(model)
        torch.save({"model": model}, path)
        with pytest.raises(CheckpointError, match=r"wants to run code \(a module with"):
            load_checkpoint(path)


@pytest.mark.parametrize("name", [
    "timm.models._features_fx.GraphExtractNet", "torchvision.models.feature_extraction.DualGraphModule",
    "torch.fx.graph_module.GraphModule", "torch.nn.functional.relu", "torch.jit._script.RecursiveScriptModule",
    "torchvision.models.resnet.resnet18", "os.system",
])  # fmt: skip
def test_classes_that_compile_or_are_no_modules_are_not_unpickled(name):
    assert _module_class(name) is None


def test_files_name_nothing_that_is_fetched(tmp_path):
    state = build_model("resnet18", 4).state_dict()
    for arguments in ({"weights": "DEFAULT"}, {"checkpoint_path": "x.pth"}, {"pretrained_cfg": {}}):
        save_checkpoint(
            tmp_path / "m.safetensors", Checkpoint(state, arch="resnet18", num_classes=4, arguments=arguments)
        )
        with pytest.raises(CheckpointError, match="which would fetch other files"):
            load_model(tmp_path / "m.safetensors")
    for about in ('{"arch": "mlp", "num_classes": "10"}', '{"arch": "mlp", "num_classes": 3, "arguments": [1]}'):
        save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors", metadata={"bise_prune": about})
        with pytest.raises(CheckpointError, match="description is damaged"):
            load_model(tmp_path / "m.safetensors")


def test_what_is_nested_is_found_or_named(tmp_path):
    torch.save({"model": {"name": "net", "depth": 3}, "weights": {"a": torch.ones(1)}}, tmp_path / "m.pt")
    assert list(load_checkpoint(tmp_path / "m.pt").state) == ["a"]
    torch.save({"model": {"name": "net"}, "epoch": 3}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"holds no state dict .* but a mapping with 'model', 'epoch'"):
        load_checkpoint(tmp_path / "m.pt")


def test_a_whole_module_of_unknown_build_is_taken_as_it_is(tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    torch.save({"model": model, "epoch": 3}, tmp_path / "m.pt")
    loaded, found = load_model(tmp_path / "m.pt")
    assert (found.arch, found.num_classes) == (None, 3)
    assert torch.equal(loaded(images(size=2)), model(images(size=2)))


class Nested:
    """Pickled as a storage whose bytes are a file of another format."""

    def __init__(self, content):
        self.content = content

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
def test_a_program_within_a_pickle_is_not_loaded(tmp_path, monkeypatch):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "m.ts")

    def refuse(*arguments, **options):
        raise AssertionError("TorchScript was loaded")

    monkeypatch.setattr(torch.jit, "load", refuse)
    for content in ((tmp_path / "m.ts").read_bytes(), b"", b"ustar"):
        (tmp_path / "m.pkl").write_bytes(pickle.dumps({"a": torch.zeros(1), "b": Nested(content)}, protocol=2))
        with pytest.raises(CheckpointError, match="no checkpoint that torch can read"):
            load_checkpoint(tmp_path / "m.pkl")


def test_an_object_without_a_state_is_no_network(tmp_path):
    torch.save({"model": Empty(), "weights": {"a": torch.ones(1)}}, tmp_path / "m.pt")
    assert list(load_checkpoint(tmp_path / "m.pt").state) == ["a"]


class Empty:
    """Pickled by ``__new__`` alone."""

    def __reduce__(self):
        import copyreg

        return copyreg.__newobj__, (Empty,)

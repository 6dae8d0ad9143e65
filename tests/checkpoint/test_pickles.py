"""Pickles: what wants code is refused and not run, and whole modules of known classes are read."""

import functools
import os
import pickle

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
def test_a_pickle_that_wants_code_is_refused_and_not_run(tmp_path, gadget, place, form):
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
    with pytest.raises(CheckpointError, match=r"wants to run code.*--trust-pickle") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not bait.exists()


def test_a_refusal_lists_what_the_file_wants(tmp_path):
    for legacy in (False, True):
        torch.save(Shell(tmp_path / "bait"), tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError, match=r"\(posix\.system\)"):
            load_checkpoint(tmp_path / "m.pt")


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


def test_whole_modules_of_the_old_format_need_trust(tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    torch.save(model, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"whole module in torch's format before version 1\.6.*--trust-pickle"):
        load_checkpoint(tmp_path / "m.pt")
    assert load_model(tmp_path / "m.pt", trust_pickle=True)[1].num_classes == 3


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
    with pytest.raises(CheckpointError, match="wants to run code"):
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


def test_a_pickled_module_is_refused_by_name(tmp_path):
    torch.save(TinyResNet(), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"cases\.TinyResNet.*torch\.save\(model\.state_dict"):
        load_checkpoint(tmp_path / "m.pt")

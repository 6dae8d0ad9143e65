import functools
import json
import os
import pickle

import pytest
import torch
from cases import TinyResNet, images, network, random_masks, randomise
from safetensors.torch import save_file

from bise_prune import MaskSet, load_model, prune
from bise_prune.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bise_prune.checkpoint.networks import save_slim
from bise_prune.checkpoint.pickles import _module_class
from bise_prune.errors import CheckpointError, ConfigError, ModelError
from bise_prune.models import build_model, identify_architecture
from bise_prune.models.pretrained import published_arguments, published_preprocessing
from bise_prune.models.registry import _empty, torchvision_classifiers


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


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "swin_t", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
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


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 broken", b"\x10" + b"\0" * 7 + b"{ no json    }"])
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "m.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.pt"):
        load_checkpoint(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "none.pt")
    torch.save({1: torch.zeros(1)}, tmp_path / "numbers.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_checkpoint(tmp_path / "numbers.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_checkpoint(tmp_path / "list.pt")
    MaskSet({"a": torch.zeros(2)}).save(tmp_path / "masks.safetensors")
    with pytest.raises(CheckpointError, match="holds masks, not a network"):
        load_checkpoint(tmp_path / "masks.safetensors")
    torch.export.save(torch.export.export(network("mlp"), (images(),)), tmp_path / "program.pt2")
    with pytest.raises(CheckpointError, match="a state dict is needed"):
        load_checkpoint(tmp_path / "program.pt2")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_checkpoints_travel_whole(tmp_path, suffix):
    model = build_model("mlp", 3, {"in_features": 12, "hidden": [5]})
    about = Checkpoint(
        model.state_dict(), arch="mlp", num_classes=3, arguments={"in_features": 12, "hidden": [5]},
        data="digits,rho=0.9", preprocessing={"mean": [0.5], "std": [0.5]}, classes=("a", "b", "c"),
    )  # fmt: skip
    save_checkpoint(tmp_path / f"m{suffix}", about)
    loaded, found = load_model(tmp_path / f"m{suffix}")
    assert torch.equal(loaded(torch.ones(1, 12)), model(torch.ones(1, 12)))
    assert (found.data, found.preprocessing, found.classes) == (about.data, about.preprocessing, about.classes)
    assert len(found.sha256) == 64 and not loaded.training


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
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module."])
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


def test_safetensors_in_parts(tmp_path):
    model = build_model("resnet18", 4).eval()
    state = model.state_dict()
    table = {key: f"part-{i % 2}.safetensors" for i, key in enumerate(state)}
    for part in set(table.values()):
        save_file({key: state[key] for key in state if table[key] == part}, tmp_path / part)
    prefixed = tmp_path / "prefixed"
    prefixed.mkdir()
    for part in set(table.values()):
        save_file({f"module.{key}": state[key] for key in state if table[key] == part}, prefixed / part)
    (prefixed / "i.json").write_text(json.dumps({"weight_map": {f"module.{key}": table[key] for key in table}}))
    assert load_checkpoint(prefixed / "i.json").state.keys() == state.keys()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    loaded, found = load_model(index)
    assert found.arch == "resnet18" and torch.equal(loaded(images(size=32)), model(images(size=32)))
    index.write_text(json.dumps({"weight_map": {**table, "more": "part-0.safetensors"}}))
    with pytest.raises(CheckpointError, match="1 tensors are in none of its files, first of all 'more'"):
        load_checkpoint(index)
    index.write_text(json.dumps({"weight_map": {**table, "more": "../../etc/passwd"}}))
    with pytest.raises(CheckpointError, match="parts must lie beside their index"):
        load_checkpoint(index)
    index.write_text(json.dumps({"weight_map": table}))
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of the 2 files .* are missing: part-1\.safetensors"):
        load_checkpoint(index)


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
def test_programs_are_read_where_they_are_trusted(tmp_path):
    model = network("mlp")
    torch.jit.save(torch.jit.script(model), tmp_path / "script.pt")
    torch.export.save(torch.export.export(model, (images(),)), tmp_path / "program.pt2")
    for name, kind in (("script.pt", "a TorchScript"), ("program.pt2", "an exported")):
        with pytest.raises(CheckpointError, match=f"is {kind} program; a state dict is needed"):
            load_checkpoint(tmp_path / name)
        state = load_checkpoint(tmp_path / name, trust_pickle=True).state
        assert state.keys() == model.state_dict().keys()


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


@pytest.mark.parametrize("name", ["regnet_y_400mf", "regnet_x_800mf", "convnext_tiny", "efficientnet_b0", "mnasnet0_5"])
def test_unusual_architectures_are_told_from_the_weights(name):
    assert identify_architecture(build_model(name, 7).state_dict()) == (name, 7, {})


def test_no_two_of_torchvisions_classifiers_have_the_same_names_and_shapes():
    seen = {}
    for name in torchvision_classifiers():
        state = _empty(name, 7, {}).state_dict()
        shapes = frozenset((key, tuple(tensor.shape)) for key, tensor in state.items())
        assert seen.setdefault(shapes, name) == name
    assert len(seen) >= 80


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_heads_that_only_train_and_transformed_inputs(name, tmp_path):
    model = build_model(name, 5, {"aux_logits": True, "transform_input": True})
    torch.save(model.state_dict(), tmp_path / "net.pt")
    loaded, about = load_model(tmp_path / "net.pt")
    assert about.arguments == {"aux_logits": True} and loaded.state_dict().keys() == model.state_dict().keys()
    assert f"--arch '{name}(transform_input=True)'" in about.notes[-1]
    digits = {"googlenet": "1378be20", "inception_v3": "0cc3c7bd"}[name]
    assert published_arguments(name, digits + 56 * "0") == {"transform_input": True}
    assert published_arguments(name, 64 * "0") == published_arguments("resnet18", "f37072fd" + 56 * "0") == {}
    torch.save(model, tmp_path / "whole.pt")
    assert load_model(tmp_path / "whole.pt")[1].arguments == {"aux_logits": True, "transform_input": True}


def test_architectures_are_told_from_the_weights():
    state = build_model("resnet34", 5).state_dict()
    assert identify_architecture(state) == ("resnet34", 5, {})
    with pytest.raises(CheckpointError, match=r"no torchvision classifier fits .*; name it with --arch"):
        identify_architecture({"weight": torch.zeros(3, 3)})
    with pytest.raises(CheckpointError, match="holds no weights"):
        identify_architecture({})


def test_a_plain_safetensors_file_is_recognised(tmp_path):
    model = build_model("resnet18", 4).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")  # keys come back in alphabetical order
    loaded, found = load_model(str(tmp_path / "weights.safetensors"))
    assert (found.arch, found.num_classes) == ("resnet18", 4)
    assert torch.equal(loaded(images(size=32)), model(images(size=32)))


def test_damaged_files_are_refused(tmp_path):
    torch.save(build_model("mlp", 3, {"in_features": 4, "hidden": [3]}).state_dict(), tmp_path / "m.pt")
    whole = bytearray((tmp_path / "m.pt").read_bytes())
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(150):
        content = whole.copy()
        for place in torch.randint(len(whole), (20,), generator=generator).tolist():
            content[place] = int(torch.randint(256, (), generator=generator))
        (tmp_path / "damaged.pt").write_bytes(content)
        try:
            load_checkpoint(tmp_path / "damaged.pt")
        except CheckpointError:
            refused += 1
    assert refused > 50  # the others were hit where only weights stand


def test_mismatches_are_listed(tmp_path):
    state = build_model("resnet18", 4).state_dict()
    del state["conv1.weight"]
    state["extra"] = torch.zeros(1)
    state["layer1.0.conv1.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"1 missing: conv1.*1 unexpected: extra; 1 misshaped: layer1\.0\.conv1"):
        load_model(tmp_path / "m.pt", "resnet18")


def test_architectures_by_name():
    with pytest.raises(ConfigError, match="unknown architecture 'resnet81': did you mean resnet18"):
        build_model("resnet81", 3)
    with pytest.raises(ConfigError, match="architecture 'mlp' does not take"):
        build_model("mlp", 3, {"depth": 2})
    with pytest.raises(ConfigError, match="unknown last_activation 'sin'"):
        build_model("simple_convnet", 3, {"last_activation": "sin"})
    assert type(build_model("torchvision:resnet18", 3)).__name__ == "ResNet"


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2", "simple_convnet"])
@pytest.mark.parametrize("placement", ["tied", "paper"])
def test_slim_networks_are_saved_without_code(tmp_path, arch, placement):
    model = build_model(arch, 3)
    randomise(model, 0)
    model.eval()
    inputs = images(size=32)
    slim = prune(model, random_masks(model, inputs, placement), inputs).model
    save_slim(tmp_path / "slim.safetensors", slim, Checkpoint(model.state_dict(), arch=arch, num_classes=3))
    loaded, found = load_model(tmp_path / "slim.safetensors")
    assert type(loaded) is type(slim) and found.slim is not None
    assert torch.equal(loaded(inputs), slim(inputs))
    loaded.train()(inputs).sum().backward()  # it can be trained further


def test_damaged_descriptions_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors", metadata={"bise_prune": '{"arch": "mlp"}'})
    with pytest.raises(CheckpointError, match="description is damaged"):
        load_checkpoint(tmp_path / "m.safetensors")


def test_mask_files_are_checked(tmp_path):
    with pytest.raises(ModelError, match="no mask file"):
        MaskSet.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ModelError, match="no readable safetensors file"):
        MaskSet.load(tmp_path / "text")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="holds no masks"):
        MaskSet.load(tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="1-D float tensor of finite values"):
        MaskSet({"a": torch.tensor([float("nan")])})


def test_published_weights_bring_their_preprocessing():
    expected = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "size": [224, 224]}
    assert published_preprocessing("resnet18", "f37072fd" + 56 * "0") == expected
    assert published_preprocessing("torchvision:resnet18", "f37072fd" + 56 * "0") == expected
    assert published_preprocessing("resnet18", 64 * "0") == {}  # someone's own weights
    for arch in ("simple_convnet", "mine:Net", None):
        assert published_preprocessing(arch, 64 * "0") == {}

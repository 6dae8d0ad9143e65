import pickle

import pytest
import torch
from cases import TinyResNet, images, network, random_masks, randomise
from safetensors.torch import save_file

from bise_prune import MaskSet, load_model, prune
from bise_prune.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bise_prune.errors import CheckpointError, ConfigError, ModelError
from bise_prune.models import build_model, identify_architecture
from bise_prune.slim import save_slim


class Gadget:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_wants_code_is_refused_and_not_run(tmp_path, legacy):
    bait = tmp_path / "bait"
    torch.save({"state_dict": Gadget(bait)}, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="wants to run code") as caught:
        load_checkpoint(tmp_path / "m.pt")
    assert "\n" not in str(caught.value)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Gadget(bait)))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "plain.pt")
    assert not bait.exists()


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


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_users_checkpoints_are_unwrapped(tmp_path, wrap, prefix):
    model = build_model("resnet18", 4).eval()
    torch.save(wrap({prefix + key: value for key, value in model.state_dict().items()}), tmp_path / "my-resnet18.pt")
    loaded, found = load_model(tmp_path / "my-resnet18.pt")
    assert (found.arch, found.num_classes) == ("resnet18", 4)
    assert torch.equal(loaded(images(size=32)), model(images(size=32)))


def test_architectures_are_told_from_the_weights():
    state = build_model("resnet34", 5).state_dict()
    assert identify_architecture(state) == ("resnet34", 5)
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

"""Slim networks are saved and loaded without code; damaged descriptions are one clear error."""

import copy
import json

import pytest
import torch
from awkward import awkward, closing, error_of, masks_for, pictures
from cases import images, random_masks, randomise, torchvision_network
from safetensors.torch import save_file

from bise_prune import fuse_batchnorm, load_model, load_slim, prune, save_slim
from bise_prune.checkpoint import Checkpoint, load_checkpoint
from bise_prune.errors import CheckpointError
from bise_prune.models import build_model


def test_mismatches_are_listed(tmp_path):
    state = build_model("resnet18", 4).state_dict()
    del state["conv1.weight"]
    state["extra"] = torch.zeros(1)
    state["layer1.0.conv1.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"1 missing: conv1.*1 unexpected: extra; 1 misshaped: layer1\.0\.conv1"):
        load_model(tmp_path / "m.pt", "resnet18")


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


def test_precisions_are_kept_layer_by_layer(tmp_path):
    model, inputs = awkward("no bias").float(), pictures().float()
    model.register_buffer("clock", torch.zeros(3, dtype=torch.float64))
    model.norm.to(torch.float32)
    result = prune(model, closing(model, inputs, a=[0, 1, 2]), inputs)
    assert result.model.clock.dtype == torch.float64 and result.model.b.bias.dtype == torch.float32
    slim = copy.deepcopy(result.model).half()
    save_slim(tmp_path / "half.safetensors", slim)
    other = awkward("no bias").float()
    other.register_buffer("clock", torch.zeros(3))
    loaded = load_slim(tmp_path / "half.safetensors", other)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float16}


DAMAGE = [
    {"edits": 3}, {"totals": None}, {"groups": {"b": "x"}}, {"identities": ["nowhere"]}, {"identities": [3]},
    {"edits": [{"function": "add"}]},
]  # fmt: skip

EDIT_DAMAGE = [
    {"action": "explode"}, {"count": -1}, {"operands": {"0": {"dim": 99, "index": [0], "constants": [], "present": 1}}},
    {"operands": {"0": {"dim": 1, "index": [7], "constants": [], "present": 1}}}, {"mask": [1, 3]},
    {"operands": {"0": {"dim": 1, "index": ["a"], "constants": [], "present": 1}}}, {"fixed": {"0": [[2], ["a", "b"]]}},
    {"fixed": {"0": [[2, 2], [1.0]]}}, {"operands": {"0": {"dim": 1, "index": [0], "constants": ["a"], "present": 1}}},
]  # fmt: skip


@pytest.mark.parametrize("damage", [*DAMAGE, *EDIT_DAMAGE], ids=str)
def test_damaged_headers_are_one_clear_error(rewired, tmp_path, damage):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "slim.safetensors"
    save_slim(path, rewired[0])
    with safe_open(path, framework="pt") as file:
        about, state = json.loads(file.metadata()["bise_prune"]), {k: file.get_tensor(k) for k in file.keys()}
    if damage in EDIT_DAMAGE:
        about["slim"]["edits"][0].update(damage)
    else:
        about["slim"].update(damage)
    save_file(state, path, metadata={"bise_prune": json.dumps(about)})
    with pytest.raises(CheckpointError, match=r"slim\.safetensors"):
        load_slim(path, torchvision_network("shufflenet_v2_x0_5"))


def test_it_is_written_and_read_without_code(rewired, tmp_path):
    slim, inputs = rewired
    save_slim(tmp_path / "slim.safetensors", slim)
    with pytest.raises(CheckpointError, match="does not name an architecture"):
        load_slim(tmp_path / "slim.safetensors")
    loaded = load_slim(tmp_path / "slim.safetensors", torchvision_network("shufflenet_v2_x0_5", seed=1))
    assert torch.equal(loaded(inputs), slim(inputs))


@pytest.mark.parametrize("name", ["grouped after concat", "constants", "no bias"])
def test_networks_of_users_are_written_and_read(name, tmp_path):
    model, inputs = awkward(name), pictures()
    result = prune(model, masks_for(model, inputs, "paper", 1, 0.5), inputs, joins="expand")
    fused = fuse_batchnorm(result.model, inputs)
    for slim in (result.model, fused):
        save_slim(tmp_path / "slim.safetensors", slim, plan=result.plan)
        loaded = load_slim(tmp_path / "slim.safetensors", awkward(name, 5))
        assert error_of(loaded, slim, inputs) == 0
    assert load_checkpoint(tmp_path / "slim.safetensors").plan == json.loads(json.dumps(result.plan.as_dict()))

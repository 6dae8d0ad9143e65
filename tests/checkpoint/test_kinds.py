"""Kinds of weight files: safetensors, in parts as well, and programs."""

import json

import pytest
import torch
from cases import images, network
from safetensors.torch import save_file

from bise_prune import load_model
from bise_prune.checkpoint import load_checkpoint
from bise_prune.errors import CheckpointError
from bise_prune.models import build_model


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
@pytest.mark.parametrize("kind", ["mlp", "simple_convnet"])
def test_the_weights_of_programs_are_read_without_running_them(tmp_path, kind):
    model = network(kind)
    torch.jit.save(torch.jit.script(model), tmp_path / "script.pt")
    torch.export.save(torch.export.export(model, (images(),)), tmp_path / "program.pt2")
    for name in ("script.pt", "program.pt2"):
        found = load_checkpoint(tmp_path / name).state
        assert found.keys() == model.state_dict().keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in model.state_dict().items())


def test_a_plain_safetensors_file_is_recognised(tmp_path):
    model = build_model("resnet18", 4).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")  # keys come back in alphabetical order
    loaded, found = load_model(str(tmp_path / "weights.safetensors"))
    assert (found.arch, found.num_classes) == ("resnet18", 4)
    assert torch.equal(loaded(images(size=32)), model(images(size=32)))


def test_folders_of_hugging_face_that_are_not_whole(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a folder without config\.json and model\.safetensors"):
        load_checkpoint(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    for text in ("[]", "{", '{"id2label": {"x": 1}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json is damaged: "):
            load_checkpoint(tmp_path)


def test_own_files_whose_weights_are_damaged(tmp_path):
    torch.save({"bise_prune": "{}", "state_dict": {"a": 3}}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"m\.pt: its weights are damaged"):
        load_checkpoint(tmp_path / "m.pt")

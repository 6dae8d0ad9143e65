"""What SECURITY.md says, sentence by sentence and in its order; more on pickles in checkpoint/test_pickles.py."""

import dataclasses
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import network
from folders import Words, write_csv, write_picture
from projects import fails, run
from safetensors.torch import save_file

from bise_prune import RunConfig, load_model, load_slim
from bise_prune.app import cli
from bise_prune.app.checks import check_specification
from bise_prune.app.settings import read_settings
from bise_prune.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bise_prune.data import load_data
from bise_prune.data.huggingface import load_huggingface
from bise_prune.errors import BiseError, CheckpointError, ConfigError, DataError
from bise_prune.mask_search.state_file import finished_epochs
from bise_prune.models import build_model


class Bait:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_parts_of_a_file_lie_in_the_folder_of_their_index(tmp_path):
    (tmp_path / "i.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(CheckpointError, match="parts must lie beside their index"):
        load_checkpoint(tmp_path / "i.json")


def test_what_a_pickle_asks_for_is_neither_imported_nor_called(tmp_path):
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path('imported').touch()\nclass Thing: pass\n")
    torch.save({"state_dict": {"a": torch.zeros(1)}, "more": Bait(tmp_path / "called")}, tmp_path / "m.pt")
    content = (tmp_path / "m.pt").read_bytes()
    assert content.count(b"posix") or content.count(b"mkdir")
    reading = (
        "import sys; sys.path.insert(0, '.')\n"
        "from pathlib import Path\n"
        "from bise_prune.checkpoint import load_checkpoint\n"
        "import pickle\n"
        "Path('p.pkl').write_bytes(b'\\x80\\x02}X\\x01\\x00\\x00\\x00acevil\\nThing\\n)\\x81s.')\n"
        "found = load_checkpoint(Path('m.pt'))\n"
        "try: load_checkpoint(Path('p.pkl'))\n"
        "except Exception as error: print(error)\n"
        "print(found.notes)\n"
    )
    done = subprocess.run([sys.executable, "-c", reading], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "holds no state dict" in done.stdout and "was left out and not run" in done.stdout
    assert not (tmp_path / "imported").exists() and not (tmp_path / "called").exists()


def test_a_trusted_pickle_runs_what_it_wants(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "more": Bait(tmp_path / "called")}, tmp_path / "m.pt")
    load_checkpoint(tmp_path / "m.pt", trust_pickle=True)
    assert (tmp_path / "called").is_dir()


def test_constructors_of_whole_modules_are_not_called(tmp_path, monkeypatch):
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 3)), tmp_path / "m.pt")

    def refuse(*arguments, **options):
        raise AssertionError("a constructor was called")

    monkeypatch.setattr(torch.nn.Linear, "__init__", refuse)
    assert type(load_checkpoint(tmp_path / "m.pt").module[0]) is torch.nn.Linear


def test_modules_that_are_more_than_that_are_refused(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model._forward_pre_hooks[0] = Bait(tmp_path / "called")
    torch.save({"model": model}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="wants to run code"):
        load_checkpoint(tmp_path / "m.pt")
    assert not (tmp_path / "called").exists()


def test_of_other_modules_the_weights_alone_are_read(tmp_path):
    (tmp_path / "theirs.py").write_text(
        "import pathlib, torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self): super().__init__(); self.fc = torch.nn.Linear(2, 3)\n"
        "    def __setstate__(self, state): pathlib.Path('called').touch(); self.__dict__.update(state)\n"
    )
    saving = (
        "import torch, theirs\nnet = theirs.Net()\n"
        "torch.save(net, 'own.pt')\ntorch.save(torch.nn.Sequential(net), 'in.pt')\n"
    )
    subprocess.run([sys.executable, "-c", saving], cwd=tmp_path, check=True)
    for name, expected in (("own.pt", ["fc.weight", "fc.bias"]), ("in.pt", ["0.fc.weight", "0.fc.bias"])):
        found = load_checkpoint(tmp_path / name)
        assert list(found.state) == expected and found.module is None
    assert not (tmp_path / "called").exists() and "theirs" not in sys.modules


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
def test_the_code_in_a_program_is_not_loaded(tmp_path, monkeypatch):
    model = network("mlp")
    torch.jit.save(torch.jit.script(model), tmp_path / "m.ts")
    torch.export.save(torch.export.export(model, (torch.zeros(2, 3, 8, 8),)), tmp_path / "m.pt2")

    def refuse(*arguments, **options):
        raise AssertionError("a loader was called")

    monkeypatch.setattr(torch.jit, "load", refuse)
    monkeypatch.setattr(torch.export, "load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    for name in ("m.ts", "m.pt2"):
        assert load_checkpoint(tmp_path / name).state.keys() == model.state_dict().keys()


FACTORY = """
import argparse, sys
from torch import nn
print("loading")
parser = argparse.ArgumentParser(); parser.add_argument("--width", default=4, type=int)
width = parser.parse_args().width
def make(num_classes=2):
    print("making"); return nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, num_classes))
def leave(num_classes=2): sys.exit(0)
"""


def test_a_factory_is_the_users_code_but_cannot_end_or_silence_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_factory.py").write_text(FACTORY)
    monkeypatch.setattr(sys, "argv", ["bise-prune", "--width", "x", "--json"])
    model = build_model("my_factory:make", 3)
    captured = capsys.readouterr()
    assert captured.out == "" and "loading" in captured.err and "making" in captured.err
    assert model[1].out_features == 4 and sys.argv[1:] == ["--width", "x", "--json"]
    with pytest.raises(ConfigError, match=r"--arch my_factory:leave: its code ends the process \(exit 0\)"):
        build_model("my_factory:leave", 3)
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(ConfigError, match=r"ends the process \(exit 3\)"):
        build_model("leaving:make", 3)


def test_a_factory_that_a_file_names_is_not_run_unasked(tmp_path):
    save_checkpoint(tmp_path / "m.safetensors", Checkpoint({"a": torch.zeros(1)}, arch="os:mkdir", num_classes=2))
    with pytest.raises(CheckpointError, match="which is not run unasked"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize("name", ["weights", "weights_backbone", "checkpoint_path", "cache_dir", "pretrained_cfg"])
def test_a_file_cannot_ask_for_other_weights(tmp_path, name):
    about = Checkpoint({"a": torch.zeros(1)}, arch="resnet18", num_classes=2, arguments={name: "DEFAULT"})
    save_checkpoint(tmp_path / "m.safetensors", about)
    for arch in (None, "resnet18"):
        with pytest.raises(CheckpointError, match="would fetch other files"):
            load_model(tmp_path / "m.safetensors", arch)


@pytest.mark.parametrize(
    "change",
    [
        {"edits": [{"name": "os.system", "action": "call"}]},
        {"edits": [{"code": "import os"}]},
        {"identities": ["a; b"]},
        {"totals": {"a": "b"}},
        {"groups": {"x": []}},
    ],
)
def test_the_changed_calls_of_a_slim_checkpoint_are_data(done, tmp_path, change):
    root, _ = done
    found = load_checkpoint(root / "out" / "slim.safetensors")
    changed = dataclasses.replace(found, slim={**found.slim, **change})
    save_checkpoint(tmp_path / "slim.safetensors", changed)
    with pytest.raises(CheckpointError, match="its description is damaged"):
        load_slim(tmp_path / "slim.safetensors")


def test_the_configuration_of_a_model_runs_no_code_of_its_own(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    (tmp_path / "theirs.py").write_text("import pathlib; pathlib.Path('called').touch()\n")
    code = {"auto_map": {"AutoModelForSequenceClassification": "theirs.Net"}, "attn_implementation": "evil/kernel",
            "experts_implementation": "evil/kernel", "_attn_implementation_internal": "evil/kernel"}  # fmt: skip
    config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
              "vocab_size": 20, "max_position_embeddings": 8, "model_type": "bert"}  # fmt: skip
    model = build_model("transformers", 2, {"config": config})
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config | code | {"num_labels": 2}))
    monkeypatch.chdir(tmp_path)
    loaded, _ = load_model(tmp_path)
    assert type(loaded) is type(model) and not (tmp_path / "called").exists() and "theirs" not in sys.modules
    (tmp_path / "model.safetensors").unlink()
    content = {"state_dict": model.state_dict(), "more": Bait(tmp_path / "called")}
    torch.save(content, tmp_path / "pytorch_model.bin")
    load_checkpoint(tmp_path)  # a pickle, and treated as one
    assert not (tmp_path / "called").exists()


def test_a_tokenizer_that_brings_code_is_refused(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    from bise_prune.data.text import load_tokenizer

    asked = []

    def loaded(*arguments, **options):
        asked.append(options)
        raise ValueError("requires you to execute the tokenizer file")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", loaded)
    with pytest.raises(DataError, match="no tokenizer in"):
        load_tokenizer(tmp_path)
    assert asked == [{"local_files_only": True, "trust_remote_code": False}]


def test_arrays_are_read_without_objects(tmp_path):
    np.save(tmp_path / "images.npy", np.array([Bait(tmp_path / "called")], dtype=object), allow_pickle=True)
    np.save(tmp_path / "attrs.npy", np.zeros((1, 2), int))
    with pytest.raises(DataError, match="it holds pickled objects"):
        load_data(str(tmp_path))
    assert not (tmp_path / "called").exists()


def test_batches_of_cifar_know_no_other_names(tmp_path):
    from bise_prune.data.cifar10 import load_cifar10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps({b"data": Bait(tmp_path / "called"), b"labels": []}))
    with pytest.raises(DataError):
        load_cifar10(tmp_path, "train")
    assert not (tmp_path / "called").exists()


def test_images_start_no_program(tmp_path, monkeypatch):
    for i in range(2):
        write_picture(tmp_path / f"{i}.png", i)
    (tmp_path / "1.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\n")
    write_csv(tmp_path / "metadata.csv", [["file", "label", "split"], ["0.png", 0, "train"], ["1.png", 1, "train"]])

    def refuse(*arguments, **options):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(DataError, match=r"1\.png is unreadable \(no image format that is known\)"):
        load_data(str(tmp_path))


def test_no_script_beside_parquet_files_is_run(tmp_path, monkeypatch):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": ["a", "b"], "label": [0, 1], "bias": [1, 0], "split": ["train", "val"]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    script = f"import pathlib; pathlib.Path({str(tmp_path / 'called')!r}).touch()\n"
    for name in ("dataset.py", f"{tmp_path.name}.py", "rows.py"):
        (tmp_path / name).write_text(script)
    monkeypatch.chdir(tmp_path)
    load_huggingface(tmp_path, {}, Words())
    assert not (tmp_path / "called").exists()


def test_a_table_may_name_files_elsewhere_and_a_checkpoint_its_data(tmp_path):
    for i in range(2):
        write_picture(tmp_path / "elsewhere" / f"{i}.png", i)
    rows = [
        ["file", "label", "split"],
        [str(tmp_path / "elsewhere" / "0.png"), 0, "train"],
        ["../elsewhere/1.png", 1, "val"],
    ]
    write_csv(tmp_path / "data" / "metadata.csv", rows)
    assert len(load_data(str(tmp_path / "data")).train) == 1
    about = Checkpoint({"a": torch.zeros(1)}, data=str(tmp_path / "data"))
    config = RunConfig(checkpoint=tmp_path / "m.pt", output=tmp_path / "out")
    assert check_specification(config, about) == str(tmp_path / "data")


@pytest.mark.parametrize("what", ["checkpoint", "data", "config", "masks", "plan"])
def test_pipes_are_not_opened(project, tmp_path, capsys, what):
    pipe = tmp_path / {"config": "c.toml", "data": "d.csv"}.get(what, "m.safetensors")
    os.mkfifo(pipe)
    given = {"checkpoint": project / "net.pt", "data": project / "data"} | {what: pipe}
    options = [f"--{what}={pipe}"] if what in ("config", "masks", "plan") else []
    code = 2 if what == "config" else 1
    fails(capsys, given["checkpoint"], "--data", given["data"], "--output", tmp_path / "out", *options, code=code)
    assert not (tmp_path / "out").exists()


def test_settings_files_hold_no_code_but_every_option(tmp_path):
    (tmp_path / "s.yaml").write_text("trust_pickle: true\narch: theirs:net\n")
    assert read_settings(tmp_path / "s.yaml") == {"trust_pickle": True, "arch": "theirs:net"}
    (tmp_path / "s.yaml").write_text(f"arch: !!python/object/apply:os.mkdir ['{tmp_path / 'called'}']\n")
    with pytest.raises(ConfigError, match="is no YAML"):
        read_settings(tmp_path / "s.yaml")
    assert not (tmp_path / "called").exists()


def test_the_state_of_a_search_is_read_as_weights(tmp_path):
    body = io.BytesIO()
    torch.save({"history": [], "more": Bait(tmp_path / "called")}, body)
    (tmp_path / "state.pt").write_bytes(hashlib.sha256(body.getvalue()).digest() + body.getvalue())
    with pytest.raises(BiseError, match="delete it"):
        finished_epochs(tmp_path / "state.pt")
    assert not (tmp_path / "called").exists()


NAMES = "a`<img src=x onerror=alert(1)>[/red]\x1b[31m", "b|c&lt;*d*"


def test_names_from_data_are_escaped_for_where_they_go(project, tmp_path, capsys):
    folder = tmp_path / "a`b<i>"
    folder.mkdir()
    lines = (project / "data" / "metadata.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    places = lines[0].split(",")
    names = {str(i): name for i, name in enumerate((*NAMES, "plain"))}
    label, file = places.index("label"), places.index("file")
    for row in rows:
        (folder / row[file]).symlink_to(project / "data" / row[file])
        row[label] = names[row[label]]
    write_csv(folder / "metadata.csv", [places, *rows])
    (tmp_path / "net`w<b>.pt").write_bytes((project / "net.pt").read_bytes())
    options = ["--anneal-every", "1", "--head-epochs", "1", "--batch-size", "20", "--device", "cpu", "--round-to", "1"]
    out = tmp_path / "out"
    arguments = [tmp_path / "net`w<b>.pt", "--data", folder, "--output", out, *options, "--classes", "x,y,z"]
    line = fails(capsys, *arguments)
    assert "\x1b" not in line and "\\x1b[31" in line
    arguments = arguments[:-2]
    for extra in (["--dry-run"], []):
        assert cli.main([str(argument) for argument in [*arguments, *extra]]) == 0
        captured = capsys.readouterr()
        assert "\x1b" not in captured.out + captured.err
        assert not extra or "[/red]" in captured.out
    card, page = (out / "README.md").read_text(), (out / "report.html").read_text()
    assert "<img src=x" not in card.replace("\\<img", "") and "<img src=x" not in page
    assert "`` net`w<b>.pt ``" in card and "\x1b" not in card + page


def test_nothing_is_downloaded(project, tmp_path, monkeypatch):
    import socket

    def refuse(*arguments, **options):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    run(project, tmp_path / "out")

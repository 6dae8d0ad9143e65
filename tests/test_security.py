"""What SECURITY.md says, sentence by sentence; the tests of pickles stand in checkpoint/test_pickles.py."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import network
from folders import write_csv, write_picture
from projects import fails, run

from bise_prune import load_model
from bise_prune.app import cli
from bise_prune.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bise_prune.data import load_data
from bise_prune.errors import CheckpointError, ConfigError, DataError
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


@pytest.mark.parametrize("what", ["checkpoint", "data", "config", "masks", "plan"])
def test_pipes_are_not_opened(project, tmp_path, capsys, what):
    pipe = tmp_path / {"config": "c.toml", "data": "d.csv"}.get(what, "m.safetensors")
    os.mkfifo(pipe)
    given = {"checkpoint": project / "net.pt", "data": project / "data"} | {what: pipe}
    options = [f"--{what}={pipe}"] if what in ("config", "masks", "plan") else []
    code = 2 if what == "config" else 1
    fails(capsys, given["checkpoint"], "--data", given["data"], "--output", tmp_path / "out", *options, code=code)
    assert not (tmp_path / "out").exists()


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

"""A small project of a user, the command on it, and what it says."""

import html.parser
import importlib.util
import json
import shutil
import sys

import torch
from cases import biased_data
from folders import write_folder
from paths import TOOLS
from PIL import Image

from bise_prune.app import cli
from bise_prune.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bise_prune.data import BatchLoader
from bise_prune.models import build_model
from bise_prune.tuning.vanilla import train_vanilla

ARCHITECTURE = {"kernel_size": 3, "widths": [6, 8], "strides": [2, 1]}

# Widths that are not measured: the same ones on every machine.
FAST = ["--anneal-every", "1", "--head-epochs", "2", "--batch-size", "20", "--device", "cpu", "--round-to", "1"]

# The default search on held-out samples, in few steps, also of a network that is at chance.
GRADUAL = ["--steps", "24", "--batch-size", "20", "--device", "cpu", "--round-to", "1", "--force",
           "--search-on", "validation"]  # fmt: skip


def write_project(root, widths=(6, 8)):
    architecture = {**ARCHITECTURE, "widths": list(widths)}
    data = biased_data(n=180, rho=0.8)
    pixels = (data.inputs * 20 + 90).clamp(0, 255).to(torch.uint8)
    rows = []
    (root / "data").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / "data" / f"{i}.png")
        rows.append((int(data.target[i]), int(data.bias[i, 0]), ("train", "train", "val", "test")[i % 4], f"{i}.png"))
    write_folder(root / "data", rows)
    torch.manual_seed(0)
    model = build_model("simple_convnet", 3, architecture)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    inputs = (pixels.float() / 255 - 0.5) / 0.25
    train_vanilla(model, BatchLoader(type(data)(inputs, data.target, data.bias), 30), optimizer, epochs=4)
    about = Checkpoint(
        model.state_dict(), arch="simple_convnet", num_classes=3, arguments=architecture,
        preprocessing={"mean": [0.5] * 3, "std": [0.25] * 3},
    )  # fmt: skip
    save_checkpoint(root / "net.pt", about)
    return root


def write_spoiled(project, folder):
    """The project's network with norms behind which all samples look the same."""
    checkpoint = load_checkpoint(project / "net.pt")
    for name in [key.removesuffix("running_mean") for key in checkpoint.state if key.endswith("running_mean")]:
        checkpoint.state[name + "weight"].fill_(0.0)
        checkpoint.state[name + "bias"].fill_(0.1)
    save_checkpoint(folder / "net.pt", checkpoint)
    return folder


def fails(capsys, *arguments, code=1):
    """Run the command; the one line it ends with."""
    assert cli.main([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("bise-prune: error: ")]
    assert "Traceback" not in captured.err and captured.out == ""
    return line


def edited(project, tmp_path, change):
    """A copy of the data folder with other rows."""
    folder = tmp_path / "data"
    shutil.copytree(project / "data", folder)
    lines = (folder / "metadata.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    (folder / "metadata.csv").write_text("\n".join([lines[0], *(",".join(change(row)) for row in rows)]) + "\n")
    return folder


def run(project, output, *extra):
    arguments = [project / "net.pt", "--data", project / "data", "--output", output, *FAST, *extra]
    assert cli.main([str(argument) for argument in arguments]) == 0
    report = output / "report.json"
    return json.loads(report.read_text()) if report.exists() else None


class Page(html.parser.HTMLParser):
    """Tags, ids and what they point at."""

    VOID = ("meta", "link", "br", "img", "path", "use", "input")

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.open, self.tables, self.words = [], [], [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [value for key, value in attrs if key in ("href", "src", "xlink:href")]
        self.tables += tag == "table"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def interrupted(search, after):
    """A search that is interrupted as from the keyboard at the end of an epoch."""

    def searched(*arguments, on_epoch, **options):
        def stop(record, total):
            on_epoch(record, total)
            if record.epoch == after:
                raise KeyboardInterrupt

        return search(*arguments, on_epoch=stop, **options)

    return searched


def long_command(project, output, *extra):
    """A run that takes a while, to be stopped."""
    arguments = [project / "net.pt", "--data", project / "data", "--output", output, *FAST, "--anneal-every", "6"]
    return [sys.executable, "-m", "bise_prune", *map(str, arguments), "--no-early-stop", "--no-sweep", "--json", *extra]


def tool(name, monkeypatch):
    """A program of tools/ as a module."""
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

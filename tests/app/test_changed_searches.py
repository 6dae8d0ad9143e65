"""A stopped search is taken up by the same command alone: whatever decides its masks is told apart, by name."""

import csv
import shutil
import sys

import pytest
import torch
from cases import slow
from PIL import Image
from projects import FAST, interrupted

from bise_prune.app import cli
from bise_prune.app.stages import search as searching
from bise_prune.mask_search import identity

FACTORY = """
from bise_prune.models import build_model

class Net(type(build_model("simple_convnet", 3, {arguments}))):
    def forward(self, x):
        return super().forward(x * {scale})

def net(num_classes=3):
    return Net(num_classes, **{arguments})
"""
ARGUMENTS = {"kernel_size": 3, "widths": [6, 8], "strides": [2, 1]}


def _command(root, *extra):
    places = [root / "net.pt", "--arch", "own:net", "--data", root / "data", "--output", root / "out"]
    return [*map(str, places), *FAST, "--search", "paper", "--mean", ".5,.5,.5", "--std", ".25,.25,.25", *extra]


def _write_factory(root, scale=1.0):
    (root / "own.py").write_text(FACTORY.format(arguments=ARGUMENTS, scale=scale))


@pytest.fixture(scope="module")
def stopped(project, tmp_path_factory):
    """A project whose search was stopped in its fourth epoch."""
    root = shutil.copytree(project, tmp_path_factory.mktemp("stopped") / "project")
    torch.save(torch.load(root / "net.pt")["state_dict"], root / "net.pt")
    _write_factory(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(searching, "search", interrupted(searching.search, after=4))
        assert cli.main(_command(root)) == 130
        sys.modules.pop("own", None)
    return root


def table(change):
    def changed(root):
        path = root / "data" / "metadata.csv"
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        rows = change(rows) or rows
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    return changed


def first_of(split, column, value):
    def changed(rows):
        next(row for row in rows if row["split"] == split and row[column] != value)[column] = value

    return table(changed)


def pixel(split):
    """Change one pixel of the first image of a split by one."""

    def changed(root):
        with (root / "data" / "metadata.csv").open(newline="") as file:
            name = next(row["file"] for row in csv.DictReader(file) if row["split"] == split)
        image = Image.open(root / "data" / name).convert("RGB")
        r, g, b = image.getpixel((0, 0))
        image.putpixel((0, 0), ((r + 1) % 256, g, b))
        image.save(root / "data" / name)

    return changed


def weights(change):
    def changed(root):
        state = torch.load(root / "net.pt")
        change(state)
        torch.save(state, root / "net.pt")

    return changed


def bump(ending):
    """Change the first number of the first tensor with a name that ends so."""

    def changed(state):
        next(tensor for name, tensor in state.items() if name.endswith(ending)).view(-1)[0] += 1e-3

    return weights(changed)


def swapped_rows(rows):
    one, two = [i for i, row in enumerate(rows) if row["split"] == "train"][:2]
    rows[one], rows[two] = rows[two], rows[one]


def flags(*extra):
    return extra


TRAINING, VALIDATION, WEIGHTS = "the training data", "the validation data", "the network's weights"
CHANGES = {
    # what is changed between the stop and the same command: how, and what the refusal names
    "a pixel in training": (pixel("train"), TRAINING),
    "a pixel in validation": (pixel("val"), VALIDATION),
    "a label in training": (first_of("train", "label", "2"), TRAINING),
    "a bias label in training": (first_of("train", "bias", "2"), TRAINING),
    "a label in validation": (first_of("val", "label", "2"), VALIDATION),
    "a bias label in validation": (first_of("val", "bias", "2"), VALIDATION),
    "the order of rows": (table(swapped_rows), TRAINING),
    "a row more": (first_of("test", "split", "train"), TRAINING),
    "a row less": (first_of("train", "split", "test"), TRAINING),
    "a row from validation": (first_of("val", "split", "test"), VALIDATION),
    "the mean": (flags("--mean", ".5,.5,.501"), TRAINING),
    "the standard deviation": (flags("--std", ".25,.25,.251"), TRAINING),
    "the size": (flags("--size", "6,9"), TRAINING),
    "the crop": (flags("--size", "8", "--crop", "0.5"), TRAINING),
    "the data's column": (flags("--bias-column", "label", "--label-column", "bias"), TRAINING),
    "the data learned on": (flags("--search-on", "validation"), TRAINING),
    "a weight": (bump(".weight"), WEIGHTS),
    "a running mean": (bump("running_mean"), WEIGHTS),
    "a running variance": (bump("running_var"), WEIGHTS),
    "the source of the network": (lambda root: _write_factory(root, 0.999), "the network's forward pass"),
    "the batch size": (flags("--batch-size", "19"), "the batches"),
    "stratified batches": (flags("--stratified",), "the batches"),
    "the seed": (flags("--seed", "1"), "seed"),
    "the kind of search": (flags("--search", "gradual", "--anneal-every", "10", "--head-epochs", "50"), "method"),
    "the masks' rate": (flags("--mask-lr", "0.02"), "mask_lr"),
    "the masks' momentum": (flags("--mask-momentum", "0.8"), "mask_momentum"),
    "the masks' decay": (flags("--mask-weight-decay", "0"), "mask_weight_decay"),
    "the head's rate": (flags("--head-lr", "0.2"), "head_lr"),
    "the head's momentum": (flags("--head-momentum", "0.8"), "head_momentum"),
    "the head's decay": (flags("--head-weight-decay", "0"), "head_weight_decay"),
    "the head's epochs": (flags("--head-epochs", "3"), "head_epochs"),
    "the weight of the information": (flags("--mi-weight", "2"), "mi_weight"),
    "the pool": (flags("--mi-pool", "40"), "mi_pool"),
    "the annealing": (flags("--anneal-every", "2"), "anneal_every"),
    "the factor": (flags("--anneal-factor", "0.4"), "anneal_factor"),
    "the last temperature": (flags("--min-temperature", "0.01"), "min_temperature"),
    "the first logits": (flags("--initial-logit", "0.1"), "the masks it starts from"),
    "batch norms": (flags("--batchnorm", "affine"), "batchnorm"),
    "early stopping": (flags("--no-early-stop",), "early_stop"),
    "the weighting": (flags("--weighting", "alignment"), "weighting"),
    "the gates": (flags("--placement", "paper"), "placement"),
    "the target": (flags("--target-flops", "0.5"), "budget"),
}  # fmt: skip


def _taken_up(stopped, tmp_path, monkeypatch, change, *always):
    """Copy the stopped project, change something, and run the command; its exit code."""
    root = shutil.copytree(stopped, tmp_path / "project")
    monkeypatch.chdir(root)
    monkeypatch.setitem(sys.modules, "own", None)  # as another process, which has not imported it
    del sys.modules["own"]
    if callable(change):
        change(root)
        change = ()
    return cli.main(_command(root, *change, *always)), root


FEW = {name for name, (change, _) in CHANGES.items() if callable(change)} | {"the mean", "the seed", "the batch size"}


@pytest.mark.parametrize("what", [*sorted(FEW), *slow(*sorted(CHANGES.keys() - FEW))])
def test_a_changed_command_is_refused_with_what_differs(stopped, tmp_path, capsys, monkeypatch, what):
    change, name = CHANGES[what]
    code, root = _taken_up(stopped, tmp_path, monkeypatch, change, "--force")
    errors = capsys.readouterr().err
    assert code == 1, errors
    assert "belongs to a search that differs from this one in " in errors and "delete the file to start anew" in errors
    differing = errors.partition("differs from this one in ")[2].partition(": repeat")[0]
    assert name in differing, differing
    assert [path.name for path in (root / "out").glob("[!.]*")] == ["search-state.pt"]  # not a byte is lost


@pytest.mark.parametrize(
    ("where", "value", "name"),
    [
        ("__version__", "9.9", "the version of bise-prune"),
        ("world", lambda: (0, 2), "the number of processes"),
    ],
)
def test_another_version_or_number_of_processes(stopped, tmp_path, capsys, monkeypatch, where, value, name):
    monkeypatch.setattr(identity, where, value)
    code, _ = _taken_up(stopped, tmp_path, monkeypatch, (), "--force")
    assert code == 1 and name in capsys.readouterr().err


def touched(root):
    """What decides nothing: times, another place, the order of tensors in the file, and a comment in the source."""
    state = torch.load(root / "net.pt")
    torch.save({"epoch": 7, "state_dict": dict(reversed(state.items()))}, root / "net.pt")
    (root / "own.py").write_text((root / "own.py").read_text() + "\n# another line\n")
    for path in (root / "data").iterdir():
        path.touch()


@pytest.mark.parametrize("change", [(), touched, flags("--min-worst-group", "0"), flags("--half", "--resume")])
def test_what_decides_nothing_may_change(stopped, tmp_path, monkeypatch, change):
    search, epochs = searching.search, []

    def counting(*arguments, on_epoch, **options):
        return search(*arguments, on_epoch=lambda record, total: epochs.append(record.epoch), **options)

    monkeypatch.setattr(searching, "search", counting)
    code, _ = _taken_up(stopped, tmp_path, monkeypatch, change)
    assert code == 0 and epochs[0] == 5

"""The record tells the command without folders, and biases by the names in the data."""

import json
import shutil
import sys

import pytest
from projects import FAST

from bise_prune.app import cli
from bise_prune.report.record import command_line


def test_a_command_is_told_without_its_folders(monkeypatch):
    argv = ["/usr/bin/bise-prune", "/home/me/net.pt", "--data=/home/me/birds", "--data", "biased_mnist:/m,rho=0.9"]
    monkeypatch.setattr(sys, "argv", [*argv, "--text-column", "the text"])
    assert command_line() == ("bise-prune net.pt --data=birds --data biased_mnist:m,rho=0.9 --text-column 'the text'")


def with_two_biases(project, root):
    """The project's data with the columns colour and place in the place of its bias column."""
    shutil.copytree(project / "data", root)
    _, *rows = (root / "metadata.csv").read_text().splitlines()
    named = []
    for i, row in enumerate(rows):
        label, bias, *rest = row.split(",")
        place = label if i % 5 else str((int(label) + 1) % 3)
        named.append(
            ",".join((label, ("blue", "green", "red")[int(bias)], ("field", "lake", "town")[int(place)], *rest))
        )
    (root / "metadata.csv").write_text("\n".join(["label,colour,place,split,file", *named]) + "\n")
    return root


@pytest.mark.parametrize("columns", [["colour"], ["colour", "place"]], ids="-".join)
def test_biases_and_subgroups_have_the_names_of_the_data(project, tmp_path, capsys, columns):
    data, output = with_two_biases(project, tmp_path / "data"), tmp_path / "out"
    chosen = [word for name in columns for word in ("--bias-column", name)]
    arguments = [project / "net.pt", "--data", data, *FAST, *chosen]
    assert cli.main([str(argument) for argument in (*arguments, "--output", output)]) == 0
    record = json.loads((output / "report.json").read_text())
    values = {"colour": ["blue", "green", "red"], "place": ["field", "lake", "town"]}
    assert record["data"]["biases"] == [{"name": name, "values": values[name]} for name in columns]
    labels = [group["label"] for group in record["fairness"]["groups"]]
    expected = "1, green" if len(columns) == 1 else "colour aligned, place conflicting"
    assert expected in labels and not any("b=" in label or label.startswith("aligned") for label in labels)
    page, told = (output / "report.html").read_text(), capsys.readouterr().out
    assert expected in page and "colour: blue n = " in page and "Each class against the rest, colour" in page
    assert ("place: field n = " in page) == ("equalised odds difference, place" in told) == (len(columns) == 2)

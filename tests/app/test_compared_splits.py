"""What a split lacks is named before any work, and aligned samples alone give no unbiased accuracy."""

import dataclasses
import json

import pytest
import torch
from projects import FAST, edited

from bise_prune.app import cli
from bise_prune.app.compared_splits import compared
from bise_prune.data import BiasedDataset, DataSplits
from bise_prune.errors import DataError


def _splits(**cells):
    """Splits with one sample of each of the given (class, bias value) cells."""

    def data(pairs):
        target, bias = torch.tensor(pairs).T
        return BiasedDataset(torch.zeros(len(pairs), 1), target, bias[:, None])

    return DataSplits(
        **{name: data(pairs) for name, pairs in cells.items()}, classes=["land", "water"], bias_names=["place"],
        bias_values=[["forest", "sea", "town"]],
    )  # fmt: skip


ALIGNED = torch.tensor([[0], [1]])
ALL = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("cells", "warnings"),
    [
        ({"train": ALL, "val": ALL, "test": ALL}, []),
        (
            {"train": ALL, "val": ALL[1:]},
            ["the validation split has no sample of 1 subgroup that the others have: land with place = forest"],
        ),
        (
            {"train": ALL, "test": [*ALL, (0, 2)]},
            ["the training split has no sample of 1 subgroup that the others have: land with place = town"],
        ),
        (
            {"train": ALL, "test": [(0, 0), (1, 1)]},
            ["the test split has no bias-conflicting sample, so that its bias labels say nothing about the bias: they "
             "are left out, and its figures are by class"],
        ),
    ],
)  # fmt: skip
def test_what_a_split_lacks_is_named(cells, warnings):
    found = compared(_splits(**cells), ALIGNED)
    assert list(found.warnings) == warnings
    assert found.test is None or found.test.has_bias == ("no bias-conflicting" not in str(warnings))


def test_a_split_of_one_class_is_refused():
    with pytest.raises(DataError, match="the validation split has samples of land alone"):
        compared(_splits(train=ALL, val=ALL[:2]), ALIGNED)
    thirds = {"train": [*ALL, (2, 0)], "val": ALL}
    splits = dataclasses.replace(_splits(**thirds), classes=["land", "water", "air"])
    assert compared(splits, torch.tensor([[0], [1], [0]])).warnings == ["the validation split has no sample of air"]


def test_only_the_first_of_many_are_named():
    many = [(y, b) for y in range(10) for b in range(10)]
    splits = _splits(train=many, val=[*[(y, y) for y in range(10)], (0, 1)])
    splits = dataclasses.replace(splits, classes=[], bias_values=[])
    (warning,) = compared(splits, torch.arange(10)[:, None]).warnings
    assert "no sample of 89 subgroups" in warning and "class 0 with place = 2; " in warning
    assert warning.endswith("; and 84 more")


def test_bias_labels_of_the_validation_split_alone_are_kept():
    splits = _splits(train=ALL, val=[(0, 0), (1, 1)])
    splits = dataclasses.replace(splits, train=splits.train.with_bias(splits.train.bias[:, :0]))
    assert compared(splits, ALIGNED).val.has_bias


def test_a_run_without_conflicting_validation_samples_selects_by_class(project, tmp_path, capsys):
    folder = edited(project, tmp_path, lambda row: row)
    lines = (folder / "metadata.csv").read_text().splitlines()
    names = lines[0].split(",")
    label, bias, split = (names.index(name) for name in ("label", "bias", "split"))
    rows = [line.split(",") for line in lines[1:]]
    rows = [row for row in rows if row[split] == "train" or row[label] == row[bias]]
    (folder / "metadata.csv").write_text("\n".join([lines[0], *map(",".join, rows)]) + "\n")
    out = tmp_path / "out"
    arguments = [project / "net.pt", "--data", folder, "--output", out, *FAST]
    assert cli.main([str(argument) for argument in arguments]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["selection"]["rule"].startswith("highest worst-class accuracy")
    assert [group["name"] for group in report["slim"]["groups"]] == ["y=0", "y=1", "y=2"]
    for split in ("validation", "test"):
        assert any(f"the {split} split has no bias-conflicting sample" in text for text in report["warnings"])
    errors = capsys.readouterr().err
    assert errors.index("warning: the validation split") < errors.index("\nsearch")

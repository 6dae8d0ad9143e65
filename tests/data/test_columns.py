"""Columns of tables by every convention, and what is wrong in them."""

import pytest
from folders import ROWS, reds, write_csv, write_folder, write_picture

from bise_prune.data import load_data
from bise_prune.data.columns import Columns
from bise_prune.errors import ConfigError, DataError


def test_other_column_names_numbers_and_names_are_understood(tmp_path):
    rows = [("dog", "grass", 0, "a.png"), ("cat", "snow", 0, "b.png"), ("cat", "grass", 2, "c.png")]
    folder = write_folder(tmp_path / "data", rows, ("y", "place", "split", "img_filename"))
    splits = load_data(str(folder), {"size": [4, 4]})
    assert splits.classes == ["cat", "dog"]
    assert splits.train.target.tolist() == [1, 0] and splits.train.bias[:, 0].tolist() == [0, 1]
    assert splits.train.inputs.shape == (2, 3, 4, 4) and splits.val is None
    assert splits.train.mean == (0.485, 0.456, 0.406)  # ImageNet's; the report warns of it


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, 0, "train", "a.png"), (0, 0, "fold", "b.png")], r"1 row with an unknown 'split' .*: line 3 \('fold'\)"),
        ([(0, 0, "test", "a.png")], "no row of the training split"),
        ([(-2, 0, "train", "a.png")], r"'label' is neither a name nor an integer from 0 to 99999: line 2 \('-2'\)"),
        (
            [(0, 0, "train", "a.png"), (1, 1, "train", "a.png")],
            "1 row with a file that another row lists, too: line 3",
        ),
        ([(0, "", "train", "a.png")], "1 row without a value in 'bias': line 2"),
        ([], "has no rows"),
    ],
)
def test_metadata_is_checked(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        load_data(str(write_folder(tmp_path / "data", rows)))


def test_missing_columns(tmp_path):
    write_folder(tmp_path / "data", ROWS, ("label", "colour", "split", "file"))
    splits = load_data(str(tmp_path / "data"))
    assert splits.train.bias.shape == (2, 0) and not splits.train.has_bias
    assert splits.notes[-1] == "no column of bias labels among label, colour, split, file"
    write_folder(tmp_path / "unlabelled", ROWS, ("class_", "bias", "split", "file"))
    with pytest.raises(
        DataError, match=r"no column label \(label, y, .*; it has class_, bias, split, file: name them with"
    ):
        load_data(str(tmp_path / "unlabelled"))


@pytest.mark.parametrize(
    ("header", "splits"),
    [
        (["filename", "y", "place", "split"], ["0", "0", "1", "2"]),  # WILDS, Waterbirds
        (["img_filename", "y", "a", "split"], ["0", "0", "1", "2"]),  # SubpopBench
        (["file_name", "label", "bias", "split"], ["train", "training", "validation", "test"]),
        (["path", "target", "spurious", "split"], ["train", "train", "dev", "test"]),
        (["File", "Label", "Attribute", "Split"], ["TRAIN", "train", "valid", "Test"]),
    ],
)
def test_column_conventions(tmp_path, header, splits):
    rows = [[f"{i}.png", i % 2, (i // 2) % 2, split] for i, split in enumerate(splits)]
    for i in range(4):
        write_picture(tmp_path / f"{i}.png", i)
    write_csv(tmp_path / "metadata.csv", [header, *rows])
    found = load_data(str(tmp_path))
    assert [reds(part) for part in (found.train, found.val, found.test)] == [[0, 1], [2], [3]]
    assert found.train.target.tolist() == [0, 1] and found.val.bias.tolist() == [[1]]


def test_columns_can_be_named_and_biases_be_several(tmp_path):
    for i in range(3):
        write_picture(tmp_path / f"{i}.png", i)
    header = ["where", "what", "left", "right", "fold", "label"]
    table = write_csv(tmp_path / "list.csv", [header, *[[f"{i}.png", i, i, 2 - i, "train", 9] for i in range(3)]])
    columns = Columns("what", ("right", "left"), "fold", file="where")
    for place in (tmp_path, table):  # the only CSV file of a folder, or the file itself
        found = load_data(str(place), columns=columns)
        assert found.train.target.tolist() == [0, 1, 2] and found.train.bias.tolist() == [[2, 0], [1, 1], [0, 2]]
    assert load_data(str(table), columns=Columns("what", (), "fold", file="where")).train.bias.shape == (3, 0)
    with pytest.raises(DataError, match=r"no column 'colour'; it has where, what, left, right, fold, label"):
        load_data(str(table), columns=Columns("what", ("colour",), file="where"))


def test_every_column_called_bias_is_one(tmp_path):
    write_picture(tmp_path / "a.png")
    write_csv(tmp_path / "metadata.csv", [["file", "label", "bias_b", "split", "bias_a"], ["a.png", 0, 1, "train", 2]])
    assert load_data(str(tmp_path)).train.bias.tolist() == [[1, 2]]


def test_named_data_sets_have_no_columns(tmp_path):
    with pytest.raises(ConfigError, match="'digits' has no columns to name"):
        load_data("digits,samples=1000", columns=Columns(label="y"))


def test_classes_may_be_called_like_splits_and_numbers_have_underscores(tmp_path):
    for name in ("car", "train", "1_0"):
        for i in range(10):
            write_picture(tmp_path / "classes" / name / f"{i}.png", i)
    assert load_data(str(tmp_path / "classes")).classes == ["1_0", "car", "train"]
    folder = write_folder(tmp_path / "data", [("1_0", 0, "train", "a.png"), ("0_1", 1, "train", "b.png")])
    found = load_data(str(folder))
    assert found.classes == ["0_1", "1_0"] and found.train.target.tolist() == [1, 0]


def test_metadata_and_images_are_reported_together(tmp_path):
    write_picture(tmp_path / "0.png")
    write_csv(
        tmp_path / "metadata.csv",
        [
            ["file", "label", "bias", "split"],
            ["0.png", "", 0, "train"],
            ["gone.png", 1, 0.4, "fold"],
            ["0.png", 1, 0, "val"],
        ],
    )
    with pytest.raises(DataError) as raised:
        load_data(str(tmp_path))
    for what in (
        "1 row without a value in 'label': line 2", "unknown 'split'",
        "1 row with a file that another row lists, too: line 4 ('0.png')",
            "1 of these files are in more than one split",
        "gone.png is missing",
    ):  # fmt: skip
        assert what in str(raised.value)

"""Values of labels, biases and splits, in every spelling; one parser for all columns."""

import pytest
import torch
from folders import write_csv, write_picture

from bise_prune.data import load_data
from bise_prune.data.columns import Columns
from bise_prune.data.labels import split_of
from bise_prune.errors import DataError


def _read(root, values, column="label", classes=()):
    """What a column of values is read as; the other column is 0 and 1 by turns."""
    other = "bias" if column == "label" else "label"
    rows = [["file", column, other, "split"]]
    for i, value in enumerate(values):
        write_picture(root / f"{i}.png", i)
        rows.append([f"{i}.png", value, i % 2, "train"])
    write_csv(root / "metadata.csv", rows)
    return load_data(str(root), classes=classes)


@pytest.mark.parametrize(
    ("values", "expected", "classes"),
    [
        (["0", "1", "1.0"], [0, 1, 1], ["0", "1"]),
        (["-1", "1", "-1.0"], [0, 1, 0], ["0", "1"]),
        (["yes", "No", "YES"], [1, 0, 1], ["no", "yes"]),
        (["True", "False", "true"], [1, 0, 1], ["false", "true"]),
        (["positive", "negative", "positive"], [1, 0, 1], ["negative", "positive"]),
        (["owl", "cat", " owl "], [1, 0, 1], ["cat", "owl"]),
        (["0.2", "0.5", "1"], [0, 1, 1], ["label < 0.5", "label >= 0.5"]),
    ],
)
def test_spellings_of_class_labels(tmp_path, values, expected, classes):
    found = _read(tmp_path, values)
    assert found.train.target.tolist() == expected and list(found.classes) == classes


def test_names_in_another_case_are_those_of_the_checkpoint(tmp_path):
    found = _read(tmp_path, ["Owl", "cat", "OWL"], classes=["owl", "cat"])
    assert found.train.target.tolist() == [0, 1, 0] and list(found.classes) == ["owl", "cat"]
    with pytest.raises(DataError, match=r"no class of the checkpoint \(owl, elk\): line 3 \('cat'\)"):
        _read(tmp_path, ["Owl", "cat"], classes=["owl", "elk"])


@pytest.mark.parametrize(
    ("values", "expected", "names"),
    [
        (["-1", "1", "1"], [0, 1, 1], ("-1", "1")),
        (["7", "99999999999999999999", "-3"], [1, 2, 0], ("-3", "7", "99999999999999999999")),
        (["3", "5", "3"], [3, 5, 3], ()),
        (["a", "b", "a"], [0, 1, 0], ("a", "b")),
    ],
)
def test_spellings_of_bias_labels(tmp_path, values, expected, names):
    found = _read(tmp_path, values, "bias")
    assert found.train.bias[:, 0].tolist() == expected and tuple(found.bias_values[0]) == names


def test_an_identifier_is_no_bias(tmp_path):
    write_picture(tmp_path / "a.png")
    rows = [["a.png", 0, 10 * i, "train"] for i in range(1001)]
    write_csv(tmp_path / "metadata.csv", [["file", "label", "bias", "split"], *rows])
    with pytest.raises(DataError, match=r"column 'bias' has 1,001 different values.*is it an identifier\?"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("train", "Training", "0", "0.0", "trn", " TRAIN ", "train_set", "train-split"), "train"),
        (("val", "valid", "validation", "dev", "1", "1.0", "eval", "Development"), "val"),
        (("test", "Testing", "2", "2.0", "holdout", "held-out", "test set"), "test"),
        (("", "fold 3", "3", "1.5", "nan", "inf", "training data"), ""),
    ],
)
def test_words_for_splits(words, part):
    assert [split_of(word) for word in words] == [part] * len(words)


def test_signs_in_arrays_are_labels(tmp_path):
    import numpy as np

    images = np.random.default_rng(0).integers(0, 255, (40, 4, 4, 3), "uint8")
    np.save(tmp_path / "images.npy", images)
    attributes = np.stack([np.arange(40) % 2 * 2 - 1, np.arange(40) // 2 % 2 * 2 - 1, np.arange(40) % 3], 1)
    np.save(tmp_path / "attrs.npy", attributes)
    splits = load_data(str(tmp_path), columns=Columns("0", ["1", "2"]))
    parts = [data for data in splits.by_name.values() if data is not None]
    assert torch.cat([data.target for data in parts]).unique().tolist() == [0, 1]
    bias = torch.cat([data.bias for data in parts])
    assert bias[:, 0].unique().tolist() == [0, 1] and bias[:, 1].unique().tolist() == [0, 1, 2]

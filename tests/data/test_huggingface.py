"""Parquet files and saved data sets."""

import io

import pytest
from folders import picture, reds

from bise_prune.data import load_data
from bise_prune.errors import DataError


def test_parquet_and_saved_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def held(i):
        buffer = io.BytesIO()
        picture(i).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": f"{i}.png"}

    for part, numbers in (("train", (0, 1)), ("test", (2,))):
        rows = {"image": [held(i) for i in numbers], "label": [i % 2 for i in numbers], "bias": ["x" for _ in numbers]}
        (tmp_path / "parquet").mkdir(exist_ok=True)
        parquet.write_table(pyarrow.table(rows), tmp_path / "parquet" / f"{part}-00000-of-00001.parquet")
    found = load_data(str(tmp_path / "parquet"))
    assert reds(found.train) == [0, 1] and reds(found.test) == [2] and found.train.bias.tolist() == [[0], [0]]
    parquet.write_table(
        pyarrow.table({"image": [held(7)], "label": [0], "bias": ["x"]}), tmp_path / "parquet" / "more.parquet"
    )
    with pytest.raises(DataError, match=r"more\.parquet do not say of which split they are, and other files do"):
        load_data(str(tmp_path / "parquet"))
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["land", "water"]),
            "bias": datasets.Value("int64"),
        }
    )
    parts = {
        part: datasets.Dataset.from_dict(
            {"image": [held(i) for i in numbers], "label": [i % 2 for i in numbers], "bias": list(numbers)},
            features=features,
        )
        for part, numbers in (("train", (0, 1)), ("validation", (2,)))
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    found = load_data(str(tmp_path / "saved"))
    assert reds(found.train) == [0, 1] and reds(found.val) == [2]
    assert found.classes == ["land", "water"] and found.train.bias[:, 0].tolist() == [0, 1]
    assert load_data(str(tmp_path / "saved"), classes=["yes", "no"]).train.target.tolist() == [0, 1]
    reversed_classes = load_data(str(tmp_path / "saved"), classes=["water", "land"])
    assert reversed_classes.train.target.tolist() == [1, 0]  # as the checkpoint numbers them
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="cannot read"):
        load_data(str(tmp_path / "bad.parquet"))


def test_damaged_files_are_named(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "data.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"cannot read .*data\.parquet: "):
        load_data(str(tmp_path / "data.parquet"))
    folder = tmp_path / "two"
    folder.mkdir()
    parquet.write_table(pyarrow.table({"image": ["a.png"], "label": [0]}), folder / "train.parquet")
    parquet.write_table(pyarrow.table({"image": ["b.png"], "species": [0]}), folder / "test.parquet")
    with pytest.raises(DataError, match=r"has the columns image, .*, what was read before image, "):
        load_data(str(folder))
    empty = tmp_path / "empty"
    empty.mkdir()
    columns = {"image": pyarrow.array([], pyarrow.string()), "label": pyarrow.array([], pyarrow.int64())}
    parquet.write_table(pyarrow.table(columns), empty / "train.parquet")
    with pytest.raises(DataError, match="has no rows"):
        load_data(str(empty))


def test_saved_data_sets_that_cannot_be_loaded(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "dataset_info.json").write_text("{")
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot read "):
        load_data(str(tmp_path))

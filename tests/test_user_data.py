"""Data as users have them: every layout and column convention, and what is wrong with images."""

import csv
import io
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from test_data import write_folder

from bise_prune.data import BatchLoader, BiasedDataset, load_data
from bise_prune.data import images as images_module
from bise_prune.data.columns import Columns
from bise_prune.errors import ConfigError, DataError


def picture(i, size=(8, 6)):
    """An image that differs from the others; red grows with i."""
    image = Image.new("RGB", size[::-1], (i, 0, 40))
    ImageDraw.Draw(image).point((i % size[1], i // size[1] % size[0]), (255, 255, 255))
    return image


def write(path, i=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(i).save(path, **options)
    return path


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def reds(data):
    """Which picture each row is."""
    return data.inputs[:, 0].flatten(1).median(1).values.tolist()


# -- layouts ---------------------------------------------------------------------------------------


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
        write(tmp_path / f"{i}.png", i)
    write_csv(tmp_path / "metadata.csv", [header, *rows])
    found = load_data(str(tmp_path))
    assert [reds(part) for part in (found.train, found.val, found.test)] == [[0, 1], [2], [3]]
    assert found.train.target.tolist() == [0, 1] and found.val.bias.tolist() == [[1]]


def test_columns_can_be_named_and_biases_be_several(tmp_path):
    for i in range(3):
        write(tmp_path / f"{i}.png", i)
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
    write(tmp_path / "a.png")
    write_csv(tmp_path / "metadata.csv", [["file", "label", "bias_b", "split", "bias_a"], ["a.png", 0, 1, "train", 2]])
    assert load_data(str(tmp_path)).train.bias.tolist() == [[1, 2]]


def test_metadata_in_each_split(tmp_path):
    for part, numbers in (("train", (0, 1)), ("validation", (2,)), ("test", (3,))):
        rows = [[f"{i}.png", "ab"[i % 2], i % 2] for i in numbers]
        write_csv(tmp_path / part / "metadata.csv", [["file_name", "label", "bias"], *rows])
        for i in numbers:
            write(tmp_path / part / f"{i}.png", i)
    found = load_data(str(tmp_path))
    assert [reds(part) for part in (found.train, found.val, found.test)] == [[0, 1], [2], [3]]
    assert found.classes == ["a", "b"]
    write_csv(tmp_path / "test" / "metadata.csv", [["file_name", "label", "bias"], ["3.png", "a", ""]])
    with pytest.raises(DataError, match=r"1 rows without a value in 'bias': line 2 of test/metadata\.csv"):
        load_data(str(tmp_path))


def test_a_folder_per_class_has_no_bias_labels(tmp_path):
    for i in range(40):
        write(tmp_path / "cat dog".split()[i % 2] / f"{i}.png", i)
    found = load_data(str(tmp_path))
    assert found.without_bias and not found.train.has_bias and found.classes == ["cat", "dog"]
    assert [len(part) for part in (found.train, found.val, found.test)] == [28, 4, 8]
    assert "a random split of 70 % train" in found.notes[-1]
    for part in ("train", "val"):
        shutil.copytree(tmp_path / "cat", tmp_path / "split" / part / "cat")
        shutil.copytree(tmp_path / "dog", tmp_path / "split" / part / "dog")
    found = load_data(str(tmp_path / "split"))
    assert len(found.train) == len(found.val) == 40 and found.test is None
    assert "40 different images are in more than one split, pixel by pixel" in found.warnings


def test_align_and_conflict_folders(tmp_path):
    root = tmp_path / "cmnist" / "5pct"
    write(root / "align" / "0" / "7_0_0.png", 0)
    write(root / "align" / "1" / "8_1_1.png", 1)
    write(root / "conflict" / "1" / "9_1_0.png", 2)
    write(root / "valid" / "5_0_1.png", 3)
    write(tmp_path / "cmnist" / "test" / "0" / "6_0_1.png", 4)
    found = load_data(str(root))
    assert found.train.target.tolist() == [0, 1, 1] and found.train.bias[:, 0].tolist() == [0, 1, 0]
    assert reds(found.val) == [3] and reds(found.test) == [4] and found.test.bias.tolist() == [[1]]
    write(root / "align" / "0" / "unnamed.png", 5)
    with pytest.raises(DataError, match=r"1 files are not named ID_LABEL_BIAS .* first unnamed\.png"):
        load_data(str(root))


def save_arrays(folder, images, attributes):
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", images)
    np.save(folder / "attrs.npy", attributes)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (3, 6, 5), (4, 6, 5), (6, 5, 1), (6, 5, 4)])
def test_arrays(tmp_path, shape):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (6, *shape), np.uint8)
    attributes = np.stack([np.arange(6) % 2, np.arange(6) % 3], 1)
    for part in ("train", "valid"):
        save_arrays(tmp_path / part, images, attributes)
    found = load_data(str(tmp_path))
    assert found.train.inputs.shape == (6, 3, 6, 5) and found.test is None
    expected = images[:, :3] if shape[0] in (3, 4) else images.reshape(6, 6, 5, -1)[..., :3].transpose(0, 3, 1, 2)
    assert np.array_equal(found.val.inputs.numpy(), np.broadcast_to(expected, (6, 3, 6, 5)))
    assert found.train.target.tolist() == [0, 1] * 3 and found.train.bias[:, 0].tolist() == [0, 1, 2] * 2
    for columns in (Columns("1", ("0",)), Columns("1")):
        swapped = load_data(str(tmp_path), columns=columns)
        assert torch.equal(swapped.train.target, found.train.bias[:, 0])
        assert torch.equal(swapped.train.bias[:, 0], found.train.target)
    for columns, message in ((Columns("1", ("1",)), "more than one purpose"), (Columns("²"), "not ²")):
        with pytest.raises(DataError, match=message):
            load_data(str(tmp_path), columns=columns)
    assert load_data(str(tmp_path), {"size": [3, 4]}).train.inputs.shape == (6, 3, 3, 4)


def test_arrays_without_splits_and_of_floats(tmp_path):
    images = np.random.default_rng(0).normal(size=(50, 4, 4, 3))
    save_arrays(tmp_path, images, np.stack([np.arange(50) % 2, np.arange(50) % 5 % 2], 1))
    found = load_data(str(tmp_path))
    assert sum(len(part) for part in (found.train, found.val, found.test)) == 50 and not found.train.mean
    assert found.train.inputs.dtype == torch.float32
    images[7, 0, 0, 0] = np.nan
    save_arrays(tmp_path, images, np.zeros((50, 2), np.int64))
    with pytest.raises(DataError, match="1 images have NaN or infinity, first image 7"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("images", "attributes", "message"),
    [
        (np.zeros((3, 4, 4, 3), np.int32), np.zeros((3, 2), int), "int32 of shape"),
        (np.zeros((3, 4), np.uint8), np.zeros((3, 2), int), r"expected uint8 or floats, \(N, H, W\)"),
        (np.zeros((3, 4, 4), np.uint8), np.zeros((4, 2), int), "3 images, but 4 rows of attributes"),
        (np.zeros((3, 4, 4), np.uint8), np.zeros((3, 2)), "float64 .* expected integers"),
        (np.zeros((3, 4, 4), np.uint8), np.full((3, 2), -1), "labels run from -1 to -1"),
        (np.zeros((3, 5, 6, 7), np.uint8), np.zeros((3, 2), int), "has neither 1 nor 3 nor 4 channels"),
        (np.array([{}] * 3), np.zeros((3, 2), int), "holds pickled objects"),
    ],
)
def test_arrays_are_checked(tmp_path, images, attributes, message):
    save_arrays(tmp_path, images, attributes)
    with pytest.raises(DataError, match=message):
        load_data(str(tmp_path))


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


def test_names_of_classes_are_numbered_as_in_the_checkpoint(tmp_path):
    rows = [("owl", 0, "train", "a.png"), ("cat", 1, "train", "b.png")]
    folder = write_folder(tmp_path / "data", rows)
    assert load_data(str(folder)).train.target.tolist() == [1, 0]
    assert load_data(str(folder), classes=["owl", "cat", "elk"]).train.target.tolist() == [0, 1]
    with pytest.raises(
        DataError, match=r"1 rows whose 'label' is no class of the checkpoint \(cat, elk\): line 2 \('owl'\)"
    ):
        load_data(str(folder), classes=["cat", "elk"])


def test_named_data_sets_have_no_columns(tmp_path):
    with pytest.raises(ConfigError, match="'digits' has no columns to name"):
        load_data("digits,samples=1000", columns=Columns(label="y"))


def test_an_empty_folder_says_what_is_expected(tmp_path):
    with pytest.raises(
        DataError, match=r"no data in .*: expected a metadata\.csv .*, images\.npy .*, align/ .* per class"
    ):
        load_data(str(tmp_path))


# -- images ----------------------------------------------------------------------------------------


def folder_of(tmp_path, *names):
    """A folder whose metadata list these files; labels and biases alternate."""
    rows = [[name, i % 2, i // 2 % 2, "train"] for i, name in enumerate(names)]
    write_csv(tmp_path / "metadata.csv", [["file", "label", "bias", "split"], *rows])
    return str(tmp_path)


def test_modes_of_images_become_rgb(tmp_path):
    gray = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(8, 6) * 5)
    gray.save(tmp_path / "gray.png")
    Image.fromarray(np.asarray(gray).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    gray.convert("RGBA").save(tmp_path / "alpha.png")
    gray.convert("P").save(tmp_path / "palette.png")
    gray.convert("RGB").convert("CMYK").save(tmp_path / "cmyk.tiff")
    gray.rotate(90, expand=True).save(tmp_path / "turned.png", exif=_orientation(6))
    deep = Image.fromarray(np.rot90(np.asarray(gray).astype(np.uint16) * 257).copy())
    deep.save(tmp_path / "both.png", exif=_orientation(6))
    Image.new("RGB", (6, 8), (9, 9, 9)).save(tmp_path / "constant.png")
    names = ("gray.png", "deep.png", "alpha.png", "palette.png", "cmyk.tiff", "turned.png", "both.png", "constant.png")
    found = load_data(folder_of(tmp_path, *names))
    for i in range(7):
        assert np.array_equal(found.train.inputs[i].numpy(), np.broadcast_to(np.asarray(gray), (3, 8, 6))), names[i]
    for note in (
        "1 images have an alpha channel, which was dropped",
        "2 images have 16 bits per channel, which were scaled to 8",
        "2 images carry an EXIF rotation and were turned upright",
    ):
        assert note in found.notes
    assert found.warnings == ["1 images have one colour throughout"]


def _orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def test_bad_images_are_named_or_skipped(tmp_path, monkeypatch):
    for i in range(4):
        write(tmp_path / f"{i}.png", i)
    whole = write(tmp_path / "whole.jpg", 9).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none.png").write_bytes(b"")
    Image.new("L", (300, 200)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    Image.fromarray(np.zeros((8, 6), np.float32)).save(tmp_path / "float.tiff")
    names = ["missing.png", "0.png", "cut.jpg", "1.png", "none.png", "2.png", "bomb.png", "3.png", "float.tiff"]
    folder = folder_of(tmp_path, *names)
    with pytest.raises(DataError) as raised:
        load_data(folder)
    for what in (
        "missing.png is missing", "cut.jpg is unreadable (OSError)", "none.png is unreadable (no image format",
        "bomb.png has 200x300 pixels, so many", "float.tiff holds floating-point values",
    ):  # fmt: skip
        assert what in str(raised.value)
    found = load_data(folder, skip_bad=True)
    assert reds(found.train) == [0, 1, 2, 3]
    assert found.train.target.tolist() == [1, 1, 1, 1] and found.train.bias[:, 0].tolist() == [0, 1, 0, 1]
    assert found.warnings[0].startswith("5 images were left out: missing.png is missing; cut.jpg")
    with pytest.raises(DataError, match=r"missing\.png is missing"):  # nothing would be left
        load_data(folder_of(tmp_path, "missing.png"), skip_bad=True)


def test_another_size_is_no_bad_image(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "odd.png")
    write(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"0\.png is 8x6, the first image 9x9: give a --size"):
        load_data(folder_of(tmp_path, "odd.png", "0.png"), skip_bad=True)


def test_classes_may_be_called_like_splits_and_numbers_have_underscores(tmp_path):
    for name in ("car", "train", "1_0"):
        for i in range(10):
            write(tmp_path / "classes" / name / f"{i}.png", i)
    assert load_data(str(tmp_path / "classes")).classes == ["1_0", "car", "train"]
    folder = write_folder(tmp_path / "data", [("1_0", 0, "train", "a.png"), ("0_1", 1, "train", "b.png")])
    found = load_data(str(folder))
    assert found.classes == ["0_1", "1_0"] and found.train.target.tolist() == [1, 0]


def test_metadata_and_images_are_reported_together(tmp_path):
    write(tmp_path / "0.png")
    write_csv(
        tmp_path / "metadata.csv",
        [
            ["file", "label", "bias", "split"],
            ["0.png", "", 0, "train"],
            ["gone.png", 1, -4, "fold"],
            ["0.png", 1, 0, "val"],
        ],
    )
    with pytest.raises(DataError) as raised:
        load_data(str(tmp_path))
    for what in (
        "1 rows without a value in 'label': line 2", "'bias' is neither a name nor an integer", "unknown 'split'",
        "list a file that another row lists, too: line 4 ('0.png')", "1 of these files are in more than one split",
        "gone.png is missing",
    ):  # fmt: skip
        assert what in str(raised.value)


def test_images_of_one_colour_are_no_data(tmp_path):
    Image.new("RGB", (4, 4), (7, 7, 7)).save(tmp_path / "0.png")
    with pytest.raises(DataError, match="every image has one colour throughout"):
        load_data(folder_of(tmp_path, "0.png"))


def test_decoded_images_need_room(tmp_path, monkeypatch):
    write(tmp_path / "0.png")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(images_module.shutil, "disk_usage", lambda folder: usage._replace(free=10))
    with pytest.raises(DataError, match=r"take 0\.0 GB, but .* has 0\.0 GB left; set TMPDIR to another disk, or give"):
        load_data(folder_of(tmp_path, "0.png"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_folders_that_may_not_be_read(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0)
    with pytest.raises(DataError, match="cannot read"):
        load_data(str(tmp_path / "data"))


# -- batches made ahead ----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_made_ahead_are_the_same(workers):
    data = BiasedDataset(torch.arange(50.0)[:, None], torch.arange(50) % 2, torch.zeros(50, 1, dtype=torch.long))
    plain = BatchLoader(data, 8, shuffle=True, seed=1)
    ahead = BatchLoader(data, 8, shuffle=True, seed=1, workers=workers)
    for first, second in zip(plain, ahead, strict=True):
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    rows = list(plain.rows())
    for expected, (found, batch) in zip(rows, ahead.prepared(rows), strict=True):
        assert found is expected and torch.equal(batch.input[:, 0], expected.float())


def test_an_error_while_a_batch_is_made_reaches_the_reader():
    loader = BatchLoader(BiasedDataset(torch.zeros(4, 1), torch.zeros(4), torch.zeros(4, 1)), 2, workers=2)
    with pytest.raises(IndexError):
        list(loader.prepared([torch.tensor([9])]))

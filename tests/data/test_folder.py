"""Folders of images in every layout."""

import os
import shutil

import pytest
import torch
from folders import ROWS, reds, write_csv, write_folder, write_picture

from bise_prune.data import load_data
from bise_prune.errors import DataError


def test_a_folder_is_read(tmp_path):
    splits = load_data(str(write_folder(tmp_path / "data", ROWS)), {"mean": [0.5] * 3, "std": [0.25] * 3})
    assert (splits.train.target.tolist(), splits.train.bias.tolist()) == ([0, 1], [[0], [1]])
    assert (splits.val.target.tolist(), splits.test.bias.tolist()) == ([1], [[1]])
    batch = splits.train.batch(torch.tensor([1]))
    assert batch.input.shape == (1, 3, 6, 8)
    expected = torch.full((3, 6, 8), (1 / 255 - 0.5) / 0.25)
    expected[:, -1, -1] = 2.0  # white
    assert torch.allclose(batch.input[0], expected)


def test_a_split_that_is_scattered_over_the_rows(tmp_path):
    rows = [(0, 0, "train", "a.png"), (0, 0, "test", "b.png"), (1, 0, "train", "c.png")]
    splits = load_data(str(write_folder(tmp_path / "data", rows)))
    assert splits.train.inputs[:, 0, 0, 0].tolist() == [0, 2]


def test_metadata_in_each_split(tmp_path):
    for part, numbers in (("train", (0, 1)), ("validation", (2,)), ("test", (3,))):
        rows = [[f"{i}.png", "ab"[i % 2], i % 2] for i in numbers]
        write_csv(tmp_path / part / "metadata.csv", [["file_name", "label", "bias"], *rows])
        for i in numbers:
            write_picture(tmp_path / part / f"{i}.png", i)
    found = load_data(str(tmp_path))
    assert [reds(part) for part in (found.train, found.val, found.test)] == [[0, 1], [2], [3]]
    assert found.classes == ["a", "b"]
    write_csv(tmp_path / "test" / "metadata.csv", [["file_name", "label", "bias"], ["3.png", "a", ""]])
    with pytest.raises(DataError, match=r"1 row without a value in 'bias': line 2 of test/metadata\.csv"):
        load_data(str(tmp_path))


def test_a_folder_per_class_has_no_bias_labels(tmp_path):
    for i in range(40):
        write_picture(tmp_path / "cat dog".split()[i % 2] / f"{i}.png", i)
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
    write_picture(root / "align" / "0" / "7_0_0.png", 0)
    write_picture(root / "align" / "1" / "8_1_1.png", 1)
    write_picture(root / "conflict" / "1" / "9_1_0.png", 2)
    write_picture(root / "valid" / "5_0_1.png", 3)
    write_picture(tmp_path / "cmnist" / "test" / "0" / "6_0_1.png", 4)
    found = load_data(str(root))
    assert found.train.target.tolist() == [0, 1, 1] and found.train.bias[:, 0].tolist() == [0, 1, 0]
    assert reds(found.val) == [3] and reds(found.test) == [4] and found.test.bias.tolist() == [[1]]
    write_picture(root / "align" / "0" / "unnamed.png", 5)
    with pytest.raises(DataError, match=r"1 file not named ID_LABEL_BIAS .* first unnamed\.png"):
        load_data(str(root))


def test_names_of_classes_are_numbered_as_in_the_checkpoint(tmp_path):
    rows = [("owl", 0, "train", "a.png"), ("cat", 1, "train", "b.png")]
    folder = write_folder(tmp_path / "data", rows)
    assert load_data(str(folder)).train.target.tolist() == [1, 0]
    assert load_data(str(folder), classes=["owl", "cat", "elk"]).train.target.tolist() == [0, 1]
    with pytest.raises(
        DataError, match=r"1 row whose 'label' is no class of the checkpoint \(cat, elk\): line 2 \('owl'\)"
    ):
        load_data(str(folder), classes=["cat", "elk"])


def test_an_empty_folder_says_what_is_expected(tmp_path):
    with pytest.raises(
        DataError, match=r"no data in .*: expected a metadata\.csv .*, images\.npy .*, align/ .* per class"
    ):
        load_data(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_folders_that_may_not_be_read(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0)
    with pytest.raises(DataError, match="cannot read"):
        load_data(str(tmp_path / "data"))


def test_what_is_wrong_with_folders(tmp_path):
    for name in ("align", "conflict"):
        (tmp_path / "nothing" / name).mkdir(parents=True)
    with pytest.raises(DataError, match="no images in "):
        load_data(str(tmp_path / "nothing"))
    for i, name in enumerate(("cat/a.png", "dog/b.png")):
        write_picture(tmp_path / "classes" / name, i)
    with pytest.raises(DataError, match=r"folders dog are no classes of the checkpoint \(bird, cat\)"):
        load_data(str(tmp_path / "classes"), classes=["bird", "cat"])


def test_what_lies_beside_the_folders_of_the_splits_is_left_out(tmp_path):
    for part in ("train", "val", "test"):
        for i, name in enumerate(("cat/a.png", "dog/b.png")):
            write_picture(tmp_path / part / name, i)
    write_picture(tmp_path / "slim" / "pictures" / "c.png", 3)
    (tmp_path / "notes").mkdir()
    found = load_data(str(tmp_path))
    assert found.classes == ["cat", "dog"] and len(found.train) == len(found.val) == len(found.test) == 2
    assert "beside the folders of the splits, notes, slim left out" in found.notes


def test_every_format_of_images_is_read_and_other_files_are_counted(tmp_path):
    for i in range(10):
        for name in ("cat", "dog"):
            write_picture(tmp_path / name / f"{i}.png", i)
    (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / "0.jfif")
    (tmp_path / "cat" / "1.png").rename(tmp_path / "cat" / "1.tga")
    (tmp_path / "cat" / "._2.png").write_bytes(b"\0\5\x16\7" + bytes(80))
    (tmp_path / "dog" / "notes.txt").write_text("x")
    (tmp_path / "dog" / "figure.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0")
    found = load_data(str(tmp_path))
    assert sum(len(data) for data in (found.train, found.val, found.test)) == 20
    assert "1 hidden file (named ._... or .…) left out" in found.notes
    assert "2 files left out, by the ending no images (1 .eps, 1 .txt)" in found.notes


def test_an_image_that_would_start_a_program_is_not_opened(tmp_path):
    for i in range(3):
        write_picture(tmp_path / f"{i}.png", i)
    (tmp_path / "2.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\n")
    write_csv(
        tmp_path / "metadata.csv", [["file", "label", "split"], *[[f"{i}.png", i % 2, "train"] for i in range(3)]]
    )
    with pytest.raises(DataError, match=r"2\.png is unreadable \(no image format that is known\)"):
        load_data(str(tmp_path))

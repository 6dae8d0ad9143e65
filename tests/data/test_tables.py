"""Tables in every dialect, in several files, and with files under other names than they have."""

import gzip
import json
import os

import pytest
from folders import reds, write_csv, write_picture

from bise_prune.data import load_data
from bise_prune.data.columns import Columns
from bise_prune.errors import DataError

HEADER = ["file", "label", "bias", "split"]
ROWS = [["0.png", "a", 0, "train"], ["1.png", "b", 1, "train"], ["2.png", "b", 0, "val"], ["3.png", "a", 1, "test"]]


def _pictures(root, names=("0.png", "1.png", "2.png", "3.png")):
    for i, name in enumerate(names):
        write_picture(root / name, i)


def _is_whole(found):
    assert [reds(part) for part in (found.train, found.val, found.test)] == [[0, 1], [2], [3]]
    assert found.train.target.tolist() == [0, 1] and found.train.bias[:, 0].tolist() == [0, 1]


def _text(separator=",", rows=ROWS):
    return "\r\n".join(separator.join(map(str, row)) for row in [HEADER, *rows]) + "\r\n"


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("metadata.csv", _text(";").encode(), "separated by a semicolon"),
        ("metadata.csv", _text("\t").encode(), "separated by a tab"),
        ("metadata.tsv", _text("\t").encode(), "separated by a tab"),
        ("metadata.csv", _text("|").encode(), "separated by a bar"),
        ("metadata.csv", ("sep=;\r\n" + _text(";")).encode(), ""),
        ("metadata.csv", _text().encode("utf-16"), ""),
        ("metadata.csv", _text().encode("utf-8-sig"), ""),
        ("metadata.csv.gz", gzip.compress(_text().encode(), mtime=0), ""),
        ("metadata.csv", _text(rows=[[*row[:1], {"a": "Möwe", "b": "Ente"}[row[1]], *row[2:]] for row in ROWS])
         .encode("cp1252"), "was read as Windows-1252"),
    ],
)  # fmt: skip
def test_dialects(tmp_path, name, content, note):
    _pictures(tmp_path)
    (tmp_path / name).write_bytes(content)
    found = load_data(str(tmp_path), classes=["Möwe", "Ente"] if "1252" in note else ())
    _is_whole(found)
    assert any(note in text for text in found.notes)


def test_a_separator_is_not_taken_from_within_a_name(tmp_path):
    _pictures(tmp_path)
    write_csv(tmp_path / "metadata.csv", [["file", "label", "bias", "split", "a;b|c;d;e;f"], *[[*r, 1] for r in ROWS]])
    _is_whole(load_data(str(tmp_path)))


def test_json_lines(tmp_path):
    _pictures(tmp_path)
    rows = [{"file_name": r[0], "label": r[1], "bias": r[2], "split": r[3], "more": {"a": 1}} for r in ROWS]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    _is_whole(load_data(str(tmp_path)))
    for line, message in (("[1]", "it is no JSON object"), ("{", "line 1: "), ("[" * 100_000, "line 1: ")):
        (tmp_path / "metadata.jsonl").write_text(line)
        with pytest.raises(DataError, match=rf"cannot read .*metadata\.jsonl: .*{message}"):
            load_data(str(tmp_path))


@pytest.mark.parametrize("names", [("train", "val", "test"), ("labels_train", "labels-valid", "labels.testing")])
def test_a_table_for_each_split(tmp_path, names):
    _pictures(tmp_path)
    for part, name in zip(("train", "val", "test"), names, strict=True):
        write_csv(tmp_path / f"{name}.csv", [HEADER[:3], *(row[:3] for row in ROWS if row[3] == part)])
    (tmp_path / "log.csv").write_text("epoch,loss\n1,2\n")
    _is_whole(load_data(str(tmp_path)))
    write_csv(tmp_path / f"{names[1]}.csv", [HEADER[:3], ["2.png", "", 0]])
    with pytest.raises(DataError, match=rf"1 row without a value in 'label': line 2 of {names[1]}\.csv"):
        load_data(str(tmp_path))


def test_tables_that_are_joined(tmp_path):
    _pictures(tmp_path)
    write_csv(tmp_path / "attributes.csv", [["image_id", "Blond", "Male"], *(row[:3] for row in ROWS)])
    write_csv(tmp_path / "partition.csv", [["image_id", "partition"], *([row[0], row[3]] for row in reversed(ROWS))])
    columns = Columns("Blond", ("Male",))
    found = load_data(str(tmp_path), columns=columns)
    _is_whole(found)
    assert "attributes.csv and partition.csv are joined by 'image_id'" in found.notes
    write_csv(tmp_path / "partition.csv", [["image_id", "partition"], *([row[0], row[3]] for row in ROWS[1:])])
    with pytest.raises(DataError, match=r"1 row whose 'image_id' is not in partition\.csv: line 2"):
        load_data(str(tmp_path), columns=columns)
    write_csv(tmp_path / "partition.csv", [["image_id", "partition"], *([row[0], row[3]] for row in [*ROWS, ROWS[0]])])
    with pytest.raises(DataError, match=r"joined by 'image_id', whose values occur in it more than once"):
        load_data(str(tmp_path), columns=columns)
    write_csv(tmp_path / "partition.csv", [["name", "partition"], ["0.png", 0]])
    with pytest.raises(DataError, match=r"holds 2 tables \(attributes\.csv, partition\.csv\): name one of them"):
        load_data(str(tmp_path), columns=Columns("Blond", ("Male",), file="file"))


def test_the_lists_of_celeba_as_they_are_distributed(tmp_path):
    images = tmp_path / "img_align_celeba" / "img_align_celeba"
    _pictures(images, [f"00000{i}.jpg.png" for i in range(4)])
    lines = ["4", "Smiling Male Young", *(f"00000{i}.jpg.png {' '.join('-1' if b else '1' for b in bits)}"
             for i, bits in enumerate([(1, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 0)]))]  # fmt: skip
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    parts = "\n".join(f"00000{i}.jpg.png {part}" for i, part in enumerate((0, 0, 1, 2)))
    (tmp_path / "list_eval_partition.txt").write_text(parts)
    _is_whole(load_data(str(tmp_path), columns=Columns("Smiling", ("Male",))))


@pytest.mark.parametrize(
    ("written", "present"),
    [
        ("{}", "{}.png"),  # without its ending
        ("{}.PNG", "{}.png"),  # in another case
        ("old\\place\\{}.png", "place/{}.png"),  # from another system
        ("/home/else/birds/{}.png", "images/{}.png"),  # from another machine
        ("{}.png", "images/deep/{}.png"),  # in another folder
    ],
)
def test_files_under_other_names(tmp_path, written, present):
    _pictures(tmp_path, [present.format(i) for i in range(4)])
    rows = [[written.format(row[0].removesuffix(".png")), *row[1:]] for row in ROWS]
    write_csv(tmp_path / "metadata.csv", [HEADER, *rows])
    found = load_data(str(tmp_path))
    _is_whole(found)
    assert any(note.startswith("4 of 4 files were found under another path") for note in found.notes)


def test_a_file_that_may_be_several_is_none(tmp_path):
    _pictures(tmp_path)
    for place in ("one", "two"):
        write_picture(tmp_path / place / "4.png", 4)
    write_csv(tmp_path / "metadata.csv", [HEADER, *ROWS, ["4.png", "a", 0, "train"]])
    with pytest.raises(DataError, match=r"1 files are not there as the table names them, and several fit, first '4"):
        load_data(str(tmp_path))
    write_csv(tmp_path / "metadata.csv", [HEADER, *ROWS, ["gone/3.png", "a", 0, "train"]])
    with pytest.raises(DataError, match=r"gone/3\.png is missing"):  # 3.png is another row's
        load_data(str(tmp_path))


def test_images_in_a_folder_of_their_own(tmp_path):
    _pictures(tmp_path / "pictures")
    table = write_csv(tmp_path / "tables" / "birds.csv", [HEADER, *ROWS])
    _is_whole(load_data(str(table), image_folder=tmp_path / "pictures"))
    with pytest.raises(DataError, match=r"0\.png is missing"):
        load_data(str(table))


def test_a_folder_that_is_called_like_a_built_in_data_set(tmp_path, monkeypatch):
    _pictures(tmp_path / "digits")
    write_csv(tmp_path / "digits" / "metadata.csv", [HEADER, *ROWS])
    monkeypatch.chdir(tmp_path)
    _is_whole(load_data("digits"))
    assert len(load_data("digits,samples=1000").train) == 1000


def test_what_is_no_file_is_not_waited_for(tmp_path):
    _pictures(tmp_path)
    os.mkfifo(tmp_path / "4.png")
    os.mkfifo(tmp_path / "other.csv")
    write_csv(tmp_path / "metadata.csv", [HEADER, *ROWS, ["4.png", "a", 0, "train"]])
    with pytest.raises(DataError, match=r"4\.png is no file"):
        load_data(str(tmp_path))
    with pytest.raises(DataError, match="no folder or file at"):
        load_data(str(tmp_path / "other.csv"))

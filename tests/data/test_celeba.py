"""CelebA: splits, held-out subgroups, and damaged tables."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from bise_prune.data.celeba import load_celeba
from bise_prune.errors import ConfigError, DataError

# Images per (y, b) = (0, 0), (0, 1), (1, 0), (1, 1) in the official train, valid and test splits.
COUNTS = {"0": (12, 10, 7, 9), "1": (5, 4, 2, 3), "2": (1, 1, 1, 1)}


def write_celeba(root, ending, counts=COUNTS, nested=False):
    """The official files in either format; image i has the grey level 3 i but for a corner; test images have none."""
    folder = root / "img_align_celeba" / ("img_align_celeba" if nested else "")
    folder.mkdir(parents=True)
    cells = [(split, y, b) for split, n in counts.items() for y in (0, 1) for b in (0, 1) for _ in range(n[2 * y + b])]
    cells = [cells[i] for i in np.random.default_rng(0).permutation(len(cells))]
    names = ["5_o_Clock_Shadow", "Blond_Hair", "Eyeglasses", "Male"]
    rows = []
    for i, (split, y, b) in enumerate(cells):
        rows.append((f"{i + 1:06}.jpg", -1, 2 * y - 1, 1, 1 - 2 * b))
        if split != "2":
            pixels = np.full((22, 18, 3), 3 * i, np.uint8)
            pixels[-3:, -3:] = 255
            Image.fromarray(pixels).save(folder / rows[-1][0], quality=95)
    partition = [(row[0], split) for row, (split, _, _) in zip(rows, cells, strict=True)]
    if ending == "txt":
        lines = [str(len(rows)), " ".join(names) + " ", *("  ".join(map(str, row)) for row in rows)]
        (root / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
        (root / "list_eval_partition.txt").write_text("".join(f"{name} {split}\n" for name, split in partition))
    else:
        for name, table in (
            ("list_attr_celeba", [("image_id", *names), *rows]),
            ("list_eval_partition", [("image_id", "partition"), *partition]),
        ):
            with (root / f"{name}.csv").open("w", newline="") as file:
                csv.writer(file).writerows(table)
    return cells


def image_numbers(data):
    return (data.inputs[:, 0, 1, 1].double() / 3).round().long().tolist()


@pytest.mark.parametrize(("ending", "nested"), [("txt", False), ("csv", True)])
def test_celeba_splits(tmp_path, ending, nested):
    cells = write_celeba(tmp_path, ending, nested=nested)
    splits = load_celeba(tmp_path, seed=1, size=16)
    counts = {}
    for part in (splits.train, splits.val, splits.test):
        assert part.inputs.shape[1:] == (3, 16, 16) and part.inputs.dtype == torch.uint8
        counts[part] = torch.bincount(2 * part.target + part.bias[:, 0], minlength=4).tolist()
        official = "1" if part is splits.test else "0"
        labelled = zip(image_numbers(part), part.target.tolist(), part.bias[:, 0].tolist(), strict=True)
        assert all(cells[i] == (official, y, b) for i, y, b in labelled)
    # Half of the smallest training group, 7, is 3; the smallest valid group has 2.
    assert list(counts.values()) == [[9, 7, 4, 6], [3] * 4, [2] * 4]
    assert len({*image_numbers(splits.train), *image_numbers(splits.val)}) == 38
    assert any("validation takes 3 of each, not 277" in note for note in splits.notes)
    assert splits.classes == ("not blond", "blond") and splits.train.mean == (0.485, 0.456, 0.406)


def test_celeba_draws_by_seed(tmp_path):
    write_celeba(tmp_path, "txt")
    first, again, other = (load_celeba(tmp_path, seed, 4) for seed in (0, 0, 1))
    for name in ("val", "test"):
        numbers = [image_numbers(getattr(splits, name)) for splits in (first, again, other)]
        assert numbers[0] == numbers[1] != numbers[2]


def test_celeba_holds_out_277_of_each_subgroup(tmp_path, monkeypatch):
    from bise_prune.data import celeba

    monkeypatch.setattr(celeba, "VALIDATION_PER_SUBGROUP", 2)
    write_celeba(tmp_path, "txt")
    splits = load_celeba(tmp_path, size=4)
    assert torch.bincount(2 * splits.val.target + splits.val.bias[:, 0]).tolist() == [2] * 4
    assert len(splits.train) == 38 - 8 and len(splits.notes) == 1


def test_celeba_needs_its_files(tmp_path):
    with pytest.raises(DataError, match=r"list_attr_celeba\.txt \(or \.csv\) and list_eval_partition\.txt .* missing"):
        load_celeba(tmp_path)
    cells = write_celeba(tmp_path, "csv")
    needed = [f"{i + 1:06}.jpg" for i, (split, _, _) in enumerate(cells) if split == "0"]
    for name in needed:
        (tmp_path / "img_align_celeba" / name).unlink()
    with pytest.raises(DataError, match=r"38 of 46 images are missing in .*img_align_celeba: ") as caught:
        load_celeba(tmp_path)
    named = str(caught.value).split(": ")[1].split(", ")
    assert len(named) == 11 and named[-1] == "..." and set(named[:-1]) <= set(needed)
    with pytest.raises(ConfigError, match="size=0"):
        load_celeba(tmp_path, size=0)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("list_attr_celeba.csv", "Male", "Man", "has no column Male"),
        ("list_attr_celeba.csv", "000003.jpg,-1", "000003.jpg,-1,-1", r"1 of 56 rows are damaged, first '000003\.jpg'"),
        ("list_eval_partition.csv", "000004.jpg,", "000004.jpg,7", r"no split 0, 1 or 2 for 1 images, first 000004\.j"),
        ("list_eval_partition.csv", "000005.jpg", "x", r"no split 0, 1 or 2 for 1 images, first 000005\.jpg"),
    ],
)
def test_celeba_tables_are_checked(tmp_path, file, old, new, message):
    write_celeba(tmp_path, "csv")
    path = tmp_path / file
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        load_celeba(tmp_path)


def test_celeba_empty_subgroups_are_all_named(tmp_path):
    write_celeba(tmp_path, "txt", {"0": (3, 3, 3, 1), "1": (2, 0, 2, 2)})
    with pytest.raises(
        DataError,
        match=r"1 training images with Blond_Hair=1, Male=0 \(at least 2\); 0 valid images with Blond_Hair=0, Male=0",
    ):
        load_celeba(tmp_path)

import csv
import gzip

import numpy as np
import pytest
import torch
from cases import biased_data
from PIL import Image

from bise_prune.data import BatchLoader, BiasedDataset, load_data
from bise_prune.data.biased_mnist import (
    PALETTE,
    assign_bias,
    colour_backgrounds,
    load_biased_mnist,
    vanilla_training_set,
)
from bise_prune.data.mnist import load_mnist
from bise_prune.data.multi_color_mnist import LEFT_PALETTE, assign_cells, colour_halves, load_multi_color_mnist
from bise_prune.errors import ConfigError, DataError
from bise_prune.metrics.accuracy import score
from bise_prune.metrics.subgroups import is_aligned

TRAIN_LABELS = torch.arange(10).repeat_interleave(
    torch.tensor([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])
)
TEST_LABELS = torch.arange(10).repeat_interleave(torch.tensor([980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]))

# -- BiasedMNIST -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("rho", "conflicting"), [(0.99, 606), (0.995, 305), (0.997, 184), (0.999, 63)])
def test_conflicting_samples_of_biased_mnist(rho, conflicting):
    bias = assign_bias(TRAIN_LABELS, rho, torch.Generator().manual_seed(0))
    assert int((bias != TRAIN_LABELS).sum()) == conflicting


def test_conflicting_colours_are_even_chunks():
    labels = torch.zeros(1000, dtype=torch.long)
    bias = assign_bias(labels, 0.9, torch.Generator().manual_seed(0))
    counts = torch.bincount(bias, minlength=10)
    assert counts[0] == 900
    assert sorted(counts[1:].tolist()) == [4, *[12] * 8]  # chunks of ceil(100 / 9)


def test_backgrounds_take_the_colour_and_digits_are_white():
    images = torch.tensor([[[0, 1], [255, 0]]], dtype=torch.uint8)
    (coloured,) = colour_backgrounds(images, torch.tensor([3]))
    assert coloured[:, 0, 0].tolist() == list(PALETTE[3]) == [225, 225, 0]
    assert coloured[:, 0, 1].tolist() == coloured[:, 1, 0].tolist() == [255] * 3


@pytest.fixture
def tiny_mnist(tmp_path):
    """Forty training and twenty test digits in idx files, one gzipped."""
    generator = np.random.default_rng(0)
    for name, n in (("train", 40), ("t10k", 20)):
        images = generator.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in images.shape)
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + n.to_bytes(4, "big") + labels.tobytes()
        )
    return tmp_path


def test_idx_files_are_read_and_checked(tiny_mnist):
    images, labels = load_mnist(tiny_mnist, "train")
    assert (images.shape, images.dtype, labels.tolist()[:11]) == ((40, 28, 28), torch.uint8, [*range(10), 0])
    path = tiny_mnist / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="truncated"):
        load_mnist(tiny_mnist, "test")
    path.unlink()
    with pytest.raises(DataError, match="no MNIST file t10k-labels-idx1-ubyte"):
        load_mnist(tiny_mnist, "test")
    (tiny_mnist / "t10k-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(DataError, match="cannot read"):
        load_mnist(tiny_mnist, "test")


def test_strict_protocol_separates_digits(tiny_mnist):
    splits = load_data(f"biased_mnist:{tiny_mnist},rho=0.5,protocol=strict")

    def shapes(data):
        return {tuple((image == 255).all(0).flatten().tolist()) for image in data.inputs}

    assert len(splits.train) + len(splits.val) == 40
    assert not shapes(splits.train) & shapes(splits.val)
    paper = load_biased_mnist(tiny_mnist, 0.5, "paper", seed=2)
    assert shapes(paper.train) & shapes(paper.val)
    assert len(vanilla_training_set(tiny_mnist, 0.5)) == 40
    batch = paper.test.batch(torch.arange(3))
    assert batch.input.min() >= -1 and batch.input.max() <= 1  # Normalize(.5, .5)


def test_real_biased_mnist(mnist):
    splits = load_biased_mnist(mnist, 0.99)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (50_000, 10_000, 10_000)
    share = (splits.train.target == splits.train.bias[:, 0]).double().mean().item()
    assert share == pytest.approx(0.99, abs=2e-4)
    assert (splits.test.target == splits.test.bias[:, 0]).double().mean().item() == pytest.approx(0.1, abs=1e-3)


# -- Multi-Color MNIST ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "rho", "sizes"),
    [(TRAIN_LABELS, (0.99, 0.95), [56430, 2972, 573, 25]), (TEST_LABELS, (0.1, 0.1), [100, 900, 904, 8096])],
)
def test_group_sizes_of_multi_color_mnist(labels, rho, sizes):
    bias = assign_cells(labels, rho)
    aligned = is_aligned(labels, bias, torch.arange(10)[:, None].expand(10, 2))
    left, right = aligned.unbind(1)
    assert [int((left == a).logical_and(right == b).sum()) for a in (True, False) for b in (True, False)] == sizes
    evaluation = score(labels, labels, bias, torch.arange(10)[:, None].expand(10, 2))
    assert [group.n for group in evaluation.subgroups] == sizes


def test_halves_are_tinted():
    images = torch.zeros(1, 28, 28, dtype=torch.uint8)
    images[0, 0, 0] = 255
    (tinted,) = colour_halves(images, torch.tensor([[2, 5]]), torch.Generator().manual_seed(0))
    assert tinted[:, 0, 0].tolist() == [255] * 3
    left, right = tinted[:, 5, 13].float() / 255, tinted[:, 5, 14].float() / 255
    assert torch.allclose(left, torch.tensor(LEFT_PALETTE[2]), atol=0.03)
    assert torch.allclose(right, 1 - torch.tensor(LEFT_PALETTE[5]), atol=0.03)


def test_multi_color_inputs_are_divided_by_255_twice(tiny_mnist):
    splits = load_multi_color_mnist(tiny_mnist)
    assert splits.val is None and splits.train.bias.shape == (40, 2)
    assert splits.train.batch(torch.arange(40)).input.max().item() == pytest.approx(1 / 255)


# -- the embedded digits --------------------------------------------------------------------------


def test_demo_digits():
    splits = load_data("digits,rho=0.9,samples=2000,seed=1")
    assert splits.train.inputs.shape == (2000, 3, 16, 16) and splits.train.inputs.dtype == torch.uint8
    share = (splits.train.target == splits.train.bias[:, 0]).double().mean().item()
    assert share == pytest.approx(0.9, abs=0.01)
    for part in (splits.val, splits.test):
        cells = torch.bincount(part.target * 10 + part.bias[:, 0], minlength=100).view(10, 10)
        assert bool((cells == cells[:, :1]).all())  # every scan in every colour
    again = load_data("digits,rho=0.9,samples=2000,seed=1")
    assert torch.equal(again.train.inputs, splits.train.inputs)


@pytest.mark.parametrize(
    ("specification", "error", "message"),
    [
        ("nowhere/", DataError, "no folder or file at 'nowhere/'"),
        ("biased_mnist", ConfigError, "needs the folder of MNIST"),
        ("digits,roh=0.9", ConfigError, "no option 'roh': did you mean rho"),
        ("digits,rho=high", ConfigError, "rho='high' is no float"),
        ("digits,rho=1.5", ConfigError, r"expected rho in \[.1, 1\)"),
        ("biased_mnist:x,protocol=loose", ConfigError, "expected paper or strict"),
    ],
)
def test_specifications_are_checked(specification, error, message):
    with pytest.raises(error, match=message):
        load_data(specification)


# -- folders --------------------------------------------------------------------------------------


def write_folder(root, rows, columns=("label", "bias", "split", "file"), size=(6, 8)):
    root.mkdir(exist_ok=True)
    for i, row in enumerate(rows):
        if row[3] and not (root / row[3]).exists():
            pixels = np.full((*size, 3), i, np.uint8)
            pixels[-1, -1] = 255
            Image.fromarray(pixels).save(root / row[3])
    with (root / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return root


ROWS = [(0, 0, "train", "a.png"), (1, 1, "train", "b.png"), (1, 0, "val", "c.png"), (0, 1, "test", "d.png")]


def test_a_folder_is_read(tmp_path):
    splits = load_data(str(write_folder(tmp_path / "data", ROWS)), {"mean": [0.5] * 3, "std": [0.25] * 3})
    assert (splits.train.target.tolist(), splits.train.bias.tolist()) == ([0, 1], [[0], [1]])
    assert (splits.val.target.tolist(), splits.test.bias.tolist()) == ([1], [[1]])
    batch = splits.train.batch(torch.tensor([1]))
    assert batch.input.shape == (1, 3, 6, 8)
    expected = torch.full((3, 6, 8), (1 / 255 - 0.5) / 0.25)
    expected[:, -1, -1] = 2.0  # white
    assert torch.allclose(batch.input[0], expected)


def test_other_column_names_numbers_and_names_are_understood(tmp_path):
    rows = [("dog", "grass", 0, "a.png"), ("cat", "snow", 0, "b.png"), ("cat", "grass", 2, "c.png")]
    folder = write_folder(tmp_path / "data", rows, ("y", "place", "split", "img_filename"))
    splits = load_data(str(folder), {"size": [4, 4]})
    assert splits.classes == ["cat", "dog"]
    assert splits.train.target.tolist() == [1, 0] and splits.train.bias[:, 0].tolist() == [0, 1]
    assert splits.train.inputs.shape == (2, 3, 4, 4) and splits.val is None
    assert splits.train.mean == (0.485, 0.456, 0.406)  # ImageNet's; the report warns of it


def test_a_split_that_is_scattered_over_the_rows(tmp_path):
    rows = [(0, 0, "train", "a.png"), (0, 0, "test", "b.png"), (1, 0, "train", "c.png")]
    splits = load_data(str(write_folder(tmp_path / "data", rows)))
    assert splits.train.inputs[:, 0, 0, 0].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, 0, "train", "a.png"), (0, 0, "fold", "b.png")], r"1 rows with an unknown 'split' .*: line 3 \('fold'\)"),
        ([(0, 0, "test", "a.png")], "no row of the training split"),
        ([(-1, 0, "train", "a.png")], r"'label' is neither a name nor an integer from 0 to 99999: line 2 \('-1'\)"),
        ([(0, 10**20, "train", "a.png")], "'bias' is neither a name nor an integer from 0 to 99999: line 2"),
        (
            [(0, 0, "train", "a.png"), (1, 1, "train", "a.png")],
            "1 rows list a file that another row lists, too: line 3",
        ),
        ([(0, "", "train", "a.png")], "1 rows without a value in 'bias': line 2"),
        ([], "has no rows"),
    ],
)
def test_metadata_is_checked(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        load_data(str(write_folder(tmp_path / "data", rows)))


def test_all_bad_images_are_named_at_once(tmp_path):
    folder = write_folder(tmp_path / "data", ROWS)
    (folder / "b.png").unlink()
    (folder / "c.png").write_bytes(b"no image")
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"b\.png is missing; c\.png is unreadable .*; d\.png is unreadable"):
        load_data(str(folder))


def test_images_of_different_sizes_need_a_size(tmp_path):
    folder = write_folder(tmp_path / "data", ROWS)
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(folder / "b.png")
    with pytest.raises(DataError, match=r"b\.png is 5x5, the first image 6x8"):
        load_data(str(folder))
    assert load_data(str(folder), {"size": [6, 8]}).train.inputs.shape == (2, 3, 6, 8)


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


# -- loaders --------------------------------------------------------------------------------------


def test_passes_are_shuffled_anew_and_reproducible():
    data = biased_data(n=30)
    first, second = BatchLoader(data, 8, shuffle=True, seed=3), BatchLoader(data, 8, shuffle=True, seed=3)
    orders = [torch.cat([batch.input for batch in loader]) for loader in (first, first, second)]
    assert not torch.equal(orders[0], orders[1]) and torch.equal(orders[0], orders[2])
    second.set_epoch(1)
    assert torch.equal(torch.cat([batch.input for batch in second]), orders[1])
    assert len(first) == 4 and [len(batch.target) for batch in first] == [8, 8, 8, 6]


def test_fields_must_belong_together():
    with pytest.raises(DataError, match="do not belong together"):
        BiasedDataset(torch.zeros(2, 3), torch.zeros(2), torch.zeros(3, 1))


def test_scores_of_subgroups():
    target, bias = torch.tensor([0, 0, 0, 1]), torch.tensor([[0], [0], [1], [1]])
    evaluation = score(torch.tensor([0, 1, 0, 0]), target, bias, torch.tensor([[0], [1]]))
    assert evaluation.accuracy == 0.5
    assert [(group.name, group.n, group.accuracy) for group in evaluation.subgroups] == [
        ("y=0 b=0", 2, 0.5), ("y=0 b=1", 1, 1.0), ("y=1 b=1", 1, 0.0),
    ]  # fmt: skip
    assert evaluation.unbiased_accuracy == 0.5 and evaluation.worst_group_accuracy == 0

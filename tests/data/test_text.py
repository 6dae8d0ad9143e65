"""Texts from a file, their splits and their tokens."""

import gzip

import pytest
import torch
from folders import Words, write_table
from paths import SHARED

from bise_prune.data.text import load_text, tokenize
from bise_prune.errors import ConfigError, DataError

COLUMNS = ("text", "label", "bias", "split")

ROWS = [("a bb", 0, 0, "train"), ("ccc", 1, 1, "train"), ("d e f", 1, 0, "val"), ("gg hh", 0, 1, "test")]


def everything(splits):
    """Per field, all splits' rows."""
    parts = [part for part in (splits.train, splits.val, splits.test) if part is not None]
    fields = {name: torch.cat([part.inputs[name] for part in parts]) for name in parts[0].inputs}
    return fields | {name: torch.cat([getattr(part, name) for part in parts]) for name in ("target", "bias")}


# -- a file of texts -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data.csv", "data.csv.gz"])
def test_texts_are_read_and_tokenised(tmp_path, name):
    splits = load_text(write_table(tmp_path / name, COLUMNS, ROWS), Words())
    assert splits.train.inputs["input_ids"].tolist() == [[1, 11, 12, 2, 0], [1, 13, 2, 0, 0]]
    assert splits.train.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert {tensor.dtype for tensor in everything(splits).values()} == {torch.int64}
    assert set(splits.train.inputs) == {"input_ids", "attention_mask"}
    assert (splits.train.target.tolist(), splits.train.bias.tolist()) == ([0, 1], [[0], [1]])
    assert (splits.val.target.tolist(), splits.val.bias.tolist()) == ([1], [[0]])
    assert (splits.test.target.tolist(), splits.test.bias.tolist()) == ([0], [[1]])
    assert splits.classes == ["0", "1"]
    assert splits.notes == [f"{name}: 4 texts; columns: text 'text', label 'label', bias 'bias', split 'split'"]


def test_other_columns_names_and_split_values_are_understood(tmp_path):
    rows = [("x", "spam", "red", "0"), ("y", "ham", "blue", "Validation"), ("z", "ham", "red", "2")]
    path = write_table(tmp_path / "data.csv", ("Tweet", "Class", "Attribute", "Split"), rows)
    splits = load_text(path, Words())
    assert splits.classes == ["ham", "spam"]
    assert [part.target.tolist() for part in (splits.train, splits.val, splits.test)] == [[1], [0], [0]]
    assert everything(splits)["bias"].tolist() == [[1], [0], [1]]
    assert "bias 'Attribute': 0 = blue, 1 = red" in splits.notes


def test_columns_can_be_named_and_biases_be_several_or_none(tmp_path):
    rows = [("no", "x y", 1, 0, 2, "train"), ("no", "z", 0, 1, 0, "test")]
    path = write_table(tmp_path / "data.csv", ("text", "body", "label", "good", "site", "fold"), rows)
    named = {"text_column": "body", "label_column": "good", "split_column": "fold"}
    splits = load_text(path, Words(), **named, bias_columns=["label", "site"])
    assert splits.train.inputs["input_ids"].tolist() == [[1, 11, 11, 2]]
    assert (splits.train.target.tolist(), splits.train.bias.tolist()) == ([0], [[1, 2]])
    none = load_text(path, Words(), **named)
    assert none.train.bias.shape == (1, 0) and none.train.bias.dtype == torch.int64
    assert "no bias labels" in none.notes and none.val is None


def test_a_column_serves_one_purpose_when_it_is_detected(tmp_path):
    path = write_table(
        tmp_path / "data.csv", ("text", "label", "toxic", "split"), [("a", 0, 1, "train"), ("b", 1, 0, "test")]
    )
    splits = load_text(path, Words(), bias_columns=["label"])
    assert (splits.train.target.tolist(), splits.train.bias.tolist()) == ([1], [[0]])
    assert load_text(path, Words(), bias_columns=[]).train.target.tolist() == [0]


def test_byte_order_marks_and_names_that_differ_in_case(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes("\ufeffText,text,label\nx y,z,0\n".encode())
    splits = load_text(path, Words())
    assert splits.train.inputs["input_ids"].tolist() == [[1, 11, 2]]  # rather "text" than "Text"


def test_scores_are_split_at_a_half(tmp_path):
    scores = [("0.49", "0"), ("0.5", "0.2"), ("1", "0.8"), ("0.0", "1.0")]
    rows = [(f"text {i}", *score, "train") for i, score in enumerate(scores)]
    path = write_table(tmp_path / "data.csv", ("text", "toxicity", "identity_any", "split"), rows)
    splits = load_text(path, Words())
    assert splits.train.target.tolist() == [0, 1, 1, 0]
    assert splits.train.bias[:, 0].tolist() == [0, 0, 1, 1]
    assert splits.classes == ["toxicity < 0.5", "toxicity >= 0.5"]
    assert "'toxicity' holds scores: 0.5 and above are read as 1" in splits.notes


def test_whole_numbers_written_with_a_point_are_labels(tmp_path):
    rows = [("a", "0.0", "2.0", "train"), ("b", "1.0", "1.0", "train")]
    splits = load_text(write_table(tmp_path / "data.csv", COLUMNS, rows), Words())
    assert (splits.train.target.tolist(), splits.train.bias.tolist()) == ([0, 1], [[2], [1]])
    assert len(splits.classes) == 2 and len(splits.notes) == 1


# -- the split -------------------------------------------------------------------------------------


def cells_of(part):
    return torch.bincount(part.target * 2 + part.bias[:, 0], minlength=4).tolist()


def test_a_split_of_our_own_is_stratified_and_reproducible(tmp_path):
    sizes = {(0, 0): 100, (0, 1): 20, (1, 0): 10, (1, 1): 1}
    cells = [cell for cell, size in sizes.items() for _ in range(size)]
    # Words of one or two letters spell the row's number in binary: texts are told apart by their tokens.
    rows = [(" ".join("x" * (1 + (i >> bit & 1)) for bit in range(8)), *cell) for i, cell in enumerate(cells)]
    path = write_table(tmp_path / "data.csv", COLUMNS[:3], rows)
    splits = load_text(path, Words(), seed=3)
    assert [cells_of(part) for part in (splits.train, splits.val, splits.test)] == [
        [70, 14, 7, 1], [10, 2, 1, 0], [20, 4, 2, 0],
    ]  # fmt: skip
    assert len(everything(splits)["input_ids"].unique(dim=0)) == len(rows)  # every text once
    assert any("70 % train, 10 % val, 20 % test, stratified by label and bias, seed 3" in n for n in splits.notes)
    again, other = load_text(path, Words(), seed=3), load_text(path, Words(), seed=4)
    assert torch.equal(again.test.inputs["input_ids"], splits.test.inputs["input_ids"])
    assert not torch.equal(other.test.inputs["input_ids"], splits.test.inputs["input_ids"])


def test_equal_texts_stay_in_one_split(tmp_path):
    rows = [(" ".join(["w" * (i % 20 + 1)] * (1 + i // 20)), i % 2) for i in range(100)]
    rows += [(f"  {text.upper()}\n", 1 - label) for text, label in rows]  # with the other label, too
    splits = load_text(write_table(tmp_path / "data.csv", COLUMNS[:2], rows), Words())
    found = [
        {tuple(row) for row in part.inputs["input_ids"].tolist()} for part in (splits.train, splits.val, splits.test)
    ]
    assert not found[0] & found[1] and not found[0] & found[2] and not found[1] & found[2]
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [140, 20, 40]
    assert any("equal up to case and spacing are in the same split" in note for note in splits.notes)


def test_texts_in_several_splits_of_the_user_are_counted(tmp_path):
    rows = [*ROWS, ("A  BB", 0, 0, "test"), ("ccc", 1, 1, "train")]
    splits = load_text(write_table(tmp_path / "data.csv", COLUMNS, rows), Words())
    assert "1 texts, up to case and spacing, are in more than one split" in splits.notes
    assert (len(splits.train), len(splits.test)) == (3, 2)


# -- what is wrong with a file ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (COLUMNS, [], "has no rows"),
        (
            ("a", "words"),
            [("x", 0)],
            r"no column text \(text, comment_text, .*\), no column label \(label, y, .*has a, wo",
        ),
        (("text", "text", "label"), [("x", "y", 0)], "must have one column each of 'text'; it has text, text, label"),
        (
            COLUMNS,
            [("x", 0, 0, "dev"), ("y", 0, 0, "fold")],
            r"1 row with an unknown 'split' \(.*\): line 3 \('fold'\)",
        ),
        (COLUMNS, [("x", 0, 0, "test")], "no row of the training split"),
        (COLUMNS, [(" ", 0, 0, "train")], "1 row without text in 'text': line 2$"),
        (COLUMNS, [("x", "", 0, "train"), ("x", "NaN", 0, "train")], "2 rows without a value in 'label': line 2, 3$"),
        (
            COLUMNS,
            [("x", 0, "NaN", "train"), ("z", 0, 1, "train"), ("y", 0, 1, "val")],
            "1 row without a value in 'bias': line 2$",
        ),
        (COLUMNS, [("x", 0, 1, "train"), ("y", 0, "", "val")], "1 row without a value in 'bias': line 3$"),
        (COLUMNS, [("x", 0, 0, "train"), ("y", "?", 0, "val")], r"'label' is a name among numbers: line 3 \('\?'\)"),
        (
            COLUMNS,
            [*[("x", "ham", 0, "train")] * 2, ("y", 7, 0, "val")],
            r"'label' is a number among names: line 4 \('7'",
        ),
        (
            COLUMNS,
            [("x", -2, 0, "train")],
            r"'label' is neither a name nor an integer from 0 to 99999: line 2 \('-2'\)",
        ),
        (
            COLUMNS,
            [("x", 0, i, "train") for i in range(1, 2000, 2)] + [("x", 0, 5000, "val")],
            r"column 'bias' has 1,001 different values, .*: is it an identifier\?",
        ),
        (
            COLUMNS,
            [("x", 0.5, 0, "train"), ("y", 2, 0, "val")],
            r"'label', a score since .*not in \[0, 1\]: line 3 \('2'",
        ),
        (COLUMNS, [("x", "inf", 0, "train"), ("y", 2, 0, "val")], r"is a name among numbers: line 2 \('inf'\)$"),
        (COLUMNS, [("x", 0, 0)], "data.csv: 1 row with another number of fields than the header: line 2$"),
    ],
)
def test_files_are_checked(tmp_path, columns, rows, message):
    with pytest.raises(DataError, match=message):
        load_text(write_table(tmp_path / "data.csv", columns, rows), Words())


def test_all_problems_are_reported_at_once_and_before_tokenising(tmp_path):
    rows = [
        ("two\nlines", 0, 0, "train"), *[("", 1, "", "train")] * 12,
        ("x", 2, 0, "later"), ("y", 0), ("z", "odd", 1, "val"),
    ]  # fmt: skip
    tokenizer = Words()
    with pytest.raises(DataError) as caught:
        load_text(write_table(tmp_path / "data.csv", COLUMNS, rows), tokenizer)
    message = str(caught.value).partition("data.csv: ")[2].split("; ")
    assert message == [
        "1 row with another number of fields than the header: line 17",
        "12 rows without text in 'text': line 4, 5, 6, 7, 8, 9, 10, 11, 12, 13 and 2 more",
        "1 row with an unknown 'split' (use train, val, test or 0, 1, 2): line 16 ('later')",
        "1 row whose 'label' is a name among numbers: line 18 ('odd')",
        "12 rows without a value in 'bias': line 4, 5, 6, 7, 8, 9, 10, 11, 12, 13 and 2 more",
    ]
    assert not tokenizer.calls


def test_named_columns_are_checked(tmp_path):
    path = write_table(tmp_path / "data.csv", COLUMNS, ROWS)
    with pytest.raises(
        DataError, match="no column 'body', no column 'place'; it has text, label, bias, split: name them"
    ):
        load_text(path, Words(), text_column="body", bias_columns=["place"])
    with pytest.raises(DataError, match="column 'label' is given for more than one purpose"):
        load_text(path, Words(), label_column="label", bias_columns=["bias", "label"])


def test_unreadable_files(tmp_path):
    path = tmp_path / "data.csv"
    with pytest.raises(DataError, match=r"no file at .*data\.csv; expected a CSV file with a header"):
        load_text(path, Words())
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no column text .*it has none"):
        load_text(path, Words())
    path.write_bytes(b'text,label\nx,0\n"never closed,1\nz,0\n')
    with pytest.raises(DataError, match=r"cannot read .*: the row that starts in line 3: unexpected end of data"):
        load_text(path, Words())
    path.write_bytes(b"text,label\n\x81,0\n")
    with pytest.raises(DataError, match=r"cannot read .*not in UTF-8 \(byte 0x81\); save it as UTF-8"):
        load_text(path, Words())
    packed = tmp_path / "data.csv.gz"
    packed.write_bytes(gzip.compress(b"text,label\n" + b"x,0\n" * 1000)[:-20])
    with pytest.raises(DataError, match="cannot read"):
        load_text(packed, Words())
    packed.write_bytes(b"text,label\nx,0\n")
    with pytest.raises(DataError, match=r"cannot read .*[Nn]ot a gzipped file"):
        load_text(packed, Words())


# -- tokens ----------------------------------------------------------------------------------------


def test_tokens_are_padded_to_the_longest_text_of_all():
    texts = ["a"] * 1500 + ["a b c", "a b"]
    tokenizer = Words()
    tokens = tokenize(texts, tokenizer, 9)
    assert tokenizer.calls == [1024, 478]
    assert tokens["input_ids"].shape == tokens["attention_mask"].shape == (1502, 5)
    assert tokens["input_ids"][1499:].tolist() == [[1, 11, 2, 0, 0], [1, 11, 11, 11, 2], [1, 11, 11, 2, 0]]
    left = tokenize(texts, Words(left=True), 9)
    assert left["input_ids"][1499:].tolist() == [[0, 0, 1, 11, 2], [1, 11, 11, 11, 2], [0, 1, 11, 11, 2]]
    assert left["attention_mask"][-1].tolist() == [0, 1, 1, 1, 1]


def test_what_is_cut_off_is_said(tmp_path):
    path = write_table(tmp_path / "data.csv", COLUMNS, ROWS)
    splits = load_text(path, Words(), max_length=4)
    assert splits.val.inputs["input_ids"].tolist() == [[1, 11, 11, 2]]
    assert "3 of 4 texts fill 4 tokens; what may come after is cut off" in splits.notes
    with pytest.raises(ConfigError, match="max_length=2; expected at least 3"):
        load_text(path, Words(), max_length=2)


def test_unfit_tokenizers_are_named():
    def unpadded(text, /, **_):
        return {"input_ids": torch.zeros(len(text), 2)}

    def blind(text, /, *, max_length, **_):
        return {"input_ids": torch.zeros(len(text), max_length)}

    def unable(text, /, **_):
        raise ValueError("no padding token")

    with pytest.raises(DataError, match=r"'input_ids' must be a tensor of 1x5 \(texts x max_length\), got 1x2"):
        tokenize(["a"], unpadded, 5)
    with pytest.raises(DataError, match=r"'attention_mask' must be a tensor of 1x5 .*, got NoneType"):
        tokenize(["a"], blind, 5)
    with pytest.raises(DataError, match="cannot pad and cut texts to 5 tokens: no padding token"):
        tokenize(["a"], unable, 5)


# -- a real file -----------------------------------------------------------------------------------


def test_real_toxic_comments():
    path = SHARED / "text" / "jigsaw_toxic_12k.csv.gz"
    if not path.is_file():
        pytest.skip("no text/jigsaw_toxic_12k.csv.gz in the data folder beside the project")
    splits = load_text(path, Words(), max_length=16)
    counts = torch.tensor([cells_of(part) for part in (splits.train, splits.val, splits.test)])
    assert counts.sum(0).tolist() == [5467, 623, 4893, 1197]
    shares = counts / counts.sum(0)
    assert torch.allclose(shares, torch.tensor([[0.7], [0.1], [0.2]]).expand(3, 4), atol=2e-3)
    assert "label 'toxic', bias 'identity_any'" in splits.notes[0]


def test_the_training_split_alone_may_lack_bias_labels(tmp_path):
    rows = [("a", 0, "", "train"), ("b", 1, "nan", "train"), ("c", 1, "man", "val"), ("d", 0, "woman", "test")]
    splits = load_text(write_table(tmp_path / "data.csv", COLUMNS, rows), Words())
    assert not splits.train.has_bias and splits.train.target.tolist() == [0, 1]
    assert splits.val.bias.tolist() == [[0]] and splits.test.bias.tolist() == [[1]]
    assert splits.bias_values == (("man", "woman"),)
    assert "the training split has no bias labels, the other splits have them" in splits.notes

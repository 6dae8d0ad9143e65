"""CivilComments."""

import pytest
from folders import Words, write_table

from bise_prune.data.civilcomments import IDENTITIES, load_civilcomments
from bise_prune.errors import DataError

CIVIL = ("", "comment_text", "toxicity", "split", *IDENTITIES, "identity_any")


def civil_row(text, toxicity, split, **identities):
    return ("7", text, toxicity, split, *(identities.get(name, "0.0") for name in IDENTITIES), "1")


CIVIL_ROWS = [
    civil_row("fine", "0.0", "train"),
    civil_row("near", "0.4999", "train", male="0.499", white="0.4"),  # scores are not summed
    civil_row("half", "0.5", "train", other_religions="0.5"),
    civil_row("bad", "0.9", "val", black=""),
    civil_row("who", "0.1", "test", LGBTQ="1.0", female=""),
]


@pytest.mark.parametrize("folder", ["", "civilcomments_v1.0"])
def test_civilcomments(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    write_table(tmp_path / folder / "all_data_with_identities.csv", CIVIL, CIVIL_ROWS)
    splits = load_civilcomments(tmp_path, Words())
    assert (splits.train.target.tolist(), splits.train.bias.tolist()) == ([0, 0, 1], [[0], [0], [1]])
    assert (splits.val.target.tolist(), splits.val.bias.tolist()) == ([1], [[0]])
    assert (splits.test.target.tolist(), splits.test.bias.tolist()) == ([0], [[1]])
    assert splits.train.inputs["input_ids"].tolist() == [[1, 14, 2]] * 3
    assert splits.classes == ["non-toxic", "toxic"] and "any of eight identities" in splits.notes[0]


@pytest.mark.parametrize("identity", IDENTITIES)
def test_each_identity_of_civilcomments_counts(tmp_path, identity):
    rows = [civil_row("a", "0", "train", **{identity: "0.5"}), civil_row("b", "0", "train", **{identity: "0.4"})]
    write_table(tmp_path / "all_data_with_identities.csv", CIVIL, rows)
    assert load_civilcomments(tmp_path, Words()).train.bias.tolist() == [[1], [0]]


def test_civilcomments_is_checked(tmp_path):
    with pytest.raises(
        DataError, match=r"no all_data_with_identities\.csv in .* or its folder civilcomments_v1\.0; it"
    ):
        load_civilcomments(tmp_path, Words())
    path = tmp_path / "all_data_with_identities.csv"
    write_table(path, CIVIL[:-3], [])
    with pytest.raises(DataError, match="must have one column each of 'black', 'white'; it has , comment_text,"):
        load_civilcomments(tmp_path, Words())
    rows = [*CIVIL_ROWS, civil_row("", "", "train"), civil_row("x", "1.5", "fold", male="yes")]
    with pytest.raises(DataError) as caught:
        load_civilcomments(write_table(path, CIVIL, rows).parent, Words())
    assert str(caught.value).partition(".csv: ")[2].split("; ") == [
        "1 row without text in 'comment_text': line 7",
        "2 rows whose score 'toxicity' is not in [0, 1]: line 7 (''), 8 ('1.5')",
        "1 row whose score 'male' is not in [0, 1]: line 8 ('yes')",
        "1 row with an unknown 'split' (use train, val, test or 0, 1, 2): line 8 ('fold')",
    ]

"""Tables that chance has written: no crash, no hang; a clear error or a good result."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bise_prune.data import load_data
from bise_prune.errors import BiseError

FUZZ = settings(
    max_examples=150, deadline=5000, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


CELL = st.one_of(
    st.sampled_from(
        ["0", "1", "2", "train", "val", "test", "a.png", "b.png", "cat", "", "nan", "-1", "0.5", "1e9", "inf"]
    ),
    st.text(max_size=6),
)

HEADER = st.sampled_from(["label", "bias", "split", "file", "text", "bias_2", "", "y", "\ufeff", '"'])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for i, name in enumerate(("a.png", "b.png")):
        image = Image.new("RGB", (4, 4), (i, 0, 0))
        image.putpixel((0, i), (255, 255, 255))
        image.save(root / name)
    return root


@FUZZ
@given(header=st.lists(HEADER, max_size=6), rows=st.lists(st.lists(CELL, max_size=6), max_size=8))
def test_metadata_of_any_cells(images, header, rows):
    text = "\n".join(",".join(cells) for cells in [header, *rows])
    (images / "metadata.csv").write_text(text, encoding="utf-8", errors="replace")
    try:
        splits = load_data(str(images))
    except BiseError as error:
        assert str(error) and len(str(error)) < 5000
    else:
        assert len(splits.train) and int(splits.train.target.min()) >= 0


@FUZZ
@given(rows=st.lists(st.tuples(st.sampled_from(["0", "1", "x"]), CELL, CELL), min_size=1, max_size=6))
def test_metadata_with_a_good_header(images, rows):
    lines = ["label,bias,split,file", *(f"{label},{bias},{split},a.png" for label, bias, split in rows)]
    (images / "metadata.csv").write_text("\n".join(lines), encoding="utf-8", errors="replace")
    try:
        splits = load_data(str(images))
    except BiseError as error:
        assert str(error)
    else:
        assert splits.train.bias.shape[1] == 1


@FUZZ
@given(content=st.binary(max_size=300))
def test_metadata_of_any_bytes(images, content):
    (images / "metadata.csv").write_bytes(content)
    with pytest.raises(BiseError):
        load_data(str(images))

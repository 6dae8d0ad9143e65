"""Weight files that chance has written: no crash, no hang, no code run; a clear error or a good result."""

import io
import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from bise_prune.checkpoint import load_checkpoint
from bise_prune.errors import BiseError
from bise_prune.models import build_model

FUZZ = settings(
    max_examples=150, deadline=5000, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.text(max_size=8), st.floats(allow_nan=False)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "head.weight", "x"]), inner),
    ),
    max_leaves=12,
)


@FUZZ
@given(header=JSON, body=st.binary(max_size=64), length=st.one_of(st.none(), st.integers(0, 2**64 - 1)))
def test_safetensors_headers(tmp_path, header, body, length):
    text = json.dumps(header).encode()
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    try:
        load_checkpoint(path)
    except BiseError as error:
        assert "net.safetensors" in str(error)


@pytest.fixture(scope="module")
def weights():
    return build_model("mlp", 3, {"in_features": 12, "hidden": [4]}).state_dict()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "module"])
def test_flipped_bytes_in_checkpoints(kind, weights, tmp_path):
    """Every byte of the file's structure in turn becomes another; tensors' bytes are data, and may be anything."""
    buffer = io.BytesIO()
    if kind == "safetensors":
        content = save(weights)
    else:
        value = torch.nn.Sequential(torch.nn.Linear(2, 2)) if kind == "module" else weights
        torch.save(value, buffer, _use_new_zipfile_serialization=kind != "legacy")
        content = buffer.getvalue()
    path = tmp_path / "net.pt"
    generator = torch.Generator().manual_seed(0)
    places = torch.randperm(len(content), generator=generator)[:400].tolist()
    outcomes = {"read": 0, "refused": 0}
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        try:
            load_checkpoint(path)
            outcomes["read"] += 1
        except BiseError as error:
            assert "net.pt" in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 10
    for cut in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:cut])
        with pytest.raises(BiseError, match=r"net\.pt"):
            load_checkpoint(path)

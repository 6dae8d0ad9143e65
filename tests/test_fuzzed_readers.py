"""Files that chance has changed, for each reader: no crash, no hang, no bomb; a good result or a clear error."""

import copy
import json
import resource
import struct

import pytest
from fuzzing.readers import READERS, read
from fuzzing.seeds import contents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FUZZ = settings(
    max_examples=60, deadline=20_000, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
UNREADABLE = {"report"}  # readers without a content that they can read, for want of a short one
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8),
        st.sampled_from(["", "0", "../x", "\u001b[31m", "[/red]", "\ud800", "x" * 3000, -1, 0, 1, 1e400, 2**63]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_contents_from_which_fuzzing_starts(name, tmp_path):
    """Among them is what fuzzing once found, such as files of bytes that took gigabytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = {about: read(name, tmp_path, content) for about, content in contents(name).items()}
    assert None in refused.values() or name in UNREADABLE, refused
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kilobytes


@pytest.mark.parametrize("name", READERS)
@FUZZ
@given(data=st.data())
def test_bytes_that_are_changed(name, tmp_path, data):
    content = bytearray(data.draw(st.sampled_from(list(contents(name).values()))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        new = data.draw(st.one_of(st.binary(max_size=8), st.sampled_from([b"\xff" * 4, b"\0" * 8, b"\x7f" * 8])))
        content[place : place + data.draw(st.integers(0, 8))] = new
    read(name, tmp_path, bytes(content))


def _places(value, path=()):
    """The path of each value within a value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


def _changed(data, value):
    """A value in which another value stands at one place, or nothing."""
    *path, last = data.draw(st.sampled_from([place for place in _places(value) if place]))
    value = copy.deepcopy(value)
    holder = value
    for key in path:
        holder = holder[key]
    if data.draw(st.booleans()):
        holder[last] = data.draw(JSON)
    else:
        del holder[last]
    return value


@pytest.mark.parametrize("name", ["folder", "lines", "plan", "report"])
@FUZZ
@given(data=st.data())
def test_json_in_which_values_are_changed(name, tmp_path, data):
    text = data.draw(st.sampled_from([content for content in contents(name).values() if len(content) > 2])).decode()
    rows = [json.loads(line) for line in text.splitlines()]
    row = data.draw(st.sampled_from(range(len(rows))))
    rows[row] = _changed(data, rows[row])
    read(name, tmp_path, "\n".join(map(json.dumps, rows)).encode())


@pytest.mark.parametrize("name", ["masks", "checkpoint"])
@FUZZ
@given(data=st.data())
def test_headers_in_which_values_are_changed(name, tmp_path, data):
    """Of safetensors files."""
    made = [content for content in contents(name).values() if content[8:9] == b"{" and len(content) > 20]
    content = data.draw(st.sampled_from(made))
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(_changed(data, json.loads(content[8 : 8 + length]))).encode()
    read(name, tmp_path, struct.pack("<Q", len(header)) + header + content[8 + length :])

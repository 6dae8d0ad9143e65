"""Records are written once, and read back."""

import json
import re

import pytest
import run
from tables.recorded import Recorded, Where
from tiny_benchmark import tiny


def test_a_record_is_written_once(tmp_path, monkeypatch, capsys, untimed):
    monkeypatch.setattr("tables.plans.setting_of", lambda name, size: tiny())
    command = [
        "--table", "peers-digits", "--methods", "vanilla", "--seeds", "0", "--data-root", str(tmp_path),
        "--work", str(tmp_path / "work"), "--records", str(tmp_path / "records"),
    ]  # fmt: skip
    assert run.main(command) == 0
    (path,) = (tmp_path / "records").rglob("*.json")
    assert path == tmp_path / "records" / "digits" / "small" / "rho-0.9" / "vanilla-seed0.json"
    record = json.loads(path.read_text())
    assert record["n"]["train"] == 300 and record["seeds"] == [0] and record["method"] == "vanilla"
    before = path.stat().st_mtime_ns
    assert run.main(command) == 0 and path.stat().st_mtime_ns == before
    assert run.main([*command[:2], "--methods", "bise", *command[4:], "--minutes", "0"]) == 75
    assert "goes on from here" in capsys.readouterr().err
    read = Recorded(tmp_path / "records")
    (value,) = read.values(Where("digits", "small", 0.9, "vanilla", "vanilla"), "unbiased")
    assert value == record["rows"]["vanilla"]["unbiased"]


@pytest.mark.parametrize(
    ("table", "told"), [("rungs", "0.9 is in none.*0.95, 0.98, 0.99"), ("rungs-multi-color", "nothing to choose")]
)
def test_a_share_that_no_table_has_is_refused(tmp_path, capsys, table, told):
    size = ["--size", "full"] if table == "rungs-multi-color" else []
    with pytest.raises(SystemExit) as stopped:
        run.main(["--table", table, *size, "--rho", "0.9", "--data-root", str(tmp_path)])
    assert stopped.value.code == 2 and re.search(told, capsys.readouterr().err)


def test_seeds_are_read_as_people_write_them():
    assert run._seeds("0-2") == [0, 1, 2] and run._seeds("0,3-4") == [0, 3, 4]

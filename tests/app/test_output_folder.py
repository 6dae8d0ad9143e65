"""The folder of a run: one run at a time, and nothing of others is written over."""

import shutil
import tempfile

from projects import FAST, fails

from bise_prune.files import locked


def test_results_are_not_overwritten(done, capsys):
    project, _ = done
    line = fails(capsys, project / "net.pt", "--data", project / "data", "--output", project / "out", code=2)
    assert "holds results already" in line


def test_an_unwritable_output(project, capsys):
    line = fails(capsys, project / "net.pt", "--data", project / "data", "--output", "/proc/nowhere/out", code=2)
    assert "cannot write to /proc/nowhere/out" in line


def test_two_runs_do_not_share_a_folder(project, tmp_path, capsys):
    with locked(tmp_path / "out"):
        line = fails(
            capsys, project / "net.pt", "--data", project / "data", "--output", tmp_path / "out", *FAST, code=2
        )
        assert "another run is writing to" in line
    assert not (tmp_path / "out").exists()


def test_files_of_the_users_own_are_never_written_over(project, tmp_path, capsys):
    for name in ("README.md", "report.html"):
        (tmp_path / name).write_text("mine")
        line = fails(capsys, project / "net.pt", "--data", project / "data", "--output", tmp_path, code=2)
        assert f"holds results already ({name})" in line
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    (tmp_path / "config.toml").write_text("mine")
    (tmp_path / ".bise-prune-notes.txt").write_text("mine")
    line = fails(capsys, project / "net.pt", "--data", project / "data", "--output", tmp_path, code=2)
    assert "holds results already (config.toml)" in line
    (tmp_path / "config.toml").unlink()
    with locked(tmp_path):
        assert (tmp_path / ".bise-prune-notes.txt").read_text() == "mine"


def test_an_input_is_not_written_over(project, tmp_path, capsys):
    (tmp_path / "config.toml").write_text("batch_size = 20\n")
    command = [project / "net.pt", "--data", project / "data", "--output", tmp_path]
    line = fails(capsys, *command, "--config", tmp_path / "config.toml", code=2)
    assert "config.toml is an input, and a result would overwrite it; choose another --output" in line
    assert (tmp_path / "config.toml").read_text() == "batch_size = 20\n"


def test_room_for_the_results_is_needed_before_the_search(project, tmp_path, capsys, monkeypatch):
    usage, elsewhere = shutil.disk_usage(tmp_path), tempfile.gettempdir()  # where images are decoded to
    full = usage._replace(free=5_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage if path == elsewhere else full)
    output = tmp_path / "a" / "b"
    line = fails(capsys, project / "net.pt", "--data", project / "data", "--output", output, *FAST, code=2)
    assert "the results take up to 0 MB" in line and "choose another with --output" in line
    assert not (tmp_path / "a").exists()

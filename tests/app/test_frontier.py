"""Several targets give a frontier; a stopped one goes on, and is of one checkpoint and one data set."""

import dataclasses
import json
import shutil

import pytest
from projects import FAST, fails, run

from bise_prune import load_model
from bise_prune.app import cli, pipeline
from bise_prune.checkpoint import save_checkpoint
from bise_prune.errors import BiseError
from bise_prune.report.files import FRONTIER_FILE


def test_several_targets_give_a_frontier_that_resumes(wide, tmp_path, capsys):
    out = tmp_path / "out"
    extra = ["--targets", "0.5,0.25", "--layer-floor", "0"]
    assert run(wide, out, *extra) is None
    frontier = json.loads((out / FRONTIER_FILE).read_text())["frontier"]
    assert [point["target_sparsity"] for point in frontier] == [0.25, 0.5]
    for point in frontier:
        assert abs(point["report"]["sparsity"] - point["target_sparsity"]) <= 0.01
        assert (out / point["folder"] / "slim.onnx").is_file()
    assert "sparsity" in capsys.readouterr().out
    (out / FRONTIER_FILE).unlink()  # as if it had been stopped in the second
    for path in (out / "sparsity-0.5").iterdir():
        path.unlink()
    run(wide, out, *extra)
    again = json.loads((out / FRONTIER_FILE).read_text())["frontier"]
    assert [p["report"]["sparsity"] for p in again] == [p["report"]["sparsity"] for p in frontier]


@pytest.mark.slow
def test_a_frontier_of_other_settings_is_not_taken_up(wide, tmp_path, capsys):
    out = tmp_path / "out"
    run(wide, out, "--targets", "0.3")
    (out / FRONTIER_FILE).unlink()
    given = [wide / "net.pt", "--data", wide / "data", "--output", out, *FAST, "--targets", "0.3"]
    capsys.readouterr()
    assert "holds results of another run, which differs in search" in fails(
        capsys, *given, "--mi-weight", "0.5", code=2
    )
    assert cli.main([str(argument) for argument in (*given, "--resume")]) == 0


@pytest.mark.slow
def test_a_frontier_is_of_one_checkpoint_and_one_data_set(wide, tmp_path, monkeypatch, capsys):
    out, one = tmp_path / "out", pipeline._one

    def once(session, *arguments, **options):
        if session.config.target_sparsity != 0.25:
            raise BiseError("the power is out")
        return one(session, *arguments, **options)

    monkeypatch.setattr(pipeline, "_one", once)
    other = tmp_path / "other"
    shutil.copytree(wide, other)
    flags = ["--output", out, *FAST, "--targets", "0.5,0.25", "--layer-floor", "0"]
    fails(capsys, wide / "net.pt", "--data", wide / "data", *flags)
    model, about = load_model(other / "net.pt")
    save_checkpoint(
        other / "net.pt", dataclasses.replace(about, state={k: v * 1.5 for k, v in model.state_dict().items()})
    )
    line = fails(capsys, other / "net.pt", "--data", other / "data", *flags, code=2)
    assert "sparsity-0.25 holds results of another run, which differs in checkpoint" in line
    (other / "data" / "0.png").write_bytes((other / "data" / "1.png").read_bytes())
    line = fails(capsys, wide / "net.pt", "--data", other / "data", *flags, code=2)
    assert "which differs in data" in line
    monkeypatch.setattr(pipeline, "_one", one)
    assert cli.main([str(a) for a in [wide / "net.pt", "--data", wide / "data", *flags]]) == 0
    assert (out / "config.toml").exists() and not (out / "sparsity-0.25" / "config.toml").exists()

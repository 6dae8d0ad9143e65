"""Several targets give a frontier; a stopped one goes on, and is of one checkpoint and one data set."""

import dataclasses
import json
import shutil

import pytest
from projects import FAST, fails, run

from bise_prune import load_model
from bise_prune.app import cli, pipeline
from bise_prune.checkpoint import save_checkpoint
from bise_prune.errors import BiseError, ChanceLevelError, PruningError
from bise_prune.report.files import FRONTIER_FILE, STATE_FILE


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
    report = out / "sparsity-0.25" / "report.json"
    whole = report.read_text()
    for damage in ("", "[]", "{}", "[" * 100_000, whole[:-50], whole.replace('"environment"', '"x"')):
        report.write_text(damage)
        line = fails(capsys, wide / "net.pt", "--data", wide / "data", *flags, code=2)
        assert "report.json is damaged" in line and f"delete the folder {out / 'sparsity-0.25'}" in line
    report.write_text(whole)
    monkeypatch.setattr(pipeline, "_one", one)
    assert cli.main([str(a) for a in [wide / "net.pt", "--data", wide / "data", *flags]]) == 0
    assert (out / "config.toml").exists() and not (out / "sparsity-0.25" / "config.toml").exists()


def test_targets_without_a_result_are_named_beside_the_others(wide, tmp_path, capsys, monkeypatch):
    """One target cannot be reached and the network of another is worthless; the third is delivered."""
    prune, check = pipeline.pruned_by_first, pipeline.check_above_chance

    def pruned(session, *arguments):
        if session.config.target_sparsity == 0.3:
            raise PruningError("the nearest reachable is 0.5")
        return prune(session, *arguments)

    def checked(session, *arguments):
        if session.config.target_sparsity == 0.4:
            raise ChanceLevelError("it predicts <one> class")
        return check(session, *arguments)

    monkeypatch.setattr(pipeline, "pruned_by_first", pruned)
    monkeypatch.setattr(pipeline, "check_above_chance", checked)
    out = tmp_path / "out"
    command = [wide / "net.pt", "--data", wide / "data", "--output", out, *FAST, "--layer-floor", "0"]
    capsys.readouterr()
    assert cli.main([str(argument) for argument in [*command, "--targets", "0.2,0.3,0.4"]]) == 3
    captured = capsys.readouterr()
    assert "without a result 2" in captured.out.splitlines()[0]
    assert "bise-prune: error: sparsity-0.3 has no result: the nearest reachable is 0.5" in captured.err
    record = json.loads((out / FRONTIER_FILE).read_text())
    assert [point["folder"] for point in record["frontier"]] == ["sparsity-0.2"]
    assert [(p["folder"], p["kind"]) for p in record["failed"]] == [
        ("sparsity-0.3", "target"),
        ("sparsity-0.4", "chance"),
    ]
    assert "it predicts &lt;one&gt; class" in (out / "frontier.html").read_text()
    assert (out / "sparsity-0.2" / "slim.onnx").is_file() and not (out / "sparsity-0.4" / "slim.onnx").exists()
    assert (out / "sparsity-0.4" / "masks.safetensors").is_file() and (out / "sparsity-0.4" / STATE_FILE).is_file()
    line = fails(capsys, *command[:-4], "--output", tmp_path / "none", *FAST, "--layer-floor", "0", "--targets", "0.3")
    assert "no target has a result: sparsity-0.3: the nearest reachable is 0.5" in line

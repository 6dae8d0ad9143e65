"""What a run hands over: every file is listed, checked and clean, and what loses too much is refused."""

import json
import re

import onnx
import pytest
from projects import FAST, fails

from bise_prune.app import cli
from bise_prune.export.onnx_file import opset_of
from bise_prune.export.runtime import open_session


def test_every_file_is_listed_checked_and_clean(ran):
    project, record = ran
    assert [f["file"] for f in record["formats"]] == [
        "slim.onnx", "slim.fp16.onnx", "slim.int8.onnx", "slim.images.onnx",
    ]  # fmt: skip
    assert [f["precision"] for f in record["formats"]] == ["float32", "float16", "int8", "float32"]
    for form in record["formats"]:
        path = project / "out" / form["file"]
        proto = onnx.load(path)
        onnx.checker.check_model(proto, full_check=True)
        assert form["size_bytes"] == path.stat().st_size and form["refused"] is None and form["latency_ms"] > 0
        assert form["opset"] == opset_of(proto) == 21
        assert sum(group["n"] for group in form["groups"]) == form["n"] == record["slim"]["n"]
        raw = path.read_bytes()
        assert (
            str(project).encode() not in raw
            and b".py" not in raw
            and b"/home" not in raw
            and b"site-packages" not in raw
        )
        about = open_session(path).get_modelmeta().custom_metadata_map
        assert about["source_sha256"] == record["sources"]["checkpoint"] and json.loads(about["classes"]) == [
            "0",
            "1",
            "2",
        ]
        assert set(json.loads(about["versions"])) == {"bise-prune", "torch", "onnx"}
        assert about["plan_fingerprint"] == record["plan"]["fingerprint"] and float(about["sparsity"]) > 0
    assert record["formats"][2]["calibration"]["least_per_subgroup"] >= 1
    assert record["formats"][0]["accuracy"] == record["slim"]["accuracy"]


def test_files_that_lose_too_much_are_refused(project, tmp_path, capsys, monkeypatch):
    def spoiled(source, path, data, seed=0):
        proto = onnx.load(source)
        for tensor in proto.graph.initializer:
            if len(tensor.dims) == 2:
                tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
        onnx.save(proto, path)
        return {"n": 1, "least_per_subgroup": 1, "most_per_subgroup": 1}

    monkeypatch.setattr("bise_prune.app.stages.export.write_int8", spoiled)
    arguments = [project / "net.pt", "--data", project / "data", *FAST, "--int8", "--output", tmp_path / "out"]
    assert cli.main([str(a) for a in arguments]) == 4
    captured = capsys.readouterr()
    assert re.search(r"slim\.int8\.onnx \(int8\) loses \d+\.\d% of .*, allowed 2\.0% \(--format-tol", captured.err)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "slim.int8.onnx" not in names and {"report.json", "report.html", "slim.onnx"} <= names
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["formats"][1]["refused"] and not record["formats"][0]["refused"]
    assert "slim.int8.onnx" not in captured.out.split("written to")[1]


def test_gates_end_with_exit_code_3_and_keep_the_results(ran, tmp_path, capsys):
    project, record = ran
    assert record["gates"] == [
        {"name": "min_worst_group", "asked": 0.0, "value": record["slim"]["worst_group_accuracy"], "passed": True}
    ]
    masks = project / "out" / "masks.safetensors"
    arguments = [project / "net.pt", "--data", project / "data", "--masks", masks, "--output", tmp_path / "out"]
    arguments += ["--min-worst-group", "1", "--max-accuracy-drop", "1", "--min-speedup", "1000", *FAST]
    assert cli.main([str(a) for a in [*arguments, "--triton", tmp_path / "models"]]) == 3
    err = capsys.readouterr().err
    assert "nothing was added to the Triton repository" in err and not (tmp_path / "models").exists()
    assert "quality gate --min-worst-group 1 missed: " in err and "quality gate --min-speedup 1000 missed: " in err
    assert "max-accuracy-drop" not in err
    gates = json.loads((tmp_path / "out" / "report.json").read_text())["gates"]
    assert [gate["passed"] for gate in gates] == [False, True, False]
    assert (tmp_path / "out" / "slim.onnx").is_file()


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        (["--opset", "0"], 2, "opset = 0 is out of range: expected an integer >= 7"),
        (["--opset", "99"], 2, "opset 99"),
        (["--min-worst-group", "70"], 2, "min_worst_group = 70"),
        (["--format-tolerance", "-1"], 2, "format_tolerance = -1"),
        (["--min-speedup", "0"], 2, "min_speedup = 0"),
        (["--log", "printer"], 2, "log = 'printer': expected one of tensorboard, mlflow, wandb"),
        (["--log", "mlflow"], 2, "logging to mlflow needs a package that is not installed: pip install mlflow"),
        (["--triton", "models", "--targets", "0.3,0.5"], 2, "triton takes one slim network"),
    ],
)
def test_what_cannot_be_delivered_is_said_before_the_work(
    project, tmp_path, capsys, monkeypatch, options, code, complaint
):
    if "mlflow" in options:
        monkeypatch.setattr("bise_prune.report.loggers.find_spec", lambda name: None)
    arguments = [project / "net.pt", "--data", project / "data", "--output", tmp_path / "none", *options]
    assert complaint in fails(capsys, *arguments, code=code)
    assert not (tmp_path / "none").exists()

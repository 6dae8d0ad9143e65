"""What a run hands over: ONNX in other forms, Triton repositories, quality gates, pages and cards."""

import copy
import html.parser
import json
import re
import shutil
import sys
import types

import numpy as np
import onnx
import pytest
import torch
import yaml
from cases import biased_data, images, network
from google.protobuf import text_format
from test_cli import FAST, fails, write_project
from tritonclient.grpc import model_config_pb2

from bise_prune import export_onnx, load_model
from bise_prune.app import cli
from bise_prune.data import BatchLoader, BiasedDataset
from bise_prune.errors import ConfigError
from bise_prune.export.image_input import AsImages
from bise_prune.export.onnx_file import opset_of
from bise_prune.export.precision import balanced_rows, half_overflow, write_half, write_int8
from bise_prune.export.runtime import onnx_predictions, open_session
from bise_prune.export.triton import write_repository
from bise_prune.report.card import write_card
from bise_prune.report.loggers import Loggers
from bise_prune.report.page import write_page
from bise_prune.report.plots import Line, plot
from bise_prune.report.record import command_line


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return write_project(tmp_path_factory.mktemp("delivery"))


@pytest.fixture(scope="module")
def ran(project):
    """A run with everything that can be asked for."""
    arguments = [project / "net.pt", "--data", project / "data", "--output", project / "out", *FAST, "--half", "--int8"]
    arguments += ["--image-input", "--format-tolerance", "1", "--triton", project / "models", "--opset", "21"]
    arguments += ["--min-worst-group", "0", "--log", f"tensorboard:{project / 'logs'}"]
    assert cli.main([str(a) for a in arguments]) == 0
    return project, json.loads((project / "out" / "report.json").read_text())


# -- ONNX in other forms -----------------------------------------------------------------------------


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


def test_half_precision_is_half_and_near(tmp_path):
    model, inputs = network("resnet"), images(4)
    export_onnx(model, tmp_path / "a.onnx", inputs, metadata={"classes": "[]"})
    write_half(tmp_path / "a.onnx", tmp_path / "b.onnx")
    kinds = [tensor.data_type for tensor in onnx.load(tmp_path / "b.onnx").graph.initializer]
    assert kinds.count(onnx.TensorProto.FLOAT16) > len(kinds) / 2
    session = open_session(tmp_path / "b.onnx")
    (value,) = session.get_inputs()
    assert value.type == "tensor(float)" and session.get_modelmeta().custom_metadata_map["precision"] == "float16"
    with torch.no_grad():
        expected = model.eval()(inputs).numpy()
    found = session.run(None, {value.name: inputs.numpy()})[0]
    assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_int8_is_quantised_and_calibrated_on_every_subgroup(tmp_path):
    model, data = network("resnet"), biased_data(n=300, rho=0.9)
    export_onnx(model, tmp_path / "a.onnx", data.example())
    sample = write_int8(tmp_path / "a.onnx", tmp_path / "b.onnx", data)
    proto = onnx.load(tmp_path / "b.onnx")
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in proto.graph.node}
    assert any(
        tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4 for tensor in proto.graph.initializer
    )
    cells = torch.stack([data.target, data.bias[:, 0]], 1).unique(dim=0, return_counts=True)[1]
    assert sample["least_per_subgroup"] == min(int(cells.min()), 256 // len(cells)) and sample["n"] == 256
    assert sample["most_per_subgroup"] * len(cells) > 256
    found, expected = (onnx_predictions(tmp_path / name, data) for name in ("b.onnx", "a.onnx"))
    assert (found == expected).double().mean() > 0.8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_balanced_rows_take_all_of_the_rare():
    target = torch.tensor([0] * 90 + [1] * 8 + [0] * 2)
    bias = torch.tensor([0] * 90 + [1] * 8 + [1] * 2)[:, None]
    rows, counts = balanced_rows(BiasedDataset(torch.zeros(100, 1), target, bias), 30)
    assert len(rows) == len(set(rows.tolist())) == sum(counts) == 30
    assert counts == [20, 2, 8] and {98, 99} | set(range(90, 98)) <= set(rows.tolist())
    assert balanced_rows(BiasedDataset(torch.zeros(100, 1), target, bias), 15)[1] == [7, 2, 6]


def test_int8_keeps_the_accuracy_of_a_trained_network(ran):
    """Without a spare bit in the weights, processors without the newer integer instructions overflow."""
    project, record = ran
    full, int8 = record["formats"][0], record["formats"][2]
    assert abs(full["accuracy"] - int8["accuracy"]) < 0.1
    proto = onnx.load(project / "out" / "slim.int8.onnx")
    weights = [onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if len(t.dims) > 1]
    assert weights and all(np.abs(w.astype(int)).max() <= 64 for w in weights if w.dtype == np.int8)


def test_what_overflows_in_half_precision_is_refused():
    torch.manual_seed(0)
    data = BiasedDataset(torch.randn(20, 4), torch.arange(20) % 2, torch.zeros(20, 1).long())
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    assert half_overflow(net, data) is None
    with torch.no_grad():
        net[0].weight.mul_(5e4)
        net[2].weight.div_(5e4)
    assert torch.isfinite(net(data.inputs)).all()
    lost = int((~torch.isfinite(copy.deepcopy(net).half()(data.inputs.half()))).any(1).sum())
    assert half_overflow(net, data) == f"{lost} of 20 outputs are not finite in half precision" and lost > 0


def test_an_image_graph_normalises_by_itself(tmp_path):
    pixels = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8)
    data = BiasedDataset(pixels, torch.arange(30) % 3, torch.zeros(30, 1).long(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    model = network("simple_convnet").eval()
    path = tmp_path / "images.onnx"
    example = pixels[:2].permute(0, 2, 3, 1).contiguous()
    export_onnx(AsImages(model, data.mean, data.std), path, example, output_name="probabilities")
    session = open_session(path)
    assert (session.get_inputs()[0].type, session.get_inputs()[0].shape[1:]) == ("tensor(uint8)", [8, 8, 3])
    (found,) = session.run(["probabilities"], {"input": pixels.permute(0, 2, 3, 1).contiguous().numpy()})
    with torch.no_grad():
        expected = model(next(iter(BatchLoader(data, 30))).input).softmax(1).numpy()
    assert np.allclose(found, expected, atol=1e-5) and np.allclose(found.sum(1), 1, atol=1e-5)
    assert torch.equal(onnx_predictions(path, data, as_images=True), torch.from_numpy(expected.argmax(1)))


def test_the_opset_is_what_was_asked_for(tmp_path):
    export_onnx(network("resnet"), tmp_path / "a.onnx", images(), opset=20)
    assert opset_of(onnx.load(tmp_path / "a.onnx")) == 20
    with pytest.raises(ConfigError, match=r"opset 17 cannot be written for this network: torch's exporter gives 18"):
        export_onnx(network("resnet"), tmp_path / "b.onnx", images(), opset=17)
    assert not (tmp_path / "b.onnx").exists()


def test_a_provider_that_is_not_there_is_an_error(tmp_path):
    export_onnx(network("mlp"), tmp_path / "a.onnx", images())
    with pytest.raises(ConfigError, match=r"this onnxruntime has no NoSuchProvider, only .*CPUExecutionProvider"):
        open_session(tmp_path / "a.onnx", provider="NoSuchProvider")


def test_files_that_lose_too_much_are_refused(project, tmp_path, capsys, monkeypatch):
    def spoiled(source, path, data, seed=0):
        proto = onnx.load(source)
        for tensor in proto.graph.initializer:
            if len(tensor.dims) == 2:
                tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
        onnx.save(proto, path)
        return {"n": 1, "least_per_subgroup": 1, "most_per_subgroup": 1}

    monkeypatch.setattr("bise_prune.app.export_stage.write_int8", spoiled)
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
        (["--opset", "0"], 2, "opset = 0 is out of range: expected an integer >= 1"),
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


# -- Triton ------------------------------------------------------------------------------------------


def test_a_triton_repository_has_dense_and_slim_as_versions(ran, capsys):
    project, _ = ran
    folder = project / "models" / "net"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["1/model.onnx", "2/model.onnx", "config.pbtxt", "labels.txt"]
    config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("net", "onnxruntime", 64)
    assert [(i.name, list(i.dims)) for i in config.input] == [("input", [3, 8, 8])]
    assert [(o.name, list(o.dims), o.label_filename) for o in config.output] == [("logits", [3], "labels.txt")]
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 64]
    assert config.HasField("dynamic_batching") and config.version_policy.HasField("all")
    assert (folder / "labels.txt").read_text() == "0\n1\n2\n"
    dense, slim = (open_session(folder / number / "model.onnx") for number in "12")
    assert (folder / "2" / "model.onnx").read_bytes() == (project / "out" / "slim.onnx").read_bytes()
    inputs = torch.randn(3, 3, 8, 8)
    expected = load_model(project / "net.pt")[0](inputs).detach().numpy()
    assert np.allclose(dense.run(None, {"input": inputs.numpy()})[0], expected, atol=1e-4)
    assert slim.get_modelmeta().custom_metadata_map["sparsity"] != dense.get_modelmeta().custom_metadata_map["sparsity"]
    arguments = [
        project / "net.pt",
        "--data",
        project / "data",
        "--output",
        project / "no",
        "--triton",
        project / "models",
    ]
    assert "has a model 'net' already" in fails(capsys, *arguments, code=2)


def test_versions_of_one_model_take_the_same_inputs(tmp_path):
    export_onnx(network("simple_convnet"), tmp_path / "a.onnx", images())
    export_onnx(network("simple_convnet"), tmp_path / "b.onnx", images(size=16))
    with pytest.raises(ConfigError, match=r"a\.onnx and b\.onnx differ in inputs or outputs"):
        write_repository(tmp_path / "models", "net", [tmp_path / "a.onnx", tmp_path / "b.onnx"])
    assert not (tmp_path / "models" / "net").exists()


# -- pages -------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Tags, ids and what they point at."""

    VOID = ("meta", "link", "br", "img", "path", "use", "input")

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.open, self.tables, self.words = [], [], [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [value for key, value in attrs if key in ("href", "src", "xlink:href")]
        self.tables += tag == "table"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_report_is_one_page_that_needs_nothing_else(ran):
    project, record = ran
    text = (project / "out" / "report.html").read_text()
    page = Page(text)
    assert page.open == [] and page.tables >= 7
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", text) and "fetch(" not in text
    assert len(text) < 1_500_000 and str(project) not in text
    words = " ".join(" ".join(page.words).split())
    for group in record["fairness"]["groups"]:
        assert group["name"] in words
    for warning in record["warnings"]:
        assert warning[1:] in words
    assert f"{100 * record['slim']['unbiased_accuracy']:.1f}" in words
    assert all(form["file"] in words for form in record["formats"])
    changed = {sample["row"] for sample in record["changed_samples"]}
    assert text.count("data:image/png") == len(changed) > 0


def test_a_text_that_looks_like_markup_stays_text(ran, tmp_path):
    _, record = ran
    sample = {**record["changed_samples"][0], "text": "<script>alert(1)</script>"}
    data = {**record["data"], "classes": ["<i>"]}
    spoiled = {**record, "changed_samples": [sample], "warnings": ["<b>&"], "data": data}
    write_page(tmp_path / "page.html", spoiled, {})
    text = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in text and "<i>" not in text.replace("<i style", "") and "<b>" not in text


def test_a_plot_is_drawn_in_the_colours_of_its_page():
    lines = [Line("a", [0, 1, None], [1.0, 2.0, 3.0]), Line("b", [0, 1], [None, 1.0])]
    drawn = plot("one", 'says "this"', lines, "x", "y", mark_x=(0.5, "here"))
    other = plot("two", "that", lines, "x", "y")
    assert drawn.startswith("<svg") and 'aria-label="says &quot;this&quot;"' in drawn
    assert "currentColor" in drawn and "#010203" not in drawn and "http://matplotlib" not in drawn
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (drawn, other)]
    assert ids[0] and not ids[0] & ids[1]
    assert len(drawn) < 40_000


def test_the_model_card_has_a_head_the_hub_reads(ran):
    from huggingface_hub import ModelCard

    project, record = ran
    text = (project / "out" / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    (entry,) = head["model-index"]
    figures = {metric["name"]: metric["value"] for metric in entry["results"][0]["metrics"]}
    assert figures["worst-group accuracy"] == round(record["slim"]["worst_group_accuracy"], 4)
    card = ModelCard(text)
    assert card.data.library_name == "bise-prune" and card.data.pipeline_tag == "image-classification"
    for words in (
        "## Intended use",
        "## Limits",
        "no legal advice",
        "learned only the spurious attribute",
        "slim.onnx",
    ):
        assert words in text
    assert all(f"| {group['name']}" in text for group in record["fairness"]["groups"])
    assert str(project) not in text and "{{" not in text and "None" not in text.replace("run(None", "")


def test_runs_side_by_side(ran, tmp_path, capsys):
    project, record = ran
    wide = write_project(tmp_path, widths=(64, 64))
    arguments = [wide / "net.pt", "--data", project / "data", "--criterion", "magnitude", "--targets", "0.3,0.5", *FAST]
    assert cli.main([str(a) for a in [*arguments, "--output", tmp_path / "frontier"]]) == 0
    assert Page((tmp_path / "frontier" / "frontier.html").read_text()).open == []
    capsys.readouterr()
    page = tmp_path / "page.html"
    assert cli.main(["compare", str(project / "out"), str(tmp_path / "frontier"), "--output", str(page), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [
        "net.pt, dense", "out", "net.pt, dense", "frontier/sparsity-0.3", "frontier/sparsity-0.5",
    ]  # fmt: skip
    assert rows[1]["unbiased_accuracy"]["value"] == record["slim"]["unbiased_accuracy"]
    for row in rows:
        better = [r for r in rows if r["flops"] <= row["flops"] and r is not row
                  and r["unbiased_accuracy"]["value"] >= row["unbiased_accuracy"]["value"]
                  and (r["flops"], r["unbiased_accuracy"]) != (row["flops"], row["unbiased_accuracy"])]  # fmt: skip
        assert row["on_front"] == (not better)
    found = Page(page.read_text())
    assert (
        found.open == [] and len(found.ids) == len(set(found.ids)) and "frontier/sparsity-0.5" in "".join(found.words)
    )
    assert cli.main(["compare", str(project / "out")]) == 0
    assert "net.pt, dense" in capsys.readouterr().out
    assert "exists already" in fails(capsys, "compare", project / "out", "--output", page, code=2)
    assert "holds neither a report.json nor a frontier.json" in fails(capsys, "compare", tmp_path, code=2)
    (tmp_path / "report.json").write_text("[]")
    assert "is no report with the figures to compare" in fails(capsys, "compare", tmp_path, code=2)
    (tmp_path / "report.json").write_text(json.dumps({**record, "schema_version": 9}))
    assert "is of report version 9, this is 1" in fails(capsys, "compare", tmp_path, code=2)
    (tmp_path / "out").mkdir()
    other = {**record, "sources": {**record["sources"], "data": "another"}, "sparsity": 0.9}
    (tmp_path / "out" / "report.json").write_text(json.dumps(other))
    assert cli.main(["compare", str(project / "out"), str(tmp_path / "out"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows][1::2] == [f"{project.name}/out", f"{tmp_path.name}/out"]
    assert [row["on_front"] for row in rows[:2]] == [row["on_front"] for row in rows[2:]]  # each among its own
    assert cli.main(["compare", str(project / "out"), str(tmp_path / "out")]) == 0
    assert "different data: compare with care" in capsys.readouterr().out


# -- loggers -----------------------------------------------------------------------------------------


def test_tensorboard_has_the_epochs_and_the_result(ran):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    project, record = ran
    events = EventAccumulator(str(project / "logs"))
    events.Reload()
    losses = events.Scalars("search/cross_entropy")
    assert [event.step for event in losses] == [epoch["epoch"] for epoch in record["history"]]
    assert losses[0].value == pytest.approx(record["history"][0]["cross_entropy"])
    assert events.Scalars("result/slim/unbiased_accuracy")[0].value == pytest.approx(
        record["slim"]["unbiased_accuracy"]
    )


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_other_loggers_get_the_same(name, monkeypatch):
    calls = []

    def noted(what, result=None):
        return lambda *a, **k: calls.append((what, a, k)) or result

    run = types.SimpleNamespace(log=noted("log"), finish=noted("finish"))
    double = types.SimpleNamespace(
        set_experiment=noted("set_experiment"), start_run=noted("start_run"), log_params=noted("log_params"),
        log_metrics=noted("log_metrics"), end_run=noted("end_run"), init=noted("init", run),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, name, double)
    monkeypatch.setattr("bise_prune.report.loggers.find_spec", lambda _: True)
    with pytest.raises(RuntimeError), Loggers([f"{name}:place"], {"seed": 0, "masks": None}) as loggers:
        loggers.log("search", 3, {"loss": 1.5, "validation": {"accuracy": 0.5}, "done": True, "name": "x"})
        raise RuntimeError  # the run is closed all the same
    names = [what for what, _, _ in calls]
    if name == "mlflow":
        assert names == ["set_experiment", "start_run", "log_params", "log_metrics", "end_run"]
        assert calls[2][1] == ({"seed": 0},) and calls[4][1] == ("FAILED",)
        assert calls[3][1] == ({"search/loss": 1.5, "search/validation/accuracy": 0.5}, 3)
    else:
        assert names == ["init", "log", "finish"] and calls[0][2]["project"] == "place"
        assert calls[1][1] == ({"search/loss": 1.5, "search/validation/accuracy": 0.5, "epoch": 3},)
        assert calls[2][2] == {"exit_code": 1}


def test_a_logger_that_does_not_open_closes_those_that_did(monkeypatch):
    def broken(**_):
        raise OSError("no API\nkey")

    ended = []
    first = types.SimpleNamespace(start_run=lambda: None, log_params=lambda _: None, end_run=ended.append)
    monkeypatch.setitem(sys.modules, "mlflow", first)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=broken))
    monkeypatch.setattr("bise_prune.report.loggers.find_spec", lambda _: True)
    with (
        pytest.raises(ConfigError, match="log = 'wandb' cannot be opened: no API key"),
        Loggers(("mlflow", "wandb"), {}),
    ):
        raise AssertionError("it was opened")
    assert ended == ["FAILED"]


# -- what stands in them -----------------------------------------------------------------------------


def test_a_card_says_what_was_done_and_means_what_it_says(ran, tmp_path):
    _, record = ran
    assert "before finetuning" not in (ran[0] / "out" / "README.md").read_text()
    tuned = {**record, "finetuning": {"epoch": 1, "history": [{}] * 3}, "identification": {"epochs": 3}}
    tuned["config"] = {**record["config"], "finetune": {"epochs": 2}, "identification_epochs": 3}
    tuned["data"] = {**record["data"], "classes": ["a|b", "<b>", "x\n[y](z)"]}
    write_card(tmp_path / "card.md", tuned)
    text = (tmp_path / "card.md").read_text()
    assert "then finetuned (epoch 1 of 2)" in text and "before finetuning, the slim network equals" in text
    assert "by a model trained for 3 epochs" in text
    assert r"a\|b, \<b\>, x \[y\](z)" in text


def test_a_command_is_told_without_its_folders(monkeypatch):
    argv = ["/usr/bin/bise-prune", "/home/me/net.pt", "--data=/home/me/birds", "--data", "biased_mnist:/m,rho=0.9"]
    monkeypatch.setattr(sys, "argv", [*argv, "--text-column", "the text"])
    assert command_line() == ("bise-prune net.pt --data=birds --data biased_mnist:m,rho=0.9 --text-column 'the text'")


def test_files_of_the_users_own_are_never_written_over(project, tmp_path, capsys):
    for name in ("README.md", "report.html"):
        (tmp_path / name).write_text("mine")
        line = fails(capsys, project / "net.pt", "--data", project / "data", "--output", tmp_path, code=2)
        assert f"holds results already ({name})" in line
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()


def test_pseudo_labels_of_the_split_that_is_reported_are_its_own_measure(project, tmp_path, capsys):
    rows = (project / "data" / "metadata.csv").read_text().replace(",test,", ",train,")
    shutil.copytree(project / "data", tmp_path / "data")
    (tmp_path / "data" / "metadata.csv").write_text(rows)
    arguments = [project / "net.pt", "--data", tmp_path / "data", "--output", tmp_path / "out", *FAST, "--unsupervised"]
    assert cli.main([str(a) for a in [*arguments, "--json"]]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["evaluated_on"] == "val"
    (bias,) = record["fairness"]["slim"]["biases"]
    pseudo = {group["name"]: group["n"] for group in record["fairness"]["groups"]}
    assert bias["n_aligned"] == sum(n for name, n in pseudo.items() if name[2] == name[-1])

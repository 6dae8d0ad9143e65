"""The command line as a user meets it: one line per mistake, whole results otherwise."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from cases import biased_data
from PIL import Image
from test_data import write_folder

from bise_prune import load_model
from bise_prune.app import cli
from bise_prune.checkpoint import Checkpoint, save_checkpoint
from bise_prune.data import BatchLoader
from bise_prune.models import build_model
from bise_prune.tuning.vanilla import train_vanilla

ARCHITECTURE = {"kernel_size": 3, "widths": [6, 8], "strides": [2, 1]}
FAST = ["--anneal-every", "1", "--head-epochs", "2", "--batch-size", "20", "--device", "cpu"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with images whose tint predicts their class, and a network trained on them."""
    return write_project(tmp_path_factory.mktemp("project"))


def write_project(root, widths=(6, 8)):
    architecture = {**ARCHITECTURE, "widths": list(widths)}
    data = biased_data(n=180, rho=0.8)
    pixels = (data.inputs * 20 + 90).clamp(0, 255).to(torch.uint8)
    rows = []
    (root / "data").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / "data" / f"{i}.png")
        rows.append((int(data.target[i]), int(data.bias[i, 0]), ("train", "train", "val", "test")[i % 4], f"{i}.png"))
    write_folder(root / "data", rows)
    torch.manual_seed(0)
    model = build_model("simple_convnet", 3, architecture)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    inputs = (pixels.float() / 255 - 0.5) / 0.25
    train_vanilla(model, BatchLoader(type(data)(inputs, data.target, data.bias), 30), optimizer, epochs=4)
    about = Checkpoint(
        model.state_dict(), arch="simple_convnet", num_classes=3, arguments=architecture,
        preprocessing={"mean": [0.5] * 3, "std": [0.25] * 3},
    )  # fmt: skip
    save_checkpoint(root / "net.pt", about)
    return root


@pytest.fixture(scope="module")
def done(project):
    """The project after one run."""
    arguments = [project / "net.pt", "--data", project / "data", "--output", project / "out", *FAST]
    command = [sys.executable, "-m", "bise_prune", *map(str, arguments), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return project, result


def fails(capsys, *arguments, code=1):
    """Run the command; the one line it ends with."""
    assert cli.main([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("bise-prune: error: ")]
    assert "Traceback" not in captured.err and captured.out == ""
    return line


def test_one_command_leaves_a_verified_slim_model(done):
    project, result = done
    out = project / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "config.toml", "masks.safetensors", "plan.json", "report.html", "report.json", "slim.onnx",
        "slim.pt2", "slim.safetensors",
    ]  # fmt: skip
    record = json.loads((out / "report.json").read_text())
    assert json.loads(result.stdout) == record
    assert record["schema_version"] == 1
    for name in ("dense", "slim"):
        keys = {
            "params",
            "flops",
            "size_bytes",
            "latency_ms",
            "accuracy",
            "unbiased_accuracy",
            "worst_group_accuracy",
            "groups",
        }
        assert keys <= set(record[name])
        assert sum(group["n"] for group in record[name]["groups"]) == record[name]["n"] == 45
    assert {"sparsity", "selection", "verification", "config", "environment", "timings"} <= set(record)
    assert record["sparsity"] == 1 - record["slim"]["params"] / record["dense"]["params"]
    assert all(check["passed"] for check in record["verification"].values())
    assert set(record["history"][0]["validation"]) == {
        "n", "accuracy", "unbiased_accuracy", "worst_group_accuracy", "aligned_accuracy", "conflicting_accuracy",
    }  # fmt: skip
    assert len(record["history"]) == 9 and record["selection"]["stopped_early"]  # of ten epochs
    assert {"best", "last", "epoch", "rule"} <= set(record["selection"])
    assert str(project) not in json.dumps(record)
    assert "the epoch was selected on validation subgroups of as few as 1 samples" in record["warnings"]


def test_the_slim_files_agree(done):
    project, _ = done
    slim, checkpoint = load_model(project / "out" / "slim.safetensors")
    session = onnxruntime.InferenceSession(project / "out" / "slim.onnx", providers=["CPUExecutionProvider"])
    inputs = torch.randn(7, 3, 8, 8)
    (logits,) = session.run(None, {"input": inputs.numpy()})
    assert np.allclose(logits, slim(inputs).detach().numpy(), atol=1e-4)
    record = json.loads((project / "out" / "report.json").read_text())
    assert sum(parameter.numel() for parameter in slim.parameters()) == record["slim"]["params"]
    assert checkpoint.preprocessing["mean"] == [0.5] * 3 and checkpoint.preprocessing["size"] == [8, 8]
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["source_sha256"] == load_model(project / "net.pt")[1].sha256
    assert json.loads(metadata["preprocessing"]) == checkpoint.preprocessing
    assert json.loads(metadata["classes"]) == ["0", "1", "2"]


def test_preprocessing_is_given_known_or_assumed(project, tmp_path, capsys):
    state = load_model(project / "net.pt")[0].state_dict()
    torch.save(state, tmp_path / "bare.pt")
    arch = f"simple_convnet(kernel_size=3,widths={ARCHITECTURE['widths']},strides={ARCHITECTURE['strides']})"
    common = [tmp_path / "bare.pt", "--data", project / "data", "--arch", arch, *FAST, "--json"]

    def report(name, *more):
        assert cli.main([str(argument) for argument in (*common, "--output", tmp_path / name, *more)]) == 0
        return json.loads(capsys.readouterr().out)

    assumed = report("assumed")
    assert any("mean 0.485, 0.456, 0.406 and std 0.229" in warning for warning in assumed["warnings"])
    given = report("given", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--size", "16")
    assert not any("normalised" in warning for warning in given["warnings"])
    about = load_model(tmp_path / "given" / "slim.safetensors")[1]
    assert (about.preprocessing["mean"], about.preprocessing["size"]) == ([0.5] * 3, [16, 16])
    for flags, message in (
        (["--mean", "0.5"], "belong together"),
        (["--mean", "0.5,x", "--std", "1"], "is no list of numbers"),
        (["--mean", "0.5,0.5,0.5", "--std", "0,1,1"], "std"),
        (["--size", "0"], "size"),
        (["--size", "a"], "is no size such as 224"),
    ):
        assert message in fails(capsys, *common[:-1], "--output", tmp_path / "none", *flags, code=2)


def test_a_dry_run_tells_what_was_understood_and_writes_nothing(project, tmp_path, capsys):
    common = [project / "net.pt", "--data", project / "data", "--output", tmp_path / "none", "--dry-run", *FAST]
    before = sorted(path.name for path in project.iterdir())
    assert cli.main([str(argument) for argument in (*common, "--json")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["data"]["samples"] == {"train": 90, "val": 45, "test": 45}
    (bias,) = record["biases"]
    counts, weights = torch.tensor(bias["counts"]), torch.tensor(bias["mean_weights"])
    assert int(counts.sum()) == 90 and bias["aligned"] == [0, 1, 2]
    assert bias["num_conflicting"] == 90 - int(counts.diagonal().sum())
    assert torch.allclose(weights, 90 / (9 * counts.clamp(min=1).double()).float(), atol=1e-5)  # B.8
    assert [gate["channels"] for gate in record["gates"]] == ARCHITECTURE["widths"]
    assert record["estimate"]["epochs"] == 10 and 0 < record["estimate"]["seconds"] < 60
    assert cli.main([str(argument) for argument in common]) == 0
    shown = capsys.readouterr().out
    assert "What was understood" in shown and "2 masks over 14 channels" in shown and "b = 2" in shown
    assert not (tmp_path / "none").exists() and sorted(path.name for path in project.iterdir()) == before
    torch.save({"a": 1}, tmp_path / "bad.pt")
    assert "holds no state dict" in fails(capsys, tmp_path / "bad.pt", "--dry-run", "--data", project / "data")


def test_saved_masks_are_pruned_again_without_a_search(done, tmp_path, capsys):
    project, _ = done
    masks = project / "out" / "masks.safetensors"
    arguments = [project / "net.pt", "--data", project / "data", "--masks", masks, "--device", "cpu"]
    assert cli.main([str(a) for a in [*arguments, "--output", tmp_path / "again", "--json"]]) == 0
    again = json.loads(capsys.readouterr().out)
    first = json.loads((project / "out" / "report.json").read_text())
    assert (again["sparsity"], again["slim"]["groups"]) == (first["sparsity"], first["slim"]["groups"])
    assert again["selection"] == {"rule": "given masks"} and "search" not in again["timings"]
    assert again["config"]["search"] is None  # nothing was searched


def test_masks_prune_to_a_share_of_the_parameters(done, tmp_path, capsys):
    project, _ = done
    masks = project / "out" / "masks.safetensors"
    arguments = [project / "net.pt", "--data", project / "data", "--masks", masks, "--device", "cpu"]
    # With 14 channels few shares can be met; the message names the nearest that can.
    line = fails(capsys, *arguments, "--output", tmp_path / "none", "--target-sparsity", "0.27")
    reachable = re.search(r"the nearest reachable is (0\.\d+)", line).group(1)
    assert not (tmp_path / "none").exists()
    assert cli.main([str(a) for a in [*arguments, "--output", tmp_path / "some", "--target-sparsity", reachable]]) == 0
    record = json.loads((tmp_path / "some" / "report.json").read_text())
    assert record["sparsity"] == pytest.approx(float(reachable), abs=1e-4)
    assert "unbiased accuracy" in capsys.readouterr().out


def test_results_are_not_overwritten(done, capsys):
    project, _ = done
    line = fails(capsys, project / "net.pt", "--data", project / "data", "--output", project / "out", code=2)
    assert "holds results already" in line


def test_an_interrupted_run_is_resumed(project, tmp_path, capsys, monkeypatch):
    from bise_prune.app import pipeline

    search = pipeline.search

    def interrupted(*arguments, on_epoch, **options):
        def stop(record, total):
            on_epoch(record, total)
            if record.epoch == 4:
                raise KeyboardInterrupt

        return search(*arguments, on_epoch=stop, **options)

    command = [str(a) for a in (project / "net.pt", "--data", project / "data", "--output", tmp_path / "out", *FAST)]
    monkeypatch.setattr(pipeline, "search", interrupted)
    assert cli.main(command) == 130
    assert "takes the search up where it stopped" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == [pipeline.STATE_FILE]
    epochs = []

    def counting(*arguments, on_epoch, **options):
        return search(*arguments, on_epoch=lambda record, total: epochs.append(record.epoch), **options)

    monkeypatch.setattr(pipeline, "search", counting)
    assert cli.main(command) == 0
    assert epochs == [5, 6, 7, 8, 9]  # then no mask can move any more
    assert not (tmp_path / "out" / pipeline.STATE_FILE).exists()


def test_masks_survive_a_target_that_cannot_be_met(project, tmp_path, capsys, monkeypatch):
    from bise_prune.app import pipeline
    from bise_prune.errors import PruningError

    def unreachable(*arguments, **options):
        raise PruningError("the nearest reachable is 0.5")

    monkeypatch.setattr(pipeline, "prune", unreachable)
    out = tmp_path / "out"
    line = fails(capsys, project / "net.pt", "--data", project / "data", "--output", out, *FAST)
    assert f"the masks are kept; prune by them with --masks {out / 'masks.safetensors'}" in line
    assert sorted(path.name for path in out.glob("[!.]*")) == ["masks.safetensors", pipeline.STATE_FILE]


def test_the_literal_command_without_data(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    line = fails(capsys, "net.pt", "--target-sparsity", "auto", code=2)
    assert "no data to debias on" in line and "--data" in line and "e.g. bise-prune net.pt" in line
    assert not (project / "net-slim").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.pt"], 1, "no checkpoint at none.pt"),
        (["."], 1, "no checkpoint at ."),
        (["--demo", "--masks", "m"], 2, "--demo has settings of its own; it does not take --masks"),
        (["--demo", "--output", "/proc/nowhere"], 2, "cannot write to /proc/nowhere"),
        (["net.pt", "--seed", "17000000000000"], 2, "seed = 17000000000000 is out of range"),
        (["net.pt", "--data", "x" * 5000], 1, "no folder or file at"),
        ([], 2, "give either a checkpoint or --demo"),
        (["net.pt", "--demo"], 2, "give either a checkpoint or --demo"),
        (["net.pt", "--sparsity", "0.5"], 2, "unrecognized arguments: --sparsity 0.5"),
        (["net.pt", "--target-sparsity", "most"], 2, "neither 'auto' nor a number"),
        (["net.pt", "--target-sparsity", "1.5"], 2, "target_sparsity = 1.5 is out of range"),
        (["net.pt", "--anneal-every", "0"], 2, "anneal_every = 0 is out of range"),
        (["net.pt", "--data", "nowhere"], 1, "no folder or file at 'nowhere'"),
        (["net.pt", "--data", "data", "--device", "tpu"], 2, "device = 'tpu' is out of range"),
        (["net.pt", "--data", "data", "--arch", "resnet81"], 2, "did you mean resnet18"),
        (["net.pt", "--data", "data", "--arch", "resnet18"], 1, "do not fit 'resnet18'"),
        (["net.pt", "--data", "data", "--masks", "none"], 1, "no mask file at none"),
        (["net.pt", "--data", "data", "--target-sparsity", "0.995"], 1, "cannot be reached .* the most is 0."),
        (["net.pt", "--data", "data", "--output", "net.pt"], 2, "is a file; choose a folder"),
        (["data/0.png", "--data", "data"], 1, "is no checkpoint: neither safetensors nor"),
    ],
)
def test_mistakes_are_one_line(project, capsys, monkeypatch, arguments, code, message):
    monkeypatch.chdir(project)
    before = sorted(project.rglob("*"))
    assert re.search(message, fails(capsys, *arguments, code=code))
    assert sorted(project.rglob("*")) == before  # nothing half written


def edited(project, tmp_path, change):
    """A copy of the data folder with other rows."""
    folder = tmp_path / "data"
    shutil.copytree(project / "data", folder)
    lines = (folder / "metadata.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    (folder / "metadata.csv").write_text("\n".join([lines[0], *(",".join(change(row)) for row in rows)]) + "\n")
    return folder


def test_labels_beyond_the_models_classes(project, tmp_path, capsys):
    folder = edited(project, tmp_path, lambda row: ["7" if row[0] == "2" else row[0], *row[1:]])
    line = fails(capsys, project / "net.pt", "--data", folder, "--output", tmp_path / "out")
    assert "labels from 0 to 7, but the model has 3 classes" in line
    assert not (tmp_path / "out").exists()


def test_no_conflicting_sample(project, tmp_path, capsys):
    folder = edited(project, tmp_path, lambda row: [row[0], row[0], *row[2:]])
    line = fails(capsys, project / "net.pt", "--data", folder, "--output", tmp_path / "out")
    assert "no bias-conflicting sample among the 90" in line


def test_an_unreadable_image(project, tmp_path, capsys):
    folder = edited(project, tmp_path, lambda row: row)
    (folder / "17.png").write_bytes(b"broken")
    line = fails(capsys, project / "net.pt", "--data", folder, "--output", tmp_path / "out")
    assert "17.png is unreadable" in line
    assert not (tmp_path / "out").exists()


def test_a_pickle_that_wants_code(project, tmp_path, capsys):
    torch.save(build_model("mlp", 3), tmp_path / "m.pt")
    line = fails(capsys, tmp_path / "m.pt", "--data", project / "data", "--output", tmp_path / "out")
    assert "wants to run code (bise_prune.models.mlp.MLP" in line


def test_an_unwritable_output(project, capsys):
    line = fails(capsys, project / "net.pt", "--data", project / "data", "--output", "/proc/nowhere/out", code=2)
    assert "cannot write to /proc/nowhere/out" in line


def test_without_validation_or_test_splits_it_says_so(project, tmp_path, capsys):
    folder = edited(project, tmp_path, lambda row: [*row[:2], "train", *row[3:]])
    arguments = [project / "net.pt", "--data", folder, "--output", tmp_path / "out", *FAST]
    assert cli.main([str(a) for a in arguments]) == 0
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["evaluated_on"] == "train"
    assert record["selection"]["rule"] == "last epoch (no validation split)"
    assert any("no test split" in warning for warning in record["warnings"])
    out = capsys.readouterr().out
    assert "train set, n = 180" in out and "warning: no validation split" in out


@pytest.mark.slow
def test_the_demo_debiases_and_its_checkpoint_knows_its_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--demo", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["slim"]["unbiased_accuracy"] - record["dense"]["unbiased_accuracy"] > 0.1
    assert record["sparsity"] > 0.3
    shutil.copy("bise-demo/dense.pt", "resnet18.pt")
    # The literal command finds its data by itself; the search is spared by the demo's own masks.
    assert cli.main(["resnet18.pt", "--target-sparsity", "auto", "--masks", "bise-demo/slim/masks.safetensors"]) == 0
    again = json.loads((tmp_path / "resnet18-slim" / "report.json").read_text())
    assert again["slim"]["groups"] == record["slim"]["groups"]


def test_a_plan_is_carried_out_again(done, tmp_path, capsys):
    project, _ = done
    plan = project / "out" / "plan.json"
    arguments = [project / "net.pt", "--data", project / "data", "--plan", plan, "--device", "cpu"]
    assert cli.main([str(a) for a in [*arguments, "--output", tmp_path / "again", "--json"]]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["selection"] == {"rule": "given plan"}
    assert (tmp_path / "again" / "plan.json").read_bytes() == plan.read_bytes()
    first, second = (load_model(folder / "slim.safetensors")[0] for folder in (project / "out", tmp_path / "again"))
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())
    assert again["plan"]["fingerprint"] == json.loads(plan.read_text())["fingerprint"] != ""


def test_a_plan_of_another_checkpoint_is_refused(done, tmp_path, capsys):
    project, _ = done
    plan = json.loads((project / "out" / "plan.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(plan | {"fingerprint": "0" * 64}))
    (tmp_path / "broken.json").write_text(json.dumps(plan | {"sites": 3}))
    arguments = [project / "net.pt", "--data", project / "data", "--output", tmp_path / "none", "--plan"]
    assert "was made for other weights" in fails(capsys, *arguments, tmp_path / "other.json")
    assert "the plan is damaged" in fails(capsys, *arguments, tmp_path / "broken.json")
    assert "cannot read the plan" in fails(capsys, *arguments, tmp_path / "missing.json")
    line = fails(capsys, *arguments, project / "out" / "plan.json", "--target-flops", "0.5", code=2)
    assert "give no masks, target, joins or rounding beside it" in line
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--target-flops", "1.5"], "target_flops = 1.5"),
        (["--target-flops", "0.5", "--target-sparsity", "0.5"], "give one target"),
        (["--joins", "scatter"], "invalid choice: 'scatter'"),
        (["--round-to", "0"], "round_to = 0"),
        (["--round-to", "many"], "'many' is neither 'auto' nor an integer"),
        (["--round-fill", "best", "--round-to", "-4"], "round_to = -4"),
    ],
)
def test_wrong_targets_and_roundings_are_named(project, capsys, options, complaint):
    line = fails(capsys, project / "net.pt", "--data", project / "data", *options, code=2)
    assert complaint in line


def test_flops_joins_and_rounding_are_chosen_on_the_command_line(done, tmp_path, capsys):
    project, _ = done
    masks = project / "out" / "masks.safetensors"
    arguments = [project / "net.pt", "--data", project / "data", "--masks", masks, "--device", "cpu", "--json"]
    arguments += ["--target-flops", "0.6", "--joins", "expand", "--round-to", "2", "--round-fill", "best", "--no-fuse"]
    assert cli.main([str(a) for a in [*arguments, "--output", tmp_path / "slim"]]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["plan"]["rounding"]["multiple"] == 2 and record["plan"]["rounding"]["fill"] == "best"
    assert record["config"]["target_flops"] == 0.6 and not record["config"]["fuse"]
    assert record["slim"]["flops"] / record["dense"]["flops"] < 0.8
    assert all(layer["slim"] % 2 == 0 for layer in record["layers"])
    assert record["denormals_flushed"] == 0 and record["verification"]["program_against_slim"]["passed"]
    program = torch.export.load(tmp_path / "slim" / "slim.pt2")
    assert any("batch_norm" in str(node.target) for node in program.graph.nodes)
    logits = program.module()(torch.zeros(3, 3, 8, 8))
    session = onnxruntime.InferenceSession(tmp_path / "slim" / "slim.onnx", providers=["CPUExecutionProvider"])
    assert np.allclose(session.run(None, {"input": np.zeros((3, 3, 8, 8), np.float32)})[0], logits.detach(), atol=1e-5)

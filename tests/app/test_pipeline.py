"""Whole runs: what they leave behind, by masks, plans, targets, criteria and rules."""

import csv
import json
import re

import numpy as np
import onnxruntime
import pytest
import torch
from projects import FAST, GRADUAL, edited, fails, run

from bise_prune import MaskSet, load_model, load_slim
from bise_prune.app import cli


def test_one_command_leaves_a_verified_slim_model(done):
    project, printed = done
    out = project / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "config.toml", "masks.safetensors", "plan.json", "report.html", "report.json", "slim.onnx",
        "slim.pt2", "slim.safetensors",
    ]  # fmt: skip
    record = json.loads((out / "report.json").read_text())
    assert json.loads(printed) == record
    assert record["schema_version"] == 1
    for name in ("dense", "slim"):
        keys = {
            "params",
            "flops",
            "size_bytes",
            "latency_ms",
            "latency",
            "latency_ms_batch_1",
            "latency_batch_1",
            "accuracy",
            "unbiased_accuracy",
            "worst_group_accuracy",
            "groups",
        }
        assert keys <= set(record[name])
        assert sum(group["n"] for group in record[name]["groups"]) == record[name]["n"] == 45
        assert [record[name][key]["batch_size"] for key in ("latency_batch_1", "latency")] == [1, 16]
        for key in ("latency_batch_1", "latency"):
            latency = record[name][key]
            assert 0 < latency["p10_ms"] <= latency["median_ms"] <= latency["p90_ms"]
            assert latency["device"] == "cpu, onnxruntime"
    assert list(record["latency_ratio"]) == ["batch_1", "batch_16"] and record["widths"] == []
    assert all(0 < ratio["low"] <= ratio["median"] <= ratio["high"] for ratio in record["latency_ratio"].values())
    assert {"sparsity", "selection", "verification", "config", "environment", "timings"} <= set(record)
    assert record["sparsity"] == 1 - record["slim"]["params"] / record["dense"]["params"]
    assert all(check["passed"] for check in record["verification"].values())
    assert set(record["history"][0]["validation"]) == {
        "n", "accuracy", "unbiased_accuracy", "worst_group_accuracy", "aligned_accuracy", "conflicting_accuracy",
    }  # fmt: skip
    epochs = [epoch["epoch"] for epoch in record["history"]]
    assert epochs == list(range(1, len(epochs) + 1)) and len(epochs) <= 10
    assert record["selection"]["stopped_early"] == (len(epochs) < 10)
    assert {"best", "last", "epoch", "rule"} <= set(record["selection"])
    assert str(project) not in json.dumps(record)
    assert "the epoch was selected on validation subgroups of as few as 1 sample" in record["warnings"]


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


def test_saved_masks_are_pruned_again_without_a_search(done, tmp_path, capsys):
    project, _ = done
    masks = project / "out" / "masks.safetensors"
    arguments = [project / "net.pt", "--data", project / "data", "--masks", masks, "--device", "cpu", "--round-to", "1"]
    assert cli.main([str(a) for a in [*arguments, "--output", tmp_path / "again", "--json"]]) == 0
    again = json.loads(capsys.readouterr().out)
    first = json.loads((project / "out" / "report.json").read_text())
    assert (again["sparsity"], again["slim"]["groups"]) == (first["sparsity"], first["slim"]["groups"])
    assert again["selection"] == {"rule": "given masks"} and "search" not in again["timings"]
    assert again["config"]["search"] is None  # nothing was searched


def ranking(folder):
    """A file of masks that no search has made: which shares can be met is the same everywhere."""
    masks = MaskSet({"blocks.0.0": torch.linspace(-0.5, 1, 6), "blocks.1.0": torch.linspace(-0.7, 0.8, 8)})
    masks.save(folder / "masks.safetensors")
    return folder / "masks.safetensors"


def test_masks_prune_to_a_share_of_the_parameters(project, tmp_path, capsys):
    masks = ranking(tmp_path)
    arguments = [project / "net.pt", "--data", project / "data", "--masks", masks, "--device", "cpu", "--round-to", "1"]
    # With 14 channels few shares can be met: a near one is delivered, or the message names the nearest.
    assert cli.main([str(a) for a in [*arguments, "--output", tmp_path / "near", "--target-sparsity", "0.27"]]) == 0
    printed = capsys.readouterr().out
    assert "warning: the target (sparsity 27.0%) was not met: by whole channels it came to" in printed
    assert "unbiased accuracy" in printed
    record = json.loads((tmp_path / "near" / "report.json").read_text())
    assert 0.01 < abs(record["sparsity"] - 0.27) <= 0.05
    line = fails(capsys, *arguments, "--output", tmp_path / "none", "--target-sparsity", "0.99")
    assert re.search(r"the nearest reachable is 0\.\d+", line)
    assert not (tmp_path / "none").exists()


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


def test_flops_joins_and_rounding_are_chosen_on_the_command_line(project, tmp_path, capsys):
    masks = ranking(tmp_path)
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


def test_a_target_is_met_by_the_search_and_finetuned(wide, tmp_path):
    record = run(
        wide, tmp_path / "out", "--target-flops", "0.5", "--finetune", "2", "--finetune-lr", "0.01", "--sweep",
        "--probe",
    )  # fmt: skip
    left = record["slim"]["flops"] / record["dense"]["flops"]
    assert left == pytest.approx(0.5, abs=0.01)
    assert record["plan"]["target"]["asked"] == 0.5
    tuning = record["finetuning"]
    assert [epoch["epoch"] for epoch in tuning["history"]] == [0, 1, 2] and tuning["before"]["n"] == record["slim"]["n"]
    assert [point["zeta"] for point in record["curve"]][:2] == [0, 0.1] and record["curve"][0]["sparsity"] == 0
    assert record["bias_probe"]["trained_on"] == "val" and record["bias_probe"]["slim"]["n"] == 45
    assert record["aligned"]["by_class"] == {"0": [0], "1": [1], "2": [2]}
    assert record["history"][0]["cost"] is not None
    assert load_slim(tmp_path / "out" / "slim.safetensors")(torch.zeros(1, 3, 8, 8)).shape == (1, 3)


def test_a_target_of_the_papers_search_is_met_before_widths_are_rounded(wide, tmp_path):
    record = run(wide, tmp_path / "out", "--target-sparsity", "0.6", "--round-to", "8")
    assert record["sparsity"] > 0.45 and record["plan"]["rounding"]["multiple"] == 8
    assert record["plan"]["target"]["reached"] == record["sparsity"]
    told = any("was not met: with widths rounded up it came to" in warning for warning in record["warnings"])
    assert told == (abs(record["sparsity"] - 0.6) > 0.01)


@pytest.mark.parametrize("multiple", [4, 8])
def test_a_target_is_met_by_the_widths_that_are_delivered(wide, tmp_path, multiple):
    arguments = [wide / "net.pt", "--data", wide / "data", "--output", tmp_path / "out", *GRADUAL]
    arguments += ["--target-sparsity", "0.6", "--round-to", multiple]
    assert cli.main([str(argument) for argument in arguments]) == 0
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["plan"]["target"]["by"] == "search" and record["plan"]["rounding"]["multiple"] == multiple
    assert record["sparsity"] >= 0.59 and record["plan"]["target"]["reached"] == record["sparsity"]
    assert all(layer["slim"] % multiple == 0 for layer in record["layers"])
    told = any("was exceeded: the best masks came to" in warning for warning in record["warnings"])
    assert told == (record["sparsity"] > 0.61)


@pytest.mark.parametrize("criterion", ["random", "magnitude", "taylor"])
def test_other_criteria_rank_without_a_search(wide, tmp_path, criterion):
    record = run(wide, tmp_path / "out", "--criterion", criterion, "--target-flops", "0.8")
    assert criterion in record["selection"]["rule"] and record["history"] == [] and "load" in record["timings"]
    assert record["plan"]["target"]["layer_floor"] == 0.05


def test_selection_rules_and_batch_norms(project, tmp_path):
    record = run(project, tmp_path / "out", "--select", "worst-class", "--batchnorm", "statistics", "--mi-pool", "100")
    assert record["selection"]["name"] == "worst-class" and "no bias labels used" in record["selection"]["rule"]
    assert set(record["selection"]["epoch_by_rule"]) == {"last", "best", "worst-group", "accuracy", "worst-class"}
    assert MaskSet.load(tmp_path / "out" / "masks.safetensors").state
    assert record["verification"]["slim_against_masked"]["passed"]


def test_without_bias_labels_pseudo_labels_are_found_if_asked_for(project, tmp_path, capsys):
    for name in ("net.pt", "data"):
        (tmp_path / name).symlink_to(project / name)
    with (project / "data" / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in (project / "data").glob("*.png"):
        (bare / path.name).symlink_to(path)
    with (bare / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in rows[0] if name != "bias"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    command = [tmp_path / "net.pt", "--data", bare, "--output", tmp_path / "out", *FAST]
    line = fails(capsys, *command)
    assert "no bias labels (no column of bias labels among" in line and "--unsupervised" in line
    assert cli.main([str(a) for a in (*command, "--unsupervised", "--identification-epochs", "2")]) == 0
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    found = record["identification"]
    assert found["num_conflicting"] > 0 and found["precision"] is None and found["recall"] is None
    assert [group["name"] for group in record["slim"]["groups"]] == ["y=0", "y=1", "y=2"]
    assert any("pseudo labels" in warning for warning in record["warnings"])
    again = run(project, tmp_path / "known", "--unsupervised", "--identification-epochs", "2")
    assert 0 <= again["identification"]["precision"] <= 1 and again["slim"]["groups"][0]["name"] == "y=0 b=0"

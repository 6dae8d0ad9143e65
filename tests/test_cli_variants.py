"""The command line's variants: targets within the search, frontiers, finetuning, missing bias labels, texts, stops."""

import csv
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback

import pytest
import torch
from test_cli import FAST, fails, write_project

from bise_prune import MaskSet, load_model, load_slim
from bise_prune.app import cli, pipeline
from bise_prune.app import export_stage as delivery
from bise_prune.checkpoint import save_checkpoint
from bise_prune.errors import BiseError
from bise_prune.files import locked
from bise_prune.report.files import FRONTIER_FILE, STATE_FILE


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return write_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """With channels enough to meet a target within one point."""
    return write_project(tmp_path_factory.mktemp("wide"), widths=(64, 64))


def run(project, output, *extra):
    arguments = [project / "net.pt", "--data", project / "data", "--output", output, *FAST, *extra]
    assert cli.main([str(argument) for argument in arguments]) == 0
    report = output / "report.json"
    return json.loads(report.read_text()) if report.exists() else None


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


def test_a_rounded_target_is_met_before_it_is_rounded(wide, tmp_path):
    record = run(wide, tmp_path / "out", "--target-sparsity", "0.6", "--round-to", "8")
    assert record["sparsity"] > 0.45 and record["plan"]["rounding"]["multiple"] == 8


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


@pytest.mark.parametrize("criterion", ["random", "magnitude", "taylor"])
def test_other_criteria_rank_without_a_search(wide, tmp_path, criterion):
    record = run(wide, tmp_path / "out", "--criterion", criterion, "--target-flops", "0.5")
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


def test_settings_that_contradict_each_other_are_refused(project, tmp_path, capsys):
    for extra, message in (
        (["--targets", "0.3,x"], "no list of numbers"),
        (["--targets", "0.3", "--target-flops", "0.5"], "give one target"),
        (["--criterion", "random"], "criterion 'random' only ranks: give a target"),
        (["--select", "median"], "invalid choice: 'median'"),
        (["--resume"], "nothing to resume"),
        (["--finetune", "-1"], "finetuning epochs = -1"),
        (["--layer-floor", "1"], "layer_floor = 1.0"),
        (["--unsupervised", "--probe"], "--probe needs validation and test data with true bias labels"),
    ):
        line = fails(
            capsys, project / "net.pt", "--data", project / "data", "--output", tmp_path / "o", *FAST, *extra, code=2
        )
        assert message in line
    assert not (tmp_path / "o").exists()


# -- stops -------------------------------------------------------------------------------------------


def command(project, output, *extra):
    arguments = [project / "net.pt", "--data", project / "data", "--output", output, *FAST, "--anneal-every", "6"]
    return [sys.executable, "-m", "bise_prune", *map(str, arguments), "--no-early-stop", "--no-sweep", "--json", *extra]


@pytest.fixture(scope="module")
def undisturbed(project, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "out"
    done = subprocess.run(command(project, output), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_resumes_to_the_same_bits(project, tmp_path, undisturbed, number):
    output = tmp_path / "out"
    started = subprocess.Popen(command(project, output), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (output / STATE_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(random.Random(int(number)).random() * 0.3)
    started.send_signal(number)
    _, errors = started.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert started.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    left = {path.name for path in output.iterdir() if not path.name.startswith(".")}
    assert left <= {STATE_FILE, "masks.safetensors"}
    resumed = subprocess.run(command(project, output, "--resume"), capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    whole, again = (MaskSet.load(folder / "masks.safetensors") for folder in (undisturbed, output))
    assert all(torch.equal(whole.logits[name], again.logits[name]) for name in whole.logits)
    first, second = (json.loads((folder / "report.json").read_text()) for folder in (undisturbed, output))
    assert first["history"] == second["history"] and first["selection"] == second["selection"]
    assert first["slim"]["groups"] == second["slim"]["groups"]
    assert not (output / STATE_FILE).exists()


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_to_the_same_report(project, tmp_path, undisturbed):
    moments, log = random.Random(1), tmp_path / "log"
    assert cli.main(command(project, tmp_path / "first")[3:]) == 0  # copies of this process need not import anything
    began = time.monotonic()
    assert _forked(command(project, tmp_path / "timing")[3:], 600.0, log) == 0, log.read_text()
    duration = time.monotonic() - began
    whole = _lasting(json.loads((undisturbed / "report.json").read_text()))
    killed = 0
    for number in range(20):
        output = tmp_path / f"out-{number}"
        killed += _forked(command(project, output)[3:], moments.random() * duration, log) == -signal.SIGKILL
        for path in output.iterdir() if output.is_dir() else []:
            if path.suffix == ".json":
                json.loads(path.read_text())  # whole, whatever it is
        resume = ["--resume"] if (output / STATE_FILE).exists() else []
        if resume or not (output / "report.json").exists():
            assert cli.main([*command(project, output)[3:], *resume]) == 0
            assert not [path.name for path in output.iterdir() if path.name.startswith(".")]
        assert _lasting(json.loads((output / "report.json").read_text())) == whole
        mine, theirs = (MaskSet.load(folder / "masks.safetensors") for folder in (output, undisturbed))
        assert all(torch.equal(mine.logits[name], theirs.logits[name]) for name in theirs.logits)
    assert killed >= 10


def _forked(arguments, seconds, log):
    """Run the command in a copy of this process, which is killed after so many seconds; its exit code."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            with log.open("w", buffering=1) as file:
                sys.stdout = sys.stderr = file
                try:
                    code = cli.main(arguments)
                except BaseException:
                    traceback.print_exc(file=file)
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _lasting(record):
    """What of a report does not depend on the clock, or on where it was written."""
    record = json.loads(json.dumps(record))
    for key in ("timings", "environment", "command"):
        del record[key]
    for form in record["formats"]:
        del form["latency_ms"], form["latency"], form["latency_ratio"]
    for model in ("dense", "slim"):
        del record[model]["latency_ms"], record[model]["latency"]
    for key in ("output", "resume"):
        record["config"].pop(key, None)
    del record["plan"]["costs_ms"]
    return record


def test_a_run_that_failed_without_a_search_goes_on(wide, tmp_path, monkeypatch, capsys):
    extra = ["--criterion", "random", "--target-sparsity", "0.3"]
    out, export = tmp_path / "out", delivery.export_program

    def failing(*arguments, **options):
        raise BiseError("the power is out")

    monkeypatch.setattr(delivery, "export_program", failing)
    argv = ["net.pt", "--data", "data", "--output", out, *FAST, *extra]
    monkeypatch.chdir(wide)
    assert "the power is out" in fails(capsys, *argv)
    assert (out / "slim.onnx").exists() and not (out / "report.json").exists()
    monkeypatch.setattr(delivery, "export_program", export)
    assert run(wide, out, *extra)["slim"]["n"] == 45
    capsys.readouterr()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert "holds results already" in fails(capsys, *argv, code=2)


def test_a_frontier_is_of_one_checkpoint_and_one_data_set(wide, tmp_path, monkeypatch, capsys):
    out, one = tmp_path / "out", pipeline._one

    def once(session, config, start=None):
        if config.target_sparsity != 0.25:
            raise BiseError("the power is out")
        return one(session, config, start)

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


def test_two_runs_do_not_share_a_folder(project, tmp_path, capsys):
    with locked(tmp_path / "out"):
        line = fails(
            capsys, project / "net.pt", "--data", project / "data", "--output", tmp_path / "out", *FAST, code=2
        )
        assert "another run is writing to" in line
    assert not (tmp_path / "out").exists()


# -- texts -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("placement", ["tied", "paper"])
def test_a_text_classifier_from_its_folder(tmp_path, placement):
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "red", "blue", "car", "tree", "very"]
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, num_labels=2,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    generator = random.Random(0)
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "identity_any"])
        for i in range(240):
            label, aligned = i % 2, generator.random() < 0.8
            bias = label if aligned else 1 - label
            filler = [generator.choice(["car", "tree", "very"]) for _ in range(generator.randrange(1, 8))]
            writer.writerow([" ".join([("bad", "good")[label], ("red", "blue")[bias], *filler]), label, bias])
    arguments = [
        folder,
        "--data",
        tmp_path / "texts.csv",
        "--output",
        tmp_path / "out",
        *FAST,
        "--placement",
        placement,
    ]
    arguments += ["--half", "--int8", "--format-tolerance", "1", "--triton", tmp_path / "models"]
    assert cli.main([str(a) for a in arguments]) == 0
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert all(check["passed"] for check in record["verification"].values())
    assert [form["precision"] for form in record["formats"]] == ["float32", "float16", "int8"]
    assert all(sample["text"].split()[0] in ("good", "bad") for sample in record["changed_samples"])
    assert "logits,) = session.run(None, tokens)" in (tmp_path / "out" / "README.md").read_text()
    assert "TYPE_INT64" in (tmp_path / "models" / "bert" / "config.pbtxt").read_text()
    assert [group["name"] for group in record["slim"]["groups"]] == ["y=0 b=0", "y=0 b=1", "y=1 b=0", "y=1 b=1"]
    slim = load_slim(tmp_path / "out" / "slim.safetensors")
    tokens = torch.tensor([[2, 5, 7, 3]])
    assert slim(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits.shape == (1, 2)

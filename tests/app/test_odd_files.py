"""Files of any content that the command reads are one line, with what is wrong."""

import json
import shutil

import pytest
import torch
from projects import FAST, fails
from safetensors.torch import save_file

from bise_prune import MaskSet
from bise_prune.errors import ModelError, PruningError
from bise_prune.gates.masks import MASK_FORMAT, MASK_VERSION
from bise_prune.pruning.plan import PruningPlan

DEEP = 100_000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.toml", "a = " + "[" * DEEP),
        ("s.toml", "seed = " + "9" * 5000),
        ("s.toml", 'arch = "a\\u0000b"'),
        ("s.toml", 'output = "a\\u0000b"'),
        ("s.toml", "batch_size = 1000000000000000000000"),
        ("s.toml", "min_speedup = inf"),
        ("s.toml", "mask_lr = nan"),
        ("s.toml", "mi_weight = inf"),
        ("s.yaml", "[" * DEEP),
        ("s.yaml", "seed: " + "9" * 5000),
        ("s.yaml", "a: &a [*a]"),
        ("s.yaml", "- 1"),
        ("s.toml", "\x00"),
    ],
)
def test_settings(project, tmp_path, capsys, name, content):
    (tmp_path / name).write_text(content)
    line = fails(
        capsys, project / "net.pt", "--data", project / "data", "--output", tmp_path / "o", "--config", tmp_path / name,
        code=2,
    )  # fmt: skip
    assert len(line) < 2500 and not (tmp_path / "o").exists()


@pytest.mark.parametrize("sites", [None, "[", "[" * DEEP, '{"a": 1}', "[1]", "[[]]", '["gone"]', "3"])
def test_masks(tmp_path, sites):
    about = {"format": MASK_FORMAT, "version": MASK_VERSION} | ({} if sites is None else {"sites": sites})
    save_file({"a": torch.zeros(2)}, tmp_path / "m.safetensors", metadata=about)
    with pytest.raises(ModelError, match=r"m\.safetensors is (damaged|no readable)"):
        MaskSet.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("target",), {"of": "sparsity", "asked": "x", "reached": 0.5, "kind": "sparsity"}),
        (("target",), {"of": "sparsity", "asked": 0.5, "reached": 7, "kind": "sparsity"}),
        (("target",), {"of": "sparsity", "asked": 0.5, "reached": 0.5, "kind": "size"}),
        (("target",), 3),
        (("sites",), None),
        (("layers",), []),
    ],
)
def test_plans(done, tmp_path, place, value):
    about = json.loads((done[0] / "out" / "plan.json").read_text())
    about[place[0]] = value
    (tmp_path / "plan.json").write_text(json.dumps(about))
    with pytest.raises(PruningError, match=r"plan\.json: the plan is damaged"):
        PruningPlan.load(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text("[" * DEEP)
    with pytest.raises(PruningError, match=r"plan\.json is no JSON file"):
        PruningPlan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("content", ["", "[" * DEEP, "{}", '{"frontier": 3}', '{"frontier": [{"folder": 1}]}'])
def test_reports_to_compare(tmp_path, capsys, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text(content)
    assert "is no report with the figures to compare" in fails(capsys, "compare", tmp_path / "run", code=2)


def test_a_model_is_not_added_to_the_folder_of_another(project, tmp_path, capsys):
    pytest.importorskip("tritonclient")
    models, command = tmp_path / "models", [project / "net.pt", "--data", project / "data", "--output", tmp_path / "o"]
    (models / "other").mkdir(parents=True)
    (models / "other" / "config.pbtxt").write_text("")
    for folder in (models / "other", models / "other" / "1"):
        line = fails(capsys, *command, *FAST, "--triton", folder, code=2)
        assert "lies in the folder of a model" in line
    shutil.copy(project / "net.pt", tmp_path / "a b<c>.pt")
    line = fails(capsys, tmp_path / "a b<c>.pt", *command[1:], *FAST, "--triton", models, code=2)
    assert "'a b<c>' is no name for one: rename the checkpoint" in line


def test_parquet_files_with_odd_metadata(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    from bise_prune.data.huggingface import _class_names

    assert pyarrow is not None
    for content in (b"", b"\xff", b"[" * DEEP, b"[]", b'{"info": 3}', b'{"info": {"features": [1]}}',
                    b'{"info": {"features": {"a": {"names": 3}}}}'):  # fmt: skip
        assert _class_names(content) == {}
    assert _class_names(b'{"info": {"features": {"a": {"names": ["x", 1]}, "b": null}}}') == {"a": ["x", "1"]}

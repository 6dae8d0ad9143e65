"""Triton repositories as a run writes them."""

import numpy as np
import pytest
import torch
from cases import images, network
from google.protobuf import text_format
from projects import fails
from tritonclient.grpc import model_config_pb2

from bise_prune import export_onnx, load_model
from bise_prune.errors import ConfigError
from bise_prune.export.runtime import open_session
from bise_prune.export.triton import check_repository, write_repository


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


def test_a_repository_is_a_folder(tmp_path):
    (tmp_path / "models").write_text("x")
    with pytest.raises(ConfigError, match="models is a file; --triton takes a folder"):
        check_repository(tmp_path / "models", "net")

"""ONNX files compute the same, tell nothing of this machine, and are not left behind when wrong."""

import onnx
import onnxruntime
import pytest
import torch
from cases import images, network, random_masks, slow
from torch import nn

from bise_prune import export_onnx, fuse_batchnorm, prune
from bise_prune.errors import ConfigError, ModelError, VerificationError
from bise_prune.export.onnx_file import opset_of


def test_the_opset_is_what_was_asked_for(tmp_path):
    for opset in (20, 17, 16):
        export_onnx(network("resnet"), tmp_path / "a.onnx", images(), opset=opset)
        assert opset_of(onnx.load(tmp_path / "a.onnx")) == opset
    with pytest.raises(ConfigError, match=r"opset 8 cannot be written for this network: .* gives 18, and"):
        export_onnx(network("resnet"), tmp_path / "b.onnx", images(), opset=8)
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize(("name", "placement"), [("resnet", "paper"), *slow(("resnet", "tied"), ("separable", "tied"))])
def test_exported_models_compute_the_same(tmp_path, name, placement):
    model, inputs = network(name), images()
    slim = fuse_batchnorm(prune(model, random_masks(model, inputs, placement), inputs).model, inputs)
    path = tmp_path / "slim.onnx"
    verification = export_onnx(slim, path, inputs, metadata={"sparsity": "0.5"})
    assert verification.passed and verification.batch_sizes == (1, 2, 5)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["slim.onnx"]  # no external data
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert about["sparsity"] == "0.5" and set(about) == {"sparsity", "producer", "versions", "opset"}
    assert [value.name for value in session.get_inputs() + session.get_outputs()] == ["input", "logits"]
    batch = images(9, seed=3)
    (logits,) = session.run(None, {"input": batch.numpy()})
    assert torch.allclose(torch.from_numpy(logits), slim(batch), rtol=0, atol=1e-4)


def test_models_in_double_are_exported_in_single(tmp_path):
    assert export_onnx(network("mlp").double(), tmp_path / "m.onnx", images().double()).passed


def test_exported_files_hold_nothing_of_this_machine(tmp_path):
    export_onnx(network("resnet").train(), tmp_path / "m.onnx", images())
    content = (tmp_path / "m.onnx").read_bytes()
    assert not [
        word for word in (b".py", b"site-packages", b"stack_trace", b"/home", b"/tmp", b"cases") if word in content
    ]
    proto = onnx.load(tmp_path / "m.onnx")
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    assert not any(node.op_type == "BatchNormalization" for node in proto.graph.node)


def test_a_wrong_export_leaves_no_file(tmp_path, monkeypatch):
    from bise_prune.export import onnx_file as export

    exported = export._exported

    def spoilt(*arguments):
        proto = exported(*arguments)
        bias = next(i for i in proto.graph.initializer if list(i.dims) == [3])
        values = onnx.numpy_helper.to_array(bias) + 1
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return proto

    monkeypatch.setattr(export, "_exported", spoilt)
    with pytest.raises(VerificationError, match=r"onnxruntime does not compute what the model does \(m.onnx\)"):
        export_onnx(network("mlp"), tmp_path / "m.onnx", images())
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_said(tmp_path):
    class Unexportable(nn.Module):
        def forward(self, x):
            return x * 2 if float(x.sum()) > 0 else x

    with pytest.raises(ModelError, match="torch cannot export Unexportable to ONNX"):
        export_onnx(Unexportable(), tmp_path / "m.onnx", images())
    with pytest.raises(ConfigError, match="a tensor, a tuple of tensors or a mapping"):
        export_onnx(network("mlp"), tmp_path / "m.onnx", (images(), 3))
    assert not list(tmp_path.iterdir())

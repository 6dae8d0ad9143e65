import onnx
import onnxruntime
import pytest
import torch
from cases import biased_loader, images, network, random_masks
from torch import nn

from bise_prune import SearchConfig, export_onnx, fuse_batchnorm, measure, prune, search
from bise_prune.errors import ConfigError, ModelError, VerificationError
from bise_prune.metrics.cost import measure_latency
from bise_prune.models import build_model


@pytest.mark.parametrize(
    ("arch", "classes", "shape", "params", "flops"),
    [
        ("simple_convnet", 10, (3, 28, 28), 531_210, 415_370_752),
        ("mlp", 10, (3, 28, 28), 256_510, 256_200),
        ("resnet18", 2, (3, 224, 224), 11_177_538, 1_818_554_880),
        ("resnet18", 10, (3, 32, 32), 11_181_642, 37_118_464),
    ],
)
def test_golden_counts(arch, classes, shape, params, flops):
    figures = measure(build_model(arch, classes), torch.randn(2, *shape))
    assert (figures.params, figures.flops) == (params, flops)
    assert figures.latency is None


def test_flops_by_layer_of_the_papers_convnet():
    figures = measure(build_model("simple_convnet", 10), torch.randn(1, 3, 28, 28))
    layers = figures.flops_by_layer
    assert sum(layers[f"blocks.{i}.0"] for i in range(4)) == 414_892_800
    assert sum(layers[f"blocks.{i}.1"] for i in range(4)) == 376_320
    assert (layers["pool"], layers["head"]) == (100_352, 1_280)


def test_size_counts_parameters_and_buffers():
    assert (
        measure(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), torch.randn(2, 2)).size_bytes == 4 * (9 + 6 + 6) + 8
    )


def test_operators_that_are_not_counted_are_named():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.fft.rfft(x).abs()

    assert "aten::fft_rfft" in measure(Odd(), torch.randn(1, 8)).unsupported_operators


def test_measuring_keeps_mode_and_gradients():
    model = network("resnet").train()
    measure(model, images(), latency=True, runs=2)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_latency_of_several_models():
    first, second = measure_latency([network("mlp"), network("resnet")], images(3), runs=5)
    for latency in (first, second):
        assert 0 < latency.p10_ms <= latency.median_ms <= latency.p90_ms
        assert (latency.runs, latency.batch_size, latency.device) == (5, 3, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_missing_device_is_an_error():
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        measure_latency([network("mlp")], images(), device="cuda")


# -- ONNX -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "placement"), [("resnet", "tied"), ("resnet", "paper"), ("separable", "tied")])
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


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_search_and_the_timing_run_on_cuda():
    model, loader = network("resnet"), biased_loader()
    config = SearchConfig(anneal_every=1, min_temperature=0.4, head_epochs=2)
    found = search(model.cuda(), loader, config, loader)
    on_cpu = search(network("resnet"), loader, config, loader)
    assert found.history[0].closed == pytest.approx(on_cpu.history[0].closed, abs=3)
    result = prune(network("resnet"), found.last, images())
    latency = measure_latency([result.model], images(), runs=3, device="cuda")[0]
    assert latency.device == torch.cuda.get_device_name() and latency.median_ms > 0

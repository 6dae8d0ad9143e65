"""ONNX in half precision and int8."""

import copy

import numpy as np
import onnx
import torch
from cases import biased_data, images, network

from bise_prune import export_onnx
from bise_prune.data import BiasedDataset
from bise_prune.export.precision import balanced_rows, half_overflow, write_half, write_int8
from bise_prune.export.runtime import onnx_predictions, open_session


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

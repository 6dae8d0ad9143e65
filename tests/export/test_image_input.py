"""An image graph normalises by itself."""

import numpy as np
import torch
from cases import network

from bise_prune import export_onnx
from bise_prune.data import BatchLoader, BiasedDataset
from bise_prune.export.image_input import AsImages
from bise_prune.export.runtime import onnx_predictions, open_session


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

import functools

import pytest


@pytest.fixture(scope="session", autouse=True)
def _operators_are_listed_once():
    """For each ONNX file, torch lists what it can write, which takes as long as the rest; here it does so once."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield

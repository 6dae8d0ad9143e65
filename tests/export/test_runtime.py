"""onnxruntime's providers."""

import pytest
from cases import images, network

from bise_prune import export_onnx
from bise_prune.errors import ConfigError
from bise_prune.export.runtime import open_session


def test_a_provider_that_is_not_there_is_an_error(tmp_path):
    export_onnx(network("mlp"), tmp_path / "a.onnx", images())
    with pytest.raises(ConfigError, match=r"this onnxruntime has no NoSuchProvider, only .*CPUExecutionProvider"):
        open_session(tmp_path / "a.onnx", provider="NoSuchProvider")

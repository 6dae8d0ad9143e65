"""A torch program needs torch alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import images

from bise_prune import export_program
from bise_prune.errors import ModelError


@pytest.mark.slow
def test_its_program_needs_torch_alone_and_tells_nothing(rewired, tmp_path):
    slim, inputs = rewired
    check = export_program(slim, tmp_path / "slim.pt2", inputs)
    assert check.passed and check.batch_sizes == (1, 2, 5)
    content = (tmp_path / "slim.pt2").read_bytes()
    assert str(Path(__file__).parent.parent).encode() not in content and b"site-packages" not in content
    code = (
        "import sys, torch; program = torch.export.load(sys.argv[1]); "
        "assert program.example_inputs is None; print(program.module()(torch.randn(3, 3, 64, 64)).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "slim.pt2"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert "torch.Size([3, 7])" in done.stdout, done.stderr


def test_what_cannot_be_a_program_is_said(tmp_path):
    class Chooses(torch.nn.Module):
        def forward(self, x):
            return x * 2 if float(x.sum()) > 0 else x

    with pytest.raises(ModelError, match="torch cannot export Chooses: "):
        export_program(Chooses(), tmp_path / "m.pt2", images())
    assert not list(tmp_path.iterdir())

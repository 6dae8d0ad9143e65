import pytest
import torch
from tables import cases


@pytest.fixture(autouse=True)
def _small_numbers_afterwards():
    """Benchmarks let their whole process read denormal numbers as zero."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def untimed(monkeypatch):
    """Exports take longer than all the rest."""
    monkeypatch.setattr(cases.Case, "latency", lambda self, model: {})

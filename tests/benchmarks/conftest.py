import pytest
from tables import cases


@pytest.fixture
def untimed(monkeypatch):
    """Exports take longer than all the rest."""
    monkeypatch.setattr(cases.Case, "latency", lambda self, model: {})

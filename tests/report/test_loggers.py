"""Loggers get the epochs and the result, and are closed."""

import sys
import types

import pytest

from bise_prune.errors import ConfigError
from bise_prune.report.loggers import Loggers


def test_tensorboard_has_the_epochs_and_the_result(ran):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    project, record = ran
    events = EventAccumulator(str(project / "logs"))
    events.Reload()
    losses = events.Scalars("search/cross_entropy")
    assert [event.step for event in losses] == [epoch["epoch"] for epoch in record["history"]]
    assert losses[0].value == pytest.approx(record["history"][0]["cross_entropy"])
    assert events.Scalars("result/slim/unbiased_accuracy")[0].value == pytest.approx(
        record["slim"]["unbiased_accuracy"]
    )


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_other_loggers_get_the_same(name, monkeypatch):
    calls = []

    def noted(what, result=None):
        return lambda *a, **k: calls.append((what, a, k)) or result

    run = types.SimpleNamespace(log=noted("log"), finish=noted("finish"))
    double = types.SimpleNamespace(
        set_experiment=noted("set_experiment"), start_run=noted("start_run"), log_params=noted("log_params"),
        log_metrics=noted("log_metrics"), end_run=noted("end_run"), init=noted("init", run),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, name, double)
    monkeypatch.setattr("bise_prune.report.loggers.find_spec", lambda _: True)
    with pytest.raises(RuntimeError), Loggers([f"{name}:place"], {"seed": 0, "masks": None}) as loggers:
        loggers.log("search", 3, {"loss": 1.5, "validation": {"accuracy": 0.5}, "done": True, "name": "x"})
        raise RuntimeError  # the run is closed all the same
    names = [what for what, _, _ in calls]
    if name == "mlflow":
        assert names == ["set_experiment", "start_run", "log_params", "log_metrics", "end_run"]
        assert calls[2][1] == ({"seed": 0},) and calls[4][1] == ("FAILED",)
        assert calls[3][1] == ({"search/loss": 1.5, "search/validation/accuracy": 0.5}, 3)
    else:
        assert names == ["init", "log", "finish"] and calls[0][2]["project"] == "place"
        assert calls[1][1] == ({"search/loss": 1.5, "search/validation/accuracy": 0.5, "epoch": 3},)
        assert calls[2][2] == {"exit_code": 1}


def test_a_logger_that_does_not_open_closes_those_that_did(monkeypatch):
    def broken(**_):
        raise OSError("no API\nkey")

    ended = []
    first = types.SimpleNamespace(start_run=lambda: None, log_params=lambda _: None, end_run=ended.append)
    monkeypatch.setitem(sys.modules, "mlflow", first)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=broken))
    monkeypatch.setattr("bise_prune.report.loggers.find_spec", lambda _: True)
    with (
        pytest.raises(ConfigError, match="log = 'wandb' cannot be opened: no API key"),
        Loggers(("mlflow", "wandb"), {}),
    ):
        raise AssertionError("it was opened")
    assert ended == ["FAILED"]

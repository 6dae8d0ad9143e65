"""Loggers that send the figures of a run to TensorBoard, MLflow or Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol, Self

from ..errors import ConfigError

LOGGERS = ("tensorboard", "mlflow", "wandb")


class Logger(Protocol):
    """An open run in one of these services."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send the figures of an epoch."""
        ...

    def close(self, failed: bool) -> None:
        """End the run in the service, as failed or as finished."""
        ...


class Loggers:
    """Any number of loggers as one; used as a context, in which they are open.

    Args:
        specifications: ``NAME`` or ``NAME:PLACE`` of each logger, where the place is a folder for "tensorboard", an
            experiment for "mlflow" and a project for "wandb".
        settings: settings of the run, logged beside its figures; those in a nested mapping are logged by their own
            name.

    Raises:
        ConfigError: a name is unknown, a package is missing, or a logger cannot be opened.
    """

    def __init__(self, specifications: Sequence[str], settings: Mapping[str, Any]) -> None:
        check_loggers(specifications)
        self._specifications = specifications
        nested = {key: value for part in settings.values() if isinstance(part, Mapping) for key, value in part.items()}
        plain = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
        self._settings = {key: value for key, value in {**plain, **nested}.items() if value is not None}
        self._open: list[Logger] = []

    def __enter__(self) -> Self:
        for specification in self._specifications:
            name, _, place = specification.partition(":")
            try:
                self._open.append(_KINDS[name](place, self._settings))
            except Exception as error:  # other packages' errors have no base class in common
                self.__exit__(type(error))
                raise ConfigError(
                    f"log = '{specification}' cannot be opened: {' '.join(str(error).split())}"
                ) from error
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *details: Any) -> None:
        while self._open:
            self._open.pop().close(kind is not None)

    def log(self, stage: str, step: int, figures: Mapping[str, Any]) -> None:
        """Send the numbers among the figures, named like ``search/cross_entropy``; nested mappings lengthen the name.

        Args:
            stage: stage of the run, the first part of each name.
            step: number of the epoch.
            figures: figures by name; values that are not numbers are left out.
        """
        flat = dict(_flat(stage, figures))
        for logger in self._open:
            logger.log(flat, step)


def check_loggers(specifications: Sequence[str]) -> None:
    """Check that loggers can be opened.

    Args:
        specifications: ``NAME`` or ``NAME:PLACE`` of each logger.

    Raises:
        ConfigError: a name is unknown, or a package is missing.
    """
    for specification in specifications:
        name = specification.partition(":")[0]
        if name not in LOGGERS:
            raise ConfigError(f"log = '{specification}': expected one of {', '.join(LOGGERS)}, perhaps with :PLACE")
        if find_spec(name) is None:
            raise ConfigError(f"logging to {name} needs a package that is not installed: pip install {name}")


class _TensorBoard:
    """Figures as scalars of TensorBoard."""

    def __init__(self, place: str, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(place or None)
        self.writer.add_text("settings", "\n".join(f"    {name} = {value}" for name, value in settings.items()))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self.writer.close()


class _MLflow:
    """Figures as metrics of an MLflow run."""

    def __init__(self, place: str, settings: Mapping[str, Any]) -> None:
        import mlflow

        self.module = mlflow
        if place:
            mlflow.set_experiment(place)
        mlflow.start_run()
        mlflow.log_params(dict(settings))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self.module.log_metrics(dict(figures), step)

    def close(self, failed: bool) -> None:
        self.module.end_run("FAILED" if failed else "FINISHED")


class _WandB:
    """Figures as a run of Weights & Biases."""

    def __init__(self, place: str, settings: Mapping[str, Any]) -> None:
        import wandb

        self.run = wandb.init(project=place or "bise-prune", config=dict(settings))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self.run.log({**figures, "epoch": step})  # wandb's own steps must grow; ours restart per stage

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


_KINDS: dict[str, Any] = {"tensorboard": _TensorBoard, "mlflow": _MLflow, "wandb": _WandB}


def _flat(prefix: str, figures: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Numbers with their full name, such as ``search/cross_entropy``."""
    found = []
    for name, value in figures.items():
        if isinstance(value, Mapping):
            found += _flat(f"{prefix}/{name}", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append((f"{prefix}/{name}", float(value)))
    return found

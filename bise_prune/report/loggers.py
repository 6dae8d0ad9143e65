"""Epochs and results to TensorBoard, MLflow or Weights & Biases, for those who watch their runs there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol, Self

from ..errors import ConfigError

LOGGERS = ("tensorboard", "mlflow", "wandb")


class Logger(Protocol):
    """Where figures go."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Take the figures of an epoch."""
        ...

    def close(self, failed: bool) -> None:
        """End the run there."""
        ...


class Loggers:
    """Several loggers, or none, as one; a context in which they are open.

    Args:
        specifications: ``NAME`` or ``NAME:PLACE``: a folder for "tensorboard", an experiment for "mlflow", a project
            for "wandb".
        settings: of the run, which are kept beside its figures; nested ones likewise.

    Raises:
        ConfigError: a name is unknown, a package is missing, or a logger does not open.
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
            except Exception as error:  # of other people's packages, which have no base class in common
                self.__exit__(type(error))
                raise ConfigError(
                    f"log = '{specification}' cannot be opened: {' '.join(str(error).split())}"
                ) from error
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *details: Any) -> None:
        while self._open:
            self._open.pop().close(kind is not None)

    def log(self, stage: str, step: int, figures: Mapping[str, Any]) -> None:
        """Send the numbers among some figures, by names such as ``search/cross_entropy``; nested ones likewise."""
        flat = dict(_flat(stage, figures))
        for logger in self._open:
            logger.log(flat, step)


def check_loggers(specifications: Sequence[str]) -> None:
    """Whether loggers of these names can be opened.

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
    def __init__(self, place: str, settings: Mapping[str, Any]) -> None:
        import wandb

        self.run = wandb.init(project=place or "bise-prune", config=dict(settings))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self.run.log({**figures, "epoch": step})  # stages count from one each, its own steps only upwards

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


_KINDS: dict[str, Any] = {"tensorboard": _TensorBoard, "mlflow": _MLflow, "wandb": _WandB}


def _flat(prefix: str, figures: Mapping[str, Any]) -> list[tuple[str, float]]:
    found = []
    for name, value in figures.items():
        if isinstance(value, Mapping):
            found += _flat(f"{prefix}/{name}", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append((f"{prefix}/{name}", float(value)))
    return found

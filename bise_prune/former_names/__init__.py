"""Module names of version 0.1.0: importing one still works until version 0.3, with a warning that names its new place.

For example, ``from bise_prune.criteria import random_masks`` works, but ``bise_prune.baselines.random_scores`` is the
new place.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PACKAGE = __name__.partition(".")[0]

# Former module -> modules that hold its names now.
HOMES = {
    "artifacts": ("gates.masks", "pruning.plan", "pruning.verification", "metrics.cost"),
    "cli": ("app.cli",),
    "criteria": ("baselines.random_scores", "baselines.magnitude", "baselines.taylor"),
    "demo": ("app.demo",),
    "evaluation": ("metrics.accuracy",),
    "fairness": ("metrics.fairness",),
    "ffw": ("baselines.ffw",),
    "finetuning": ("tuning.finetuning",),
    "findings": ("report.warnings", "report.record", "report.quality_gates"),
    "formats": ("export.precision", "export.image_input", "export.runtime"),
    "graph": ("torch_pruning.graph",),
    "identification": ("tuning.pseudo_labels",),
    "importance": ("torch_pruning.importance", "gates.ranking"),
    "loggers": ("report.loggers",),
    "mask_search.cost": ("mask_search.gate_cost",),
    "measurement": ("metrics.cost",),
    "normalisation": ("channels.norms",),
    "pages": ("report.page", "report.card", "report.comparison"),
    "pages.comparison": ("report.comparison",),
    "pages.page": ("report.page", "report.card"),
    "pages.plots": ("report.plots",),
    "pipeline": ("app.pipeline",),
    "preview": ("app.dry_run",),
    "probe": ("diagnostics.probe",),
    "pruning.torch_pruning": ("torch_pruning.engine",),
    "rewiring": ("channels.edited_model",),
    "settings": ("app.settings",),
    "slim": ("checkpoint.networks",),
    "subgroups": ("metrics.subgroups",),
    "sweep": ("diagnostics.sweep",),
    "training": ("tuning.vanilla",),
    "triton": ("export.triton",),
    "verification": ("pruning.verification",),
}
# (former module, former name) -> new name.
_RENAMED = {("preview", "preview"): "dry_run", ("preview", "preview_tables"): "dry_run_tables"}


class _FormerModules:
    """Finds modules that have moved; Python asks it only if no module of that name exists."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != _PACKAGE or name not in HOMES:
            return None
        is_package = any(other.startswith(f"{name}.") for other in HOMES)
        return ModuleSpec(fullname, self, is_package=is_package)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        return None  # Python then makes an empty module

    def exec_module(self, module: ModuleType) -> None:
        former = module.__name__.partition(".")[2]
        homes = HOMES[former]
        now = ", ".join(f"{_PACKAGE}.{home}" for home in homes)
        warnings.warn(
            f"{module.__name__} has moved to {now}; the former name goes with version 0.3",
            DeprecationWarning,
            stacklevel=2,
        )

        def lookup(name: str) -> Any:
            """The object of that name in one of the modules that hold the former module's names now."""
            if name == "__all__":  # what a star imports
                held = [vars(import_module(f"{_PACKAGE}.{home}")) for home in homes]
                return sorted({
                    public for names in held for public, value in names.items()
                    if not public.startswith("_") and not isinstance(value, ModuleType)
                })  # fmt: skip
            for home in homes:
                found, now_called = import_module(f"{_PACKAGE}.{home}"), _RENAMED.get((former, name), name)
                if hasattr(found, now_called):
                    return getattr(found, now_called)
            raise AttributeError(f"module '{module.__name__}' has no attribute '{name}'; it has moved to {now}")

        vars(module)["__getattr__"] = lookup


def install() -> None:
    """Make former module names importable; calling it again has no effect."""
    if not any(isinstance(finder, _FormerModules) for finder in sys.meta_path):
        sys.meta_path.append(_FormerModules())

"""BISE: turn a biased classifier into a smaller, less biased one without retraining it, ready for an inference server.

This module holds the package's public names. They are imported on first use, so that ``bise-prune --help`` does not
wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import former_names
from .version import __version__

if TYPE_CHECKING:
    from .app.pipeline import run
    from .checkpoint.networks import load_model, load_slim, save_slim
    from .config import Budget, FinetuneConfig, RunConfig, SearchConfig
    from .errors import BiseError
    from .export.onnx_file import export_onnx
    from .export.program import export_program
    from .gates.gated_model import apply_masks
    from .gates.masks import GateSite, MaskSet
    from .gates.sites import gate_sites
    from .mask_search import SearchResult, search
    from .metrics.accuracy import evaluate
    from .metrics.cost import Latency, Measurement, measure
    from .pruning import PruningResult, fuse_batchnorm, prune
    from .pruning.plan import PruningPlan
    from .pruning.verification import Verification, verify
    from .torch_pruning.importance import BISEImportance
    from .tuning.finetuning import finetune

former_names.install()

_HOMES = {
    "app.pipeline": ("run",),
    "checkpoint.networks": ("load_model", "load_slim", "save_slim"),
    "config": ("Budget", "FinetuneConfig", "RunConfig", "SearchConfig"),
    "errors": ("BiseError",),
    "export.onnx_file": ("export_onnx",),
    "export.program": ("export_program",),
    "gates.gated_model": ("apply_masks",),
    "gates.masks": ("GateSite", "MaskSet"),
    "gates.sites": ("gate_sites",),
    "mask_search": ("SearchResult", "search"),
    "metrics.accuracy": ("evaluate",),
    "metrics.cost": ("Latency", "Measurement", "measure"),
    "pruning": ("PruningResult", "fuse_batchnorm", "prune"),
    "pruning.plan": ("PruningPlan",),
    "pruning.verification": ("Verification", "verify"),
    "torch_pruning.importance": ("BISEImportance",),
    "tuning.finetuning": ("finetune",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BISEImportance",
    "BiseError",
    "Budget",
    "FinetuneConfig",
    "GateSite",
    "Latency",
    "MaskSet",
    "Measurement",
    "PruningPlan",
    "PruningResult",
    "RunConfig",
    "SearchConfig",
    "SearchResult",
    "Verification",
    "__version__",
    "apply_masks",
    "evaluate",
    "export_onnx",
    "export_program",
    "finetune",
    "fuse_batchnorm",
    "gate_sites",
    "load_model",
    "load_slim",
    "measure",
    "prune",
    "run",
    "save_slim",
    "search",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'bise_prune' has no attribute '{name}'")
    value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value

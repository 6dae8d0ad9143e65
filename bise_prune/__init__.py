"""Turn a biased classifier into a smaller, less biased one without retraining it (BISE), ready for an inference server.

Names are imported on first use, so that ``bise-prune --help`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .artifacts import GateSite, Latency, MaskSet, Measurement, PruningPlan, Verification
    from .config import Budget, FinetuneConfig, RunConfig, SearchConfig
    from .errors import BiseError
    from .evaluation import evaluate
    from .export import export_onnx, export_program
    from .finetuning import finetune
    from .gates import apply_masks, gate_sites
    from .importance import BISEImportance
    from .mask_search import SearchResult, search
    from .measurement import measure
    from .pipeline import run
    from .pruning import PruningResult, fuse_batchnorm, prune
    from .slim import load_model, load_slim, save_slim
    from .verification import verify

_HOMES = {
    "artifacts": ("GateSite", "Latency", "MaskSet", "Measurement", "PruningPlan", "Verification"),
    "config": ("Budget", "FinetuneConfig", "RunConfig", "SearchConfig"),
    "errors": ("BiseError",),
    "evaluation": ("evaluate",),
    "export": ("export_onnx", "export_program"),
    "finetuning": ("finetune",),
    "gates": ("apply_masks", "gate_sites"),
    "importance": ("BISEImportance",),
    "measurement": ("measure",),
    "pipeline": ("run",),
    "pruning": ("PruningResult", "fuse_batchnorm", "prune"),
    "mask_search": ("SearchResult", "search"),
    "slim": ("load_model", "load_slim", "save_slim"),
    "verification": ("verify",),
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

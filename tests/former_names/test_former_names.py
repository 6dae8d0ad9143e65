"""Module paths of version 0.1.0 still lead to their names."""

import importlib
import sys
import warnings

import pytest

from bise_prune.former_names import HOMES

# What 0.1.0 had in the modules that have moved.
NAMES = {
    "artifacts": (
        "MASK_FORMAT", "MASK_VERSION", "PLAN_FORMAT", "PLAN_VERSION", "GateCall", "GateSite", "site_layer", "MaskSet",
        "LayerPlan", "PruningPlan", "Verification", "Latency", "Measurement",
    ),
    "cli": ("main",),
    "criteria": ("random_masks", "magnitude_masks", "taylor_masks"),
    "demo": ("run_demo", "demo_config", "train_demo_checkpoint", "ARCHITECTURE", "EPOCHS", "RHO"),
    "evaluation": ("SubgroupAccuracy", "Evaluation", "evaluate", "predictions", "score"),
    "fairness": ("fairness_record", "RESAMPLES", "LEVEL"),
    "ffw": ("FFWResult", "ffw", "weight_gate"),
    "finetuning": ("FinetuneEpoch", "FinetuneResult", "finetune"),
    "findings": ("epoch_record", "gate_records", "preprocessing_record", "warnings_of"),
    "formats": ("write_half", "write_int8", "half_overflow", "AsImages", "onnx_predictions", "onnx_latencies"),
    "graph": ("GroupMember", "DependencyGroup", "build_graph", "dependency_groups", "remove_channels"),
    "identification": ("PseudoLabels", "pseudo_bias_labels", "with_pseudo_labels", "untrained_copy"),
    "importance": ("BISEImportance", "tie_free"),
    "loggers": ("LOGGERS", "Logger", "Loggers", "check_loggers"),
    "mask_search.cost": ("GateCost",),
    "measurement": ("FLOPS_CONVENTION", "measure", "measure_latency"),
    "normalisation": ("normalise_open",),
    "pages": ("comparison_table", "read_runs", "summaries", "write_comparison", "write_card", "write_page"),
    "pages.comparison": ("comparison_table", "read_runs", "summaries", "write_comparison"),
    "pages.page": ("pictures", "write_card", "write_page"),
    "pages.plots": ("Line", "plot"),
    "pipeline": ("run",),
    "preview": ("preview", "preview_tables"),
    "probe": ("BiasProbe", "probe_bias"),
    "pruning.torch_pruning": ("remove_by_groups",),
    "rewiring": ("RewiredModel",),
    "settings": ("SETTINGS", "run_config", "settings_of", "read_settings", "write_settings"),
    "slim": ("load_model", "load_slim", "save_slim"),
    "subgroups": ("count_subgroups", "aligned_bias_values", "aligned_values", "is_aligned"),
    "sweep": ("ZETAS", "SweepPoint", "threshold_sweep"),
    "training": ("train_vanilla",),
    "triton": ("check_repository", "write_repository"),
    "verification": ("verify", "compare_outputs"),
}  # fmt: skip

# Modules of 0.1.0 that are rooms now, and give their names without a warning.
ROOMS = {
    "gates": ("gate_sites", "apply_masks", "GatedModel", "step_gate", "LearnedGates", "with_learned_state"),
    "export": ("export_onnx", "export_program", "open_session", "opset_of", "flush_denormals"),
    "report": (
        "SCHEMA_VERSION",
        "evaluation_record",
        "model_record",
        "comparison_table",
        "frontier_table",
        "shortcomings",
    ),
    "pruning": ("prune", "PruningResult", "fuse_batchnorm"),
    "checkpoint": ("Checkpoint", "load_checkpoint", "save_checkpoint"),
    "mask_search": ("search", "SearchResult", "EpochRecord", "SearchInterrupted"),
    "data": ("load_data", "BatchLoader", "BiasedDataset"),
    "models": ("build_model", "identify_architecture"),
}


def imported(name):
    """A module as if it were imported for the first time."""
    sys.modules.pop(f"bise_prune.{name}", None)
    return importlib.import_module(f"bise_prune.{name}")


def test_the_table_has_every_module_that_moved():
    assert set(NAMES) == set(HOMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_former_module_leads_to_its_names_and_says_where_they_are(name):
    with pytest.warns(DeprecationWarning, match="has moved to") as caught:
        module = imported(name)
    (warning,) = caught
    assert f"bise_prune.{name} has moved to bise_prune.{HOMES[name][0]}" in str(warning.message)
    assert warning.filename == importlib.__file__  # whoever imported it, not the package
    for wanted in NAMES[name]:
        homes = [importlib.import_module(f"bise_prune.{home}") for home in HOMES[name]]
        assert hasattr(module, wanted), f"bise_prune.{name} had {wanted} in 0.1.0"
        found = getattr(module, wanted)  # under the name that it has now, which may be another
        assert any(found is value for home in homes for value in vars(home).values())
    with pytest.raises(AttributeError, match=r"has no attribute 'nothing'; it has moved to bise_prune\."):
        _ = module.nothing


def test_a_star_takes_the_names():
    found = {}
    with pytest.warns(DeprecationWarning, match="has moved to"):
        imported("criteria")
        exec("from bise_prune.criteria import *", found)
    assert {"random_masks", "magnitude_masks", "taylor_masks"} <= set(found)


@pytest.mark.parametrize("name", ROOMS)
def test_modules_that_became_rooms_give_their_names(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = importlib.import_module(f"bise_prune.{name}")
    assert not [wanted for wanted in ROOMS[name] if not hasattr(module, wanted)]


def test_from_imports_of_former_paths_work():
    sys.modules.pop("bise_prune.criteria", None)
    with pytest.warns(DeprecationWarning, match=r"baselines\.random_scores, bise_prune\.baselines\.magnitude"):
        from bise_prune.criteria import random_masks
    from bise_prune.baselines import random_scores

    assert random_masks is random_scores.random_masks


def test_modules_that_never_were_are_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'bise_prune\.nothing'"):
        importlib.import_module("bise_prune.nothing")

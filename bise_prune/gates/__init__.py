"""Gates (BISE, Eq. 2): masks, the sites where they are applied in a network, and masked networks."""

from .bottleneck import CapturedInputs, Readout, head_name, readout_of
from .gated_model import GatedModel, apply_masks, constant_gates, with_learned_state
from .masks import GateCall, GateSite, MaskSet
from .ranking import least_open
from .sites import gate_sites, matching_sites, sites_in, sites_of
from .step import ConstantGates, LearnedGates, step_gate, step_slope

__all__ = [
    "CapturedInputs", "ConstantGates", "GateCall", "GateSite", "GatedModel", "LearnedGates", "MaskSet", "Readout",
    "apply_masks", "constant_gates", "gate_sites", "head_name", "least_open", "matching_sites", "readout_of",
    "sites_in", "sites_of", "step_gate", "step_slope", "with_learned_state",
]  # fmt: skip

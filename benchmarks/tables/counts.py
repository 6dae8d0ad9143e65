"""Weights and mask parameters of the paper's networks (Table E.1): nothing is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bise_prune import gate_sites
from bise_prune.models import build_model

from .paper import COUNTS


def counts() -> dict[str, dict[str, int]]:
    """Parameters and gates in the paper's places, with the paper's counts beside them."""
    image = torch.zeros(2, 3, 32, 32)
    found = {
        "BiasedMNIST": _counted(build_model("simple_convnet", 10), torch.zeros(2, 3, 28, 28)),
        "CelebA": _counted(build_model("resnet18", 2), image),
        "Corrupted CIFAR-10": _counted(build_model("resnet18", 10), image),
        "Multi-Color MNIST": _counted(build_model("mlp", 10), torch.zeros(2, 3, 28, 28)),
        "CivilComments": _bert(),
    }
    return {
        name: {**figures, "paper_weights": COUNTS[name][0], "paper_masks": COUNTS[name][1]}
        for name, figures in found.items()
    }


def _counted(network: nn.Module, example: Any, weights: int | None = None) -> dict[str, int]:
    masks = sum(site.num_channels for site in gate_sites(network.eval(), example, "paper"))
    return {"weights": weights or sum(p.numel() for p in network.parameters()), "masks": masks}


def _bert() -> dict[str, int]:
    """BERT-base for two classes; the paper counts the matrices of embeddings and linear layers alone."""
    from transformers import BertConfig, BertForSequenceClassification

    network = BertForSequenceClassification(BertConfig(num_labels=2))
    matrices = sum(p.numel() for name, p in network.named_parameters() if p.ndim == 2)
    tokens = torch.ones(2, 8, dtype=torch.long)
    return _counted(network, {"input_ids": tokens, "attention_mask": tokens}, matrices)

"""What two processes do together, and one alone."""

import torch
from cases import SHORT as SETTINGS
from cases import biased_data, network

from bise_prune import SearchConfig, search
from bise_prune.config import Budget, FinetuneConfig
from bise_prune.data import BatchLoader, BiasedDataset
from bise_prune.tuning.finetuning import finetune


def work():
    """A search and a finetuning; everything that must agree."""
    model = network("simple_convnet").double()
    data = biased_data(n=123)  # of the last batch, one process gets two samples and the other one
    data = BiasedDataset(data.inputs.double(), data.target, data.bias)
    val = BatchLoader(BiasedDataset(*(t[:61] for t in (data.inputs, data.target, data.bias))), 16)
    results = {}
    gradual = {"steps": 24, "budget": Budget(share=0.5)}
    for name, options in {
        "plain": SETTINGS, "pooled": {**SETTINGS, "mi_pool": 60}, "uncached": {**SETTINGS, "cache_bytes": 0},
        "gradual": gradual, "refitted": {**gradual, "refit": "head"},
    }.items():  # fmt: skip
        found = search(model, BatchLoader(data, 20, shuffle=True, seed=1), SearchConfig(**options), val)
        results[name] = dict(found.last.logits)
        last = found.history[-1]
        results[f"{name} losses"] = torch.tensor(
            [last.objective, last.cross_entropy, last.mutual_information, last.head_cross_entropy, last.silent_share,
             last.validation.unbiased_accuracy, float(last.validation.n)], dtype=torch.float64,
        )  # fmt: skip
    tuned = finetune(network("mlp").double(), BatchLoader(data, 20, shuffle=True, seed=1), FinetuneConfig(epochs=2))
    results["finetuned"] = dict(tuned.model.state_dict())
    return results

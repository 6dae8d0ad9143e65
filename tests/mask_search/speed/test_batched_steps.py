"""A network that stands still is run once per sample."""

import pytest
import torch
from cases import biased_data, in_double, network

from bise_prune import SearchConfig, search
from bise_prune.config import Budget
from bise_prune.data import BatchLoader
from bise_prune.mask_search.speed import FastPasses, Speedups


@pytest.mark.parametrize("options", [{}, {"mi_pool": 30}, {"mi_weight": 0.0}, {"budget": Budget(share=0.6)}])
def test_a_network_that_stands_still_is_run_once_per_sample(options, monkeypatch):
    model = network("simple_convnet").double()
    options = dict(anneal_every=6, min_temperature=0.02, head_epochs=2, mask_lr=0.1, early_stop=False, **options)
    forward = FastPasses.forward

    def run(remember):
        samples = []

        def counted(self, gates, inputs):
            samples.append(len(inputs.input))
            return forward(self, gates, inputs)

        monkeypatch.setattr(FastPasses, "forward", counted)
        loader = BatchLoader(in_double(biased_data(n=120, rho=0.9)), 20, shuffle=True)
        speedups = Speedups(batched_steps=remember)
        return search(model, loader, SearchConfig(**options), speedups=speedups), sum(samples)

    (kept, few), (anew, many) = run(True), run(False)
    still = [not record.mask_flips for record in anew.history]
    spared = sum(now and before and earlier for earlier, before, now in zip(still, still[1:], still[2:], strict=False))
    conflicting = 20  # at most, and the information needs them in every epoch
    assert spared > 3 and many - few >= (120 - conflicting) * spared - conflicting * sum(still)
    for site, logits in anew.last.logits.items():
        assert torch.allclose(kept.last.logits[site], logits, rtol=0, atol=1e-9)
    for mine, other in zip(kept.history, anew.history, strict=True):
        assert (mine.mask_flips, mine.closed) == (other.mask_flips, other.closed)
        for name in ("objective", "cross_entropy", "mutual_information", "head_cross_entropy", "silent_share"):
            assert getattr(mine, name) == pytest.approx(getattr(other, name), abs=1e-9), name

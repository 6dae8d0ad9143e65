"""The history records every epoch."""

import pytest
from cases import SHORT, biased_loader, network

from bise_prune import SearchConfig, search
from bise_prune.mask_search.schedule import temperatures


def test_history_records_every_epoch():
    loader = biased_loader(batch_size=2, rho=0.8)
    config = SearchConfig(**SHORT)
    found = search(network("mlp"), loader, config)
    assert [record.temperature for record in found.history] == temperatures(2, 0.5, 0.2)
    conflicting = (loader.data.target != loader.data.bias[:, 0]).view(-1, 2).sum(1)
    assert found.history[0].silent_share == pytest.approx((conflicting <= 1).double().mean().item())
    for record in found.history:
        assert record.objective == pytest.approx(record.cross_entropy + record.mutual_information, rel=1e-5)
    assert found.history[-1].closed == found.last.num_closed
    assert sum(record.mask_flips for record in found.history) >= found.last.num_closed
    assert found.num_conflicting == (int(conflicting.sum()),)

"""No shortcut changes a mask: all of them, all but one, and Algorithm 1 as it is written, in float64."""

import dataclasses
import functools

import pytest
import torch
from cases import biased_data, in_double, network, slow

from bise_prune import SearchConfig, search
from bise_prune.data import BatchLoader
from bise_prune.mask_search.speed import Speedups
from bise_prune.mask_search.speed import skipped_channels as closed

SWITCHES = [field.name for field in dataclasses.fields(Speedups)]
ALL = Speedups()
OTHERS = {
    "no shortcut": Speedups.none(),
    **{f"without {name}": dataclasses.replace(ALL, **{name: False}) for name in SWITCHES},
    **{f"{name} alone": dataclasses.replace(Speedups.none(), **{name: True}) for name in SWITCHES},
}
ALONE = [name for name in OTHERS if name.endswith("alone")]
OFF = [name for name in OTHERS if name not in ALONE]
# Epochs with flips and epochs without any, so that every shortcut has its turn.
LONG = dict(anneal_every=5, min_temperature=0.05, head_epochs=2, mask_lr=0.1, early_stop=False)


@pytest.fixture(autouse=True)
def _small_layers_count(monkeypatch):
    monkeypatch.setattr(closed, "_LEAST_MACS", 0)


def found(name, speedups):
    train, val = (in_double(biased_data(n=n, rho=rho, seed=n)) for n, rho in ((60, 0.8), (45, 0.4)))
    loader, config = BatchLoader(train, 20, shuffle=True, seed=3), SearchConfig(**LONG)
    return search(network(name).double(), loader, config, BatchLoader(val, 15), speedups=speedups)


@functools.cache
def with_all(name):
    return found(name, ALL)


def test_none_switches_everything_off():
    assert not any(getattr(Speedups.none(), name) for name in SWITCHES) and all(getattr(ALL, name) for name in SWITCHES)


@pytest.mark.parametrize("name", ["simple_convnet", "mlp", *slow("resnet")])
@pytest.mark.parametrize("other", [*OFF, *slow(*ALONE)])
def test_shortcuts_change_no_mask(name, other):
    fast, plain = with_all(name), found(name, OTHERS[other])
    assert 0 < fast.last.num_closed < fast.last.num_channels
    assert any(not record.mask_flips for record in fast.history)
    for rule, pick in fast.picks.items():
        again = plain.picks[rule]
        assert pick.epoch == again.epoch
        for site, logits in pick.masks.logits.items():
            assert torch.equal(pick.masks.keep[site], again.masks.keep[site]), (rule, site)
            assert torch.allclose(logits, again.masks.logits[site], rtol=0, atol=1e-9), (rule, site)
    for mine, other_record in zip(fast.history, plain.history, strict=True):
        assert (mine.mask_flips, mine.closed) == (other_record.mask_flips, other_record.closed)
        assert mine.objective == pytest.approx(other_record.objective, abs=1e-9)
        assert mine.validation == other_record.validation

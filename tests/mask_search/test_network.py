"""Faster arithmetic computes the same objective."""

import pytest
import torch
from cases import biased_loader, network, torchvision_network

from bise_prune import SearchConfig, search
from bise_prune.mask_search.speed import skipped_channels as closed


@pytest.mark.parametrize("options", [{"channels_last": True}, {"precision": "tf32"}])
def test_faster_arithmetic_computes_the_same_objective(options):
    model, loader = torchvision_network("resnet18", 3), biased_loader(n=40)
    config = dict(anneal_every=1, min_temperature=0.6, head_epochs=1, initial_logit=1.0, cache_bytes=0)
    plain, fast = (search(model, loader, SearchConfig(**config, **extra)) for extra in ({}, options))
    assert fast.history[0].objective == pytest.approx(plain.history[0].objective, rel=1e-3)


def test_bfloat16_is_near(monkeypatch):
    monkeypatch.setattr(closed, "_LEAST_MACS", 0)
    model, loader = network("mlp"), biased_loader(n=40)
    config = dict(anneal_every=1, min_temperature=0.6, head_epochs=1, initial_logit=1.0)
    plain, half = (search(model, loader, SearchConfig(**config, precision=p)) for p in ("float32", "bfloat16"))
    assert half.history[0].objective == pytest.approx(plain.history[0].objective, rel=0.05)
    assert half.last.logits["body.1"].dtype == torch.float32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own
def test_a_compiled_network_computes_the_same():
    model, loader = network("simple_convnet"), biased_loader(n=40)
    config = dict(anneal_every=1, min_temperature=0.6, head_epochs=1, cache_bytes=0)
    plain, compiled = (search(model, loader, SearchConfig(**config, compile=flag)) for flag in (False, True))
    for name, logits in plain.last.logits.items():
        assert torch.allclose(compiled.last.logits[name], logits, atol=1e-5)

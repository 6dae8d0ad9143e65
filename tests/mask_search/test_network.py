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
def test_a_compiled_network_computes_the_same(tmp_path, monkeypatch):
    # What lies in the cache of this user may have been compiled for another processor.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, loader = network("simple_convnet"), biased_loader(n=40)
    # Open gates far from their threshold: none flips by a rounding error.
    config = dict(anneal_every=1, min_temperature=0.6, head_epochs=1, cache_bytes=0, initial_logit=1.0, mask_lr=1.0)
    plain, compiled = (search(model, loader, SearchConfig(**config, compile=flag)) for flag in (False, True))
    assert plain.history[0].objective == pytest.approx(compiled.history[0].objective, rel=1e-5)
    for name, logits in plain.last.logits.items():
        assert (logits - 1).abs().max() > 1e-3
        assert torch.allclose(compiled.last.logits[name], logits, rtol=0, atol=1e-5)

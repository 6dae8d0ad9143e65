"""Mask gradients are those of the plain network."""

import torch
import torch.nn.functional as F
from cases import biased_data, in_double, network

from bise_prune import SearchConfig
from bise_prune.data import BatchLoader
from bise_prune.mask_search.assembly import assemble


def test_mask_gradients_are_those_of_the_plain_network():
    """The search's own forward pass (affine batch norms, replayed prefix) against hooks and autograd."""
    model = network("resnet").double()
    data = in_double(biased_data(n=20))
    run = assemble(model, BatchLoader(data, 20), SearchConfig(head_epochs=1, mi_weight=0.0))
    gates = run.network.gates.flat()
    gates.retain_grad()
    ((rows, inputs),) = run.passes.inputs(run.data.next_pass(run.state.position))
    logits, _ = run.passes.forward(gates, inputs)
    F.cross_entropy(logits, run.labels.of(rows).target).backward()
    ones = [torch.ones(site.num_channels, dtype=torch.float64, requires_grad=True) for site in run.network.sites]
    with run.network.gated.gating(ones):
        plain = model(data.inputs)
    F.cross_entropy(plain, data.target).backward()
    assert torch.allclose(gates.grad, torch.cat([one.grad for one in ones]), rtol=0, atol=1e-12)

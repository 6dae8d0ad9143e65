"""Heads in closed form against autograd and SGD."""

import pytest
import torch
import torch.nn.functional as F

from bise_prune.mask_search.heads import BiasHeads


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("classes", [[3, 3], [4], [2, 5, 2]])
def test_heads_are_trained_as_autograd_and_sgd_would(momentum, classes):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    bias = torch.stack([torch.randint(0, size, (50,), generator=generator) for size in classes], 1)
    settings = dict(lr=0.1, momentum=momentum, weight_decay=1e-2)
    ours = BiasHeads(6, classes, torch.Generator().manual_seed(1), torch.float64, **settings)
    weights = [part.clone().requires_grad_() for part in ours.state.matrix.split(classes)]
    optimizer = torch.optim.SGD(weights, **settings)

    def theirs(rows):
        inputs = torch.cat([features[rows], torch.ones(len(rows), 1, dtype=torch.float64)], 1)
        losses = [F.cross_entropy(inputs @ part.T, bias[rows, k]) for k, part in enumerate(weights)]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        return sum(losses).detach()

    for phase in range(2):  # the second takes the momentum up
        ours.train(features, bias, epochs=3, batch_size=20, generator=torch.Generator().manual_seed(phase))
        order = torch.Generator().manual_seed(phase)
        for _ in range(3):
            for rows in torch.randperm(50, generator=order).split(20):
                theirs(rows)
    for rows in torch.arange(50).split(15):
        before = ours.state
        assert torch.allclose(ours.step(features[rows], bias[rows]), theirs(rows), rtol=0, atol=1e-12)
        assert ours.state is not before and not torch.equal(ours.state.matrix, before.matrix)
    assert torch.allclose(ours.state.matrix, torch.cat(weights), rtol=0, atol=1e-12)
    logits = [features @ part[:, :-1].T + part[:, -1] for part in weights]
    for mine, other in zip(ours(features), logits, strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-12)

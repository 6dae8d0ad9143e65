"""Functions that run over the places of each channel: extremes, sorting, running sums, deviations."""

import onnxruntime
import pytest
import torch
from awkward import masks_for
from torch import nn

from bise_prune import apply_masks, export_onnx, gate_sites, prune

POOLED = {
    "max": lambda y: y.max(2)[0],
    "largest": lambda y: torch.max(y, dim=-1).values,
    "min": lambda y: y.min(dim=2, keepdim=True).values[:, :, 0],
    "median": lambda y: y.median(2)[0],
    "mode": lambda y: y.round().mode(2)[0],
    "kthvalue": lambda y: y.kthvalue(2, 2)[0],
    "topk": lambda y: y.topk(2, dim=2)[0].mean(2),
    "topk of the last": lambda y: torch.topk(y, k=3).values.flatten(1)[:, ::3],
    "sort": lambda y: y.sort(dim=2, descending=True)[0][..., 0],
    "sort of the last": lambda y: torch.sort(y)[0][..., 1],
    "cumsum": lambda y: y.cumsum(2)[..., 3],
    "cumprod": lambda y: y.cumprod(2)[..., 2],
    "cummax": lambda y: y.cummax(2)[0][..., 2],
    "std": lambda y: y.std(2),
    "std, biased": lambda y: torch.std(y, dim=[2], correction=0),
    "var": lambda y: y.var(2, keepdim=True).squeeze(2),
    "var_mean": lambda y: torch.cat(torch.var_mean(y, 2), 1)[:, :24],
    "aminmax": lambda y: torch.aminmax(y, dim=2).max,
    "prod": lambda y: y.prod(2),
    "nanmean": lambda y: y.nanmean(2),
}


class Pooling(nn.Module):
    """A convolution over words, pooled over time."""

    def __init__(self, pooled):
        super().__init__()
        self.words, self.conv, self.pooled = nn.Embedding(20, 16), nn.Conv1d(16, 24, 3, padding=1), pooled
        self.hidden, self.head = nn.Linear(24, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(self.pooled(torch.relu(self.conv(self.words(x).transpose(1, 2)))))))


def pooling(pooled):
    torch.manual_seed(0)
    return Pooling(pooled).eval().double()


WORDS = torch.arange(28).view(4, 7) * 13 % 20


@pytest.mark.parametrize("name", POOLED)
@pytest.mark.parametrize("joins", ["intersection", "expand"])
def test_channels_in_front_of_a_function_over_places_go(name, joins):
    model = pooling(POOLED[name])
    assert [site.name for site in gate_sites(model, WORDS, "tied")] == ["conv", "hidden"]
    masks = masks_for(model, WORDS, "tied", 0, 0.5)
    result = prune(model, masks, WORDS, joins=joins, tolerance=1e-12)
    assert not result.plan.reasons
    with torch.no_grad():
        longer = torch.arange(18).view(2, 9) * 7 % 20
        assert torch.allclose(result.model(longer), apply_masks(model, masks, WORDS)(longer), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "pooled", [lambda y: y.logsumexp(2), lambda y: y.max(1)[0].mean(1, keepdim=True) + y.mean(2), lambda y: y - y.max()]
)
def test_what_depends_on_zeros_keeps_them(pooled):
    class Last(Pooling):
        def forward(self, x):
            y = self.pooled(torch.relu(self.conv(self.words(x).transpose(1, 2))))
            return self.head(torch.relu(self.hidden(y if y.ndim == 2 else y.mean(2))))

    torch.manual_seed(0)
    model = Last(pooled).eval().double()
    assert [site.name for site in gate_sites(model, WORDS, "tied")] == ["hidden"]
    prune(model, masks_for(model, WORDS, "paper", 0, 0.5), WORDS, tolerance=1e-12)


def test_places_are_read_beside_what_stands_there():
    model = pooling(lambda y: torch.add(*y.max(2)))
    masks = masks_for(model, WORDS, "paper", 0, 0.5)
    assert len(masks.logits["conv"]) == 24
    result = prune(model, masks, WORDS, joins="intersection", tolerance=1e-12)
    assert result.model.conv.out_channels == 24  # a closed channel has a place as well
    model = pooling(lambda y: y.gather(2, y.max(2, keepdim=True)[1])[..., 0])
    prune(model, masks_for(model, WORDS, "paper", 0, 0.5), WORDS, tolerance=1e-12)


@pytest.mark.parametrize("name", ["max", "topk", "cumsum", "std", "var_mean", "prod"])
def test_they_are_exported(name, tmp_path):
    model = pooling(POOLED[name]).float()
    slim = prune(model, masks_for(model, WORDS, "tied", 0, 0.5), WORDS).model
    assert export_onnx(slim, tmp_path / "slim.onnx", WORDS).passed
    (found,) = onnxruntime.InferenceSession(tmp_path / "slim.onnx").run(None, {"input": WORDS.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), slim(WORDS), atol=1e-5)

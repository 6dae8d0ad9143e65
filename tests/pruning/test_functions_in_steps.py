"""Functions that are taken in steps compute the same, and networks with them are pruned exactly."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bise_prune import MaskSet, gate_sites, prune
from bise_prune.errors import ModelError
from bise_prune.tracing import CallCounter

EQUATIONS = {
    "bhid,bhjd->bhij": ((2, 3, 4, 5), (2, 3, 6, 5)),
    "bhij,bhjd->bhid": ((2, 3, 4, 6), (2, 3, 6, 5)),
    "bhij, bhjd -> bihd": ((2, 3, 4, 6), (2, 3, 6, 5)),
    "...i,io->...o": ((2, 3, 4), (4, 5)),
    "...i,oi->...o": ((2, 3, 4), (5, 4)),
    "nti,oi->tno": ((2, 3, 4), (5, 4)),
    "ibh,hnd->ibnd": ((2, 3, 4), (4, 5, 6)),
    "ij,jk->ki": ((2, 3), (3, 4)),
    "bi,bj->bij": ((2, 3), (2, 4)),
    "bij,bij->b": ((2, 3, 4), (2, 3, 4)),
    "...ab,...bc->...ac": ((2, 5, 3, 4), (2, 5, 4, 6)),
    "ij,kj->ik": ((2, 3), (4, 3)),
    "i,ij->j": ((3,), (3, 4)),
    "ij,j->i": ((2, 3), (3,)),
    # Others are computed as they are.
    "ij->ji": ((2, 3),),
    "ii,ij->j": ((3, 3), (3, 4)),
    "ij,jk": ((2, 3), (3, 4)),
    "ij,jk,kl->il": ((2, 3), (3, 4), (4, 5)),
    "ijk,ij->i": ((2, 3, 4), (2, 3)),
}


class Counting(CallCounter):
    """Only counts."""

    def called(self, key, counted, func, args, kwargs):
        return func(*args, **kwargs)


def in_steps(function, *args, **kwargs):
    """The result of a function that may be taken in steps, and the names of the functions that were called."""
    with Counting() as counting:
        result = function(*args, **kwargs)
    return result, counting.counts


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einstein_sums(equation):
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in EQUATIONS[equation]]
    result, counts = in_steps(torch.einsum, equation, *tensors)
    assert torch.allclose(result, torch.einsum(equation, *tensors), rtol=0, atol=1e-12)
    usual = list(EQUATIONS).index(equation) < list(EQUATIONS).index("ij->ji")
    assert counts["matmul"] == usual


def test_other_functions():
    torch.manual_seed(0)
    x, y, empty = torch.randn(2, 3, 4), torch.randn(2, 4, 5), torch.tensor([])
    bias, table = torch.randn(2, 3, 5), torch.randn(5)
    for function, args, kwargs, expected in (
        (torch.addmm, (table, x[0], y[0]), {}, table + x[0] @ y[0]),
        (torch.addmm, (bias[0], x[0], y[0]), {"beta": 0.5}, bias[0] * 0.5 + x[0] @ y[0]),
        (torch.baddbmm, (bias, x, y), {"beta": 0.5, "alpha": 2}, bias * 0.5 + 2 * (x @ y)),
        (torch.cat, ([empty, x, x],), {"dim": 1}, torch.cat([x, x], 1)),
        (torch.cat, ([empty, x],), {"dim": 1}, x),
        (Tensor.type_as, (x, y.double()), {}, x.double()),
        (Tensor.view_as, (x, torch.empty(6, 4)), {}, x.view(6, 4)),
        (Tensor.expand_as, (x[:, :1], x), {}, x[:, :1].expand(2, 3, 4)),
    ):
        result, _ = in_steps(function, *args, **kwargs)
        assert result.dtype == expected.dtype and torch.allclose(result, expected, atol=1e-6)
    q, k = torch.randn(2, 4, 5, 6), torch.randn(2, 2, 7, 6)
    result, counts = in_steps(F.scaled_dot_product_attention, q, k, k, enable_gqa=True)
    assert torch.allclose(result, F.scaled_dot_product_attention(q, k, k, enable_gqa=True), atol=1e-6)
    assert counts["repeat_interleave"] == 2


class Cached(nn.Module):
    """A decoder's attention, whose keys and values are joined with a cache that is empty."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.first, self.second, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (torch.cat([torch.tensor([]).to(y), y], dim=-2) for y in (k, v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return self.head((x + self.second(F.silu(self.first(x)))).mean(1))


class PostNorm(nn.Module):
    """A post-norm block whose GELU is written out by tanh, and a pooler with another tanh, as in ALBERT."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(6, 10), nn.Linear(10, 6), nn.LayerNorm(6)
        self.pool, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        y = self.first(x)
        y = 0.5 * y * (1.0 + torch.tanh(0.8 * (y + 0.04 * y.pow(3.0))))
        x = self.norm(x + self.second(y))
        return self.head(torch.tanh(self.pool(x[:, 0])))


class TakesSizes(nn.Module):
    """Reshapes what one layer returns by the size of another one's result."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, x):
        a, b = torch.relu(self.a(x)), torch.cumsum(self.b(x), 1)
        n, channels, height, width = a.shape
        b = b.flatten(2).reshape(n, channels, height, width)
        return self.head((a + b).mean((2, 3)))


class Recurrent(nn.Module):
    """A recurrent layer, which checks the width of its input."""

    def __init__(self):
        super().__init__()
        self.first, self.recurrent, self.head = nn.Linear(6, 12), nn.GRU(12, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.recurrent(torch.relu(self.first(x)))[0][:, -1]))


@pytest.mark.parametrize("kind", [Cached, PostNorm, TakesSizes, Recurrent])
@pytest.mark.parametrize("placement", ["tied", "paper"])
@pytest.mark.parametrize("joins", ["intersection", "expand"])
def test_networks_that_were_refused(kind, placement, joins):
    torch.manual_seed(0)
    network = kind().eval()
    shapes = {Cached: (2, 5, 8), PostNorm: (2, 5, 6), TakesSizes: (2, 3, 6, 6), Recurrent: (2, 5, 6)}
    x = torch.randn(shapes[kind])
    if kind in (TakesSizes, Recurrent) and placement == "tied":
        with pytest.raises(ModelError, match="no closed channel"):
            gate_sites(network, x, placement)
        return
    sites = gate_sites(network, x, placement)
    masks = MaskSet({site.name: torch.arange(site.num_channels) % 2 - 0.5 for site in sites})
    calls = [gate.key for site in sites for gate in site.calls]
    assert placement == "tied" or len(calls) == len(set(calls))
    assert prune(network, masks, x, joins=joins).verification.max_abs_error < 1e-12

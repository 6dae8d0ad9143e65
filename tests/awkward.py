"""Networks with one awkward thing each, and their masks."""

import torch
from cases import Net, randomise
from torch import nn

from bise_prune import MaskSet, gate_sites


def masks_for(model, inputs, placement, seed, share):
    generator = torch.Generator().manual_seed(seed)
    sites = gate_sites(model, inputs, placement)
    return MaskSet({site.name: torch.rand(site.num_channels, generator=generator) - share for site in sites})


def pooled(h):
    return h.mean((2, 3))


def conv(inputs, outputs, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def _split_and_join(s, x):
    left, right = torch.split(torch.relu(s.a(x)), [3, 5], dim=1)
    return s.head(pooled(torch.relu(s.b(torch.cat([right, torch.relu(s.c(left))], 1)))))


def _reshaped(s, x):
    h = torch.relu(s.a(x))
    return s.head(torch.relu(s.b(h.reshape(h.shape[0], h.shape[1], -1).mean(2))))


def _literal(s, x):
    return s.head(torch.relu(s.b(torch.relu(s.a(x)).view(-1, 6, 64).mean(2))))


def _one_channel(s, x):
    return s.head(pooled(torch.relu(s.b(torch.relu(s.a(x)) * torch.sigmoid(s.attention(x))))))


def _two_streams(s, x):
    first = torch.relu(s.a(x))
    second = torch.relu(s.shared(first)) + first
    return s.head(pooled(torch.relu(s.shared(second)) + torch.cat([second[:, 3:], second[:, :3]], 1)))


def _attention(s, x):
    tokens = torch.relu(s.a(torch.relu(s.stem(x)))).flatten(2).transpose(1, 2)
    mixed, _ = s.mix(tokens, tokens, tokens, need_weights=False)
    return s.head(s.up(torch.relu(s.down(s.norm(tokens + mixed)))).mean(1))


def _grouped_after_concat(s, x):
    h = torch.cat([torch.relu(s.a(x)), torch.relu(s.b(x))], 1)
    return s.head(pooled(torch.relu(s.bn(s.c(h))) + s.d(h)))


def _constants(s, x):
    h = s.norm(torch.relu(s.a(x)))  # a closed channel leaves the shift of the norm
    return s.head(pooled(torch.relu(s.c(torch.sigmoid(s.b(h))))))


AWKWARD = {
    "split and join": lambda: Net(_split_and_join, a=conv(3, 8), b=conv(9, 6), c=conv(3, 4), head=nn.Linear(6, 3)),
    "reshape": lambda: Net(_reshaped, a=conv(3, 8), b=nn.Linear(8, 7), head=nn.Linear(7, 3)),
    "a literal width": lambda: Net(_literal, a=conv(3, 6), b=nn.Linear(6, 7), head=nn.Linear(7, 3)),
    "one channel": lambda: Net(
        _one_channel, a=conv(3, 6), b=conv(6, 5), attention=conv(3, 1), head=nn.Linear(5, 3)
    ),
    "shared layers": lambda: Net(_two_streams, a=conv(3, 6), shared=conv(6, 6), head=nn.Linear(6, 3)),
    "attention": lambda: Net(
        _attention, stem=conv(3, 4), a=conv(4, 8), mix=nn.MultiheadAttention(8, 2, batch_first=True), 
        norm=nn.LayerNorm(8), down=nn.Linear(8, 12), up=nn.Linear(12, 8), head=nn.Linear(8, 3),
    ),
    "grouped after concat": lambda: Net(
        _grouped_after_concat, a=conv(3, 4), b=conv(3, 4, 1), c=conv(8, 6, groups=2), bn=nn.BatchNorm2d(6),
        d=nn.Conv2d(8, 6, 1, groups=2), head=nn.Linear(6, 3),
    ),
    "constants": lambda: Net(
        _constants, a=conv(3, 6), norm=nn.BatchNorm2d(6), b=conv(6, 6), c=conv(6, 6), head=nn.Linear(6, 3)
    ),
    "no bias": lambda: Net(
        _constants, a=conv(3, 6, bias=False), norm=nn.BatchNorm2d(6), b=conv(6, 6, 1, bias=False),
        c=conv(6, 6, bias=False), head=nn.Linear(6, 3),
    ),
}  # fmt: skip


def awkward(name, seed=0):
    torch.manual_seed(seed)
    model = AWKWARD[name]()
    randomise(model, seed)
    return model.eval().double()


def pictures(size=8, n=2):
    return torch.randn(n, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))


def error_of(first, second, batch):
    with torch.no_grad():
        return float((first(batch) - second(batch)).abs().max())


def closing(model, inputs, **closed):
    masks = {site.name: torch.ones(site.num_channels) for site in gate_sites(model, inputs, "paper")}
    for name, channels in closed.items():
        masks[name][list(channels)] = -1
    return MaskSet(masks)

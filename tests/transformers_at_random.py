"""Transformers drawn from a seed: attention as people write it, norms before or behind, masks, biases of positions."""

import random

import torch
import torch.nn.functional as F
from torch import nn


class Projections(nn.Module):
    """Queries, keys and values (N, heads, tokens, width of a head), cut out of one layer or of three."""

    def __init__(self, draw, width, heads, pair, value):
        super().__init__()
        self.heads, self.pair, self.value = heads, pair, value
        has_bias = draw.random() < 0.7
        self.layout = draw.choice(["three", "three", "stacked", "side by side", "head by head"])
        if self.layout == "stacked" and pair != value:
            self.layout = "side by side"
        self.style = draw.choice(["view", "unflatten", "reshape"])
        self.scaled = draw.choice(["no", "before", "behind"])
        self.turns = draw.choice(["no", "no", "no", "rotary", "rotary in part", "norm", "direction"])
        self.gain = nn.Parameter(torch.rand(pair)) if self.turns == "norm" else None
        self.shared = 1  # heads of queries for one of keys and values
        self.repeats = draw.choice(["interleave", "expand", "broadcast" if self.layout == "three" else "expand"])
        if self.layout == "three":
            self.shared = draw.choice([1, 1, *[n for n in (2, 3, 4) if heads % n == 0]])
            self.repeats = "interleave" if self.repeats == "broadcast" and self.shared < heads else self.repeats
            few = heads // self.shared
            sizes = (heads * pair, few * pair, few * value)
            kind = draw.choice([nn.Linear, nn.Linear, InputsFirst])
            self.q, self.k, self.v = (kind(width, size, bias=has_bias) for size in sizes)
        else:
            self.qkv = nn.Linear(width, heads * (2 * pair + value), bias=has_bias)

    def _repeated(self, x):
        if self.shared == 1 or self.repeats == "broadcast":
            return x
        if self.repeats == "interleave":
            return x.repeat_interleave(self.shared, 1)
        n, heads, tokens, width = x.shape
        return x[:, :, None].expand(n, heads, self.shared, tokens, width).reshape(n, heads * self.shared, tokens, width)

    def _apart(self, x, width, heads=None):
        heads = heads or self.heads
        if self.style == "unflatten":
            return x.unflatten(-1, (heads, width)).transpose(1, 2)
        shape = (x.shape[0], -1, heads, width)
        return (x.view(shape) if self.style == "view" else x.reshape(shape)).permute(0, 2, 1, 3)

    def forward(self, x):
        sizes = [self.heads * self.pair, self.heads * self.pair, self.heads * self.value]
        if self.layout == "three":
            q, k, v = self.q(x), self.k(x), self.v(x)
            q = q * 0.7 if self.scaled == "before" else q
            few = self.heads // self.shared
            parts = ((q, self.pair, self.heads), (k, self.pair, few), (v, self.value, few))
            q, k, v = (self._apart(y, w, n) for y, w, n in parts)
            q, k = (self._turned(y) for y in (q, k))
            k, v = (self._repeated(y) for y in (k, v))
            return (q * 0.7 if self.scaled == "behind" else q), k, v
        if self.layout == "stacked":
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, self.pair).permute(2, 0, 3, 1, 4)
        elif self.layout == "side by side":
            parts = self.qkv(x).split(sizes, -1)
            q, k, v = (self._apart(y, w) for y, w in zip(parts, (self.pair, self.pair, self.value), strict=True))
        else:
            apart = self.qkv(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
            q, k, v = apart.split([self.pair, self.pair, self.value], -1)
        q, k = (self._turned(y) for y in (q, k))
        return (q * 0.7 if self.scaled == "behind" else q), k, v

    def _turned(self, y):
        if self.turns == "rotary":
            angle = torch.arange(y.shape[2], dtype=y.dtype)[:, None] / 3 + torch.arange(self.pair, dtype=y.dtype)
            first, second = y.chunk(2, -1)
            return y * angle.cos() + torch.cat([-second, first], -1) * angle.sin()
        if self.turns == "rotary in part":
            turned, rest = y[..., :2], y[..., 2:]
            angle = torch.arange(y.shape[2], dtype=y.dtype)[:, None] / 3
            first, second = turned.chunk(2, -1)
            return torch.cat([turned * angle.cos() + torch.cat([-second, first], -1) * angle.sin(), rest], -1)
        if self.turns == "norm":
            return F.layer_norm(y, (self.pair,), self.gain)
        return F.normalize(y, dim=-1) if self.turns == "direction" else y


class InputsFirst(nn.Module):
    """A linear layer whose weight has its inputs first, as in GPT-2."""

    def __init__(self, inputs, outputs, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * inputs**-0.5)
        self.bias = nn.Parameter(torch.randn(outputs)) if bias else None

    def forward(self, x):
        return x @ self.weight if self.bias is None else torch.matmul(x, self.weight) + self.bias


class Attention(nn.Module):
    """Attention over tokens (N, tokens, width)."""

    def __init__(self, draw, width, heads, length):
        super().__init__()
        pair, value = draw.choice([2, 4, 6]), draw.choice([2, 4, 6])
        self.by = draw.choice(["fused", "fused", "written out", "by sums", "with a softcap"])
        self.mask = draw.choice(["none", "none", "causal", "tokens", "bias", "bias"])
        self.project = Projections(draw, width, heads, pair, value)
        self.out = nn.Linear(heads * value, width, bias=draw.random() < 0.7)
        self.scale = draw.choice([None, 0.3])
        self.merges = draw.choice(["reshape", "flatten", "contiguous"])
        if self.mask == "bias":
            self.bias = nn.Parameter(torch.randn(1 if draw.random() < 0.5 else heads, length, length))
            self.is_moved = draw.random() < 0.5
        self.temperature = nn.Parameter(torch.rand(heads, 1, 1)) if draw.random() < 0.2 else None

    def _mask(self, x):
        tokens = x.shape[1]
        if self.mask == "causal":
            return torch.zeros(tokens, tokens, dtype=x.dtype).masked_fill(
                ~torch.ones(tokens, tokens).tril().bool(), -torch.inf
            )
        if self.mask == "tokens":
            return torch.where(x.mean(-1)[:, None, None] > 2, -5.0, 0.0).to(x.dtype)
        if self.mask == "bias":
            bias = self.bias.permute(0, 2, 1) if self.is_moved else self.bias
            return bias[None, :, :tokens, :tokens]
        return None

    def forward(self, x):
        q, k, v = self.project(x)
        mask = self._mask(x)
        if self.by == "fused":
            options = {} if self.scale is None else {"scale": self.scale}
            heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)
        else:
            scores = torch.einsum("bhid,bhjd->bhij", q, k.expand(q.shape)) if self.by == "by sums" else q @ k.mT
            scores = scores * (self.scale or self.project.pair**-0.5)
            scores = torch.tanh(scores) * 3 if self.by == "with a softcap" else scores
            scores = scores if self.temperature is None else scores * self.temperature.exp()
            if self.mask == "causal" and self.temperature is None:
                scores = scores.masked_fill(mask < 0, -torch.inf)
            else:
                scores = scores if mask is None else scores + mask
            shares = F.dropout(scores.softmax(-1), 0.1, training=self.training)
            if self.by == "by sums":
                heads = torch.einsum("bhij,bhjd->bhid", shares, v.expand(*shares.shape[:2], *v.shape[2:]))
            else:
                heads = torch.matmul(shares, v)
        merged = heads.transpose(1, 2)
        if self.merges == "flatten":
            merged = merged.flatten(2)
        elif self.merges == "contiguous":
            merged = merged.contiguous().view(x.shape[0], x.shape[1], -1)
        else:
            merged = merged.reshape(*x.shape[:2], self.project.heads * self.project.value)
        return self.out(merged)


class OfTorch(nn.Module):
    """torch's own attention, on tokens first or behind."""

    def __init__(self, draw, width, heads):
        super().__init__()
        self.batch_first, self.need_weights = draw.random() < 0.5, draw.random() < 0.5
        self.inner = nn.MultiheadAttention(width, heads, bias=draw.random() < 0.7, batch_first=self.batch_first)

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        x, _ = self.inner(x, x, x, need_weights=self.need_weights)
        return x if self.batch_first else x.transpose(0, 1)


class Block(nn.Module):
    """A block of a transformer."""

    def __init__(self, draw, width, length):
        super().__init__()
        heads = draw.choice([1, 2, 3, 4])
        while width % heads:
            heads -= 1
        self.attend = OfTorch(draw, width, heads) if draw.random() < 0.3 else Attention(draw, width, heads, length)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.first, self.second = nn.Linear(width, 10), nn.Linear(10, width)
        self.act = draw.choice([F.gelu, torch.relu, F.silu])
        self.is_post = draw.random() < 0.4

    def forward(self, x):
        if self.is_post:
            x = self.norms[0](x + self.attend(x))
            return self.norms[1](x + self.second(self.act(self.first(x))))
        x = x + self.attend(self.norms[0](x))
        return x + self.second(self.act(self.first(self.norms[1](x))))


class RandomTransformer(nn.Module):
    """A transformer drawn from a seed, on inputs (N, up to 6 tokens, 5)."""

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        width = draw.choice([8, 12])
        self.embed = nn.Linear(5, width)
        self.blocks = nn.ModuleList(Block(draw, width, 6) for _ in range(draw.randint(1, 3)))
        if draw.random() < 0.2:  # a block that runs twice
            self.blocks.append(self.blocks[0])
        self.head = nn.Linear(width, 3)
        for parameter in self.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, 0.3, 0.5)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))

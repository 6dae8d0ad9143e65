"""Functions in steps that can be watched one by one: multi-head attention, gated linear units, sums of products."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .einsum import product_in_steps

SPENT = (0, 0)  # shape of parameters that a slim network keeps by name only, since nothing reads them
_SIGNATURE = signature(functional.multi_head_attention_forward)


def in_steps(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """Return a function that computes the same as a call by functions that have a rule; None for most calls.

    Attention with extra keys, or with projections of different widths, is not taken apart, nor is an unbatched one.
    """
    make = _STEPS.get(function)
    return None if make is None else make(*args, **kwargs)


def _attended(*args: Any, **kwargs: Any) -> Callable[[], Any] | None:
    """Multi-head attention in steps."""
    given = _SIGNATURE.bind(*args, **kwargs)
    given.apply_defaults()
    about = given.arguments
    unusual = ("bias_k", "bias_v", "add_zero_attn", "use_separate_proj_weight", "static_k", "static_v")
    is_plain = all(about[name] is None or about[name] is False for name in unusual)
    return partial(_steps, **about) if is_plain and about["query"].ndim == 3 else None


def _fused(
    query: Tensor, key: Tensor, value: Tensor, *args: Any, enable_gqa: bool = False, **kwargs: Any
) -> Callable[[], Tensor] | None:
    """Fused attention whose keys and values have fewer heads than its queries, which share them."""
    if not enable_gqa:
        return None

    def steps() -> Tensor:
        k, v = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        return functional.scaled_dot_product_attention(query, k, v, *args, **kwargs)

    return steps


def _joined(tensors: Any, dim: int = 0, **kwargs: Any) -> Callable[[], Tensor] | None:
    """A concatenation without its empty tensors, such as a cache of keys that holds nothing yet."""
    filled = [x for x in tensors if x.numel() or x.shape == SPENT]
    if len(filled) in (0, len(tensors)) or kwargs:
        return None
    return filled[0].clone if len(filled) == 1 else lambda: torch.cat(filled, dim)


def _added_products(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1, out: Tensor | None = None
) -> Callable[[], Tensor] | None:
    """The sum of a tensor and products of matrices."""
    return None if out is not None else lambda: input * beta + torch.matmul(batch1, batch2) * alpha


def _like(function: Callable[..., Any]) -> Callable[[Tensor, Tensor], Callable[[], Tensor]]:
    """What gives a tensor the shape of another one, with that shape written out."""
    return lambda x, other: lambda: function(x, other.shape)


def _sum_with_product(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1, out: Tensor | None = None
) -> Callable[[], Any] | None:
    """A linear layer whose weight has its inputs first, as in GPT-2; None for any other sum with a product."""
    is_linear = beta == alpha == 1 and out is None and input.ndim == 1 and len(input) == mat2.shape[1]
    return (lambda: functional.linear(mat1, mat2.t(), input)) if is_linear else None


def _gated_unit(input: Tensor, dim: int = -1) -> Callable[[], Tensor]:
    """The first half of the channels, scaled by the sigmoid of the second."""

    def steps() -> Tensor:
        first, second = input.chunk(2, dim)
        return first * torch.sigmoid(second)

    return steps


def _steps(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool,
    key_padding_mask: Tensor | None,
    need_weights: bool,
    attn_mask: Tensor | None,
    average_attn_weights: bool,
    is_causal: bool,
    embed_dim_to_check: int,
    **unused: Any,
) -> tuple[Tensor, Tensor | None]:
    """Multi-head attention of inputs (length, N, width), as ``torch.nn.functional`` defines it."""
    width = embed_dim_to_check // num_heads
    if query is key and key is value:
        packed = functional.linear(query, in_proj_weight, in_proj_bias)
        q, k, v = packed.unflatten(-1, (3, num_heads, width)).permute(2, 1, 3, 0, 4).unbind(0)
    else:
        weights = in_proj_weight.chunk(3)
        biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        q, k, v = (
            functional.linear(x, weight, bias).unflatten(-1, (num_heads, width)).permute(1, 2, 0, 3)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
    causal_only = is_causal and key_padding_mask is None and not need_weights
    mask = None if causal_only else _merged(attn_mask, key_padding_mask, num_heads, query)
    dropout_p = dropout_p if training else 0.0
    shares = None
    if need_weights:
        scores = torch.matmul(q * width**-0.5, k.transpose(-2, -1))
        shares = torch.softmax(scores if mask is None else scores + mask, -1)
        shares = functional.dropout(shares, dropout_p) if dropout_p else shares
        heads = torch.matmul(shares, v)
    else:
        heads = functional.scaled_dot_product_attention(q, k, v, mask, dropout_p, causal_only, scale=width**-0.5)
    output = functional.linear(heads.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    return output, shares.mean(1) if shares is not None and average_attn_weights else shares


def _merged(attn_mask: Tensor | None, padding: Tensor | None, num_heads: int, query: Tensor) -> Tensor | None:
    """The sum of both masks as numbers that are added to scores (N, heads, length, length); None if there is none."""
    parts = []
    if attn_mask is not None:
        parts.append(attn_mask.unflatten(0, (-1, num_heads)) if attn_mask.ndim == 3 else attn_mask)
    if padding is not None:
        parts.append(padding[:, None, None])
    added = [
        torch.zeros_like(part, dtype=query.dtype).masked_fill(part, -torch.inf) if part.dtype == torch.bool else part
        for part in parts
    ]
    return None if not added else added[0] if len(added) == 1 else added[0] + added[1]


_STEPS: dict[Callable[..., Any], Callable[..., Callable[[], Any] | None]] = {
    functional.multi_head_attention_forward: _attended,
    functional.scaled_dot_product_attention: _fused,
    functional.glu: _gated_unit,
    torch.einsum: product_in_steps,
    **dict.fromkeys((torch.addmm, Tensor.addmm), _sum_with_product),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm), _added_products),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _joined),
    Tensor.type_as: lambda x, other: lambda: x.to(other.dtype),
    Tensor.view_as: _like(Tensor.view),
    Tensor.reshape_as: _like(Tensor.reshape),
    Tensor.expand_as: _like(Tensor.expand),
}

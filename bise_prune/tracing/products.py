"""Count the multiply-accumulates of products of tensors that belong to no layer, such as those of attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

PRODUCTS = frozenset({
    "matmul", "mm", "bmm", "mv", "addmm", "addmv", "addbmm", "baddbmm", "einsum", "tensordot", "multi_dot",
    "scaled_dot_product_attention", "multi_head_attention_forward",
})  # fmt: skip


def counted_product(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int]:
    """Call a function; its result, and its multiply-accumulates for the whole batch.

    Attention is computed by two products and a softmax, since torch does not see into its fused kernels.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = function(*args, **kwargs)
    return result, counter.get_total_flops() // 2

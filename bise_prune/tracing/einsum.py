"""Products of two tensors that are written as an Einstein sum, by permutations and one matrix product."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def product_in_steps(equation: Any, *operands: Any) -> Callable[[], Tensor] | None:
    """Return a function that computes an Einstein sum of two tensors in steps; None for any other sum.

    Args:
        equation: such as "bhid,bhjd->bhij"; a letter may not occur twice in one term.
        operands: the tensors, or one list of them.
    """
    tensors = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    if not isinstance(equation, str) or len(tensors) != 2 or not all(isinstance(x, Tensor) for x in tensors):
        return None
    terms = _terms(equation.replace(" ", ""), [x.ndim for x in tensors])
    if terms is None:
        return None
    left, right, result = terms
    return lambda: _product(tensors[0], tensors[1], left, right, result)


def _terms(equation: str, ndims: list[int]) -> tuple[str, str, str] | None:
    """The letters of both operands and of the result, with capitals in place of dots; None if they are unusual."""
    inputs, arrow, result = equation.partition("->")
    parts = inputs.split(",")
    if not arrow or len(parts) != 2:
        return None
    free = [letter for letter in "ZYXWVUTSRQPONMLKJIHGFEDCBA" if letter not in equation]
    dots = [ndim - len(part) + 3 if "..." in part else 0 for part, ndim in zip(parts, ndims, strict=True)]
    if max(dots) > len(free):
        return None
    letters = "".join(free[: max(dots)])
    left, right = (
        part.replace("...", letters[len(letters) - count :] if count else "")
        for part, count in zip(parts, dots, strict=True)
    )
    result = result.replace("...", letters)
    usual = all(len(set(term)) == len(term) for term in (left, right, result)) and set(result) <= set(left + right)
    summed = (set(left) ^ set(right)) - set(result)
    return (left, right, result) if usual and not summed else None


def _product(left: Tensor, right: Tensor, first: str, second: str, result: str) -> Tensor:
    """The product by one matrix product, of matrices or of stacks of them.

    Which functions are called depends on the letters alone: in a slim network they may be skipped, on any tensors.
    """
    batch = [letter for letter in result if letter in first and letter in second]
    rows = [letter for letter in result if letter in first and letter not in second]
    columns = [letter for letter in result if letter in second and letter not in first]
    summed = [letter for letter in first if letter in second and letter not in result]
    if not batch and len(columns) <= 1 and len(summed) == 1:  # a linear layer: the rest are rows, as they are
        left = _ordered(left, first, [*rows, *summed])
        product = torch.matmul(left, _ordered(right, second, [*summed, *columns]))
        return _ordered(product, "".join([*rows, *columns]), list(result))
    shape = (*left.shape, *right.shape)
    left = _grouped(_ordered(left, first, [*batch, *rows, *summed]), len(batch), len(rows), len(summed))
    right = _grouped(_ordered(right, second, [*batch, *summed, *columns]), len(batch), len(summed), len(columns))
    product = torch.matmul(left, right)
    if len(rows) != 1 or len(columns) != 1:
        sizes = dict(zip(first + second, shape, strict=False))
        product = product.reshape([sizes.get(letter, 1) for letter in [*batch, *rows, *columns]])
    return _ordered(product, "".join([*batch, *rows, *columns]), list(result))


def _ordered(x: Tensor, letters: str, wanted: list[str]) -> Tensor:
    """A tensor with its dimensions in another order."""
    order = [letters.index(letter) for letter in wanted]
    if order == list(range(len(letters))):
        return x
    return x.t() if order == [1, 0] else x.permute(order)


def _grouped(x: Tensor, batch: int, rows: int, columns: int) -> Tensor:
    """A stack of matrices, with several dimensions as rows or columns, or none."""
    if rows == columns == 1:
        return x
    shape = x.shape
    middle = batch + rows
    return x.reshape([*shape[:batch], math.prod(shape[batch:middle]), math.prod(shape[middle : middle + columns])])

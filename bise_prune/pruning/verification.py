"""Verification: comparing the outputs of two models in float64, to show that they compute the same function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import ConfigError, VerificationError
from ..tracing import Inputs, evaluating, output_tensors, replace_tensors, run


def verify(
    reference: nn.Module,
    candidate: nn.Module,
    example_inputs: Inputs,
    *,
    batch_sizes: Sequence[int] = (1, 2, 5),
    tolerance: float = 1e-9,
    seed: int = 0,
) -> Verification:
    """Compare all tensors that two models return, in float64, on the example inputs and on noisy copies of them.

    The models are not copied: weights are converted to float64 when a function reads them.

    Args:
        reference: the model that is right, e.g. the masked network; not changed.
        candidate: the model that must equal it, e.g. the slim network; not changed.
        example_inputs: input(s) of both, batch first.
        batch_sizes: batch sizes to compare, each >= 1; samples beyond the example's are noisy copies.
        tolerance: largest absolute difference that passes, relative to the largest absolute output if that is above 1.
        seed: random seed for the noise.

    Returns:
        The largest difference, whether it passes or not (see :attr:`Verification.passed`).

    Raises:
        ConfigError: there is no batch size, or one below 1.
        VerificationError: the models return tensors of different shapes.
    """
    models = (reference, candidate)
    device = next((parameter.device for parameter in reference.parameters()), torch.device("cpu"))

    def compare(inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
        inputs = replace_tensors(inputs, lambda tensor: tensor.to(device))
        with torch.no_grad(), evaluating(reference), evaluating(candidate), InDouble():
            first, second = (output_tensors(run(model, inputs)) for model in models)
        return first, second

    return compare_outputs(
        compare, example_inputs, batch_sizes, tolerance=tolerance, dtype=torch.float64, seed=seed, relative=True
    )


class InDouble(TorchFunctionMode):
    """Mode under which every torch function computes in float64, whatever the precision of its arguments."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = replace_tensors((args, dict(kwargs or {})), _widened)
        args, kwargs = replace_tensors(
            (args, kwargs), lambda dtype: torch.float64 if dtype.is_floating_point else dtype, torch.dtype
        )
        return func(*args, **kwargs)


def _widened(tensor: Tensor) -> Tensor:
    """Return a floating-point tensor in float64, and any other tensor unchanged."""
    return tensor.double() if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor


def compare_outputs(
    outputs: Callable[[Inputs], tuple[Tensor | list[Tensor], Tensor | list[Tensor]]],
    example_inputs: Inputs,
    batch_sizes: Sequence[int],
    *,
    tolerance: float,
    dtype: torch.dtype,
    seed: int = 0,
    relative: bool = False,
) -> Verification:
    """Compare two sets of outputs over batches of several sizes, and return the largest difference.

    Args:
        outputs: function from inputs to the outputs of the reference and of the candidate: tensors or lists of tensors.
        example_inputs: input(s) of both, batch first.
        batch_sizes: batch sizes to compare, each >= 1; samples beyond the example's are noisy copies.
        tolerance: largest absolute difference that passes.
        dtype: precision of floating-point inputs.
        seed: random seed for the noise.
        relative: whether the tolerance is relative to the largest absolute output of the reference if that is above 1.

    Raises:
        ConfigError: there is no batch size, or one below 1.
        VerificationError: the outputs have different shapes.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise ConfigError(f"batch_sizes = {tuple(batch_sizes)}: expected at least one size, each >= 1")
    generator = torch.Generator().manual_seed(seed)
    error = scale = 0.0
    for size in batch_sizes:
        pair = outputs(_resized(example_inputs, size, dtype, generator))
        references, candidates = ([part] if isinstance(part, Tensor) else part for part in pair)
        shapes = [[tuple(tensor.shape) for tensor in part] for part in (references, candidates)]
        if shapes[0] != shapes[1]:
            raise VerificationError(
                f"the models disagree on the shape of what they return: {shapes[0]}, {shapes[1]}; nothing was exported"
            )
        for reference, candidate in zip(references, candidates, strict=True):
            if not reference.is_floating_point() or not reference.numel():
                continue
            difference = float((reference - candidate).abs().max())
            error = max(error, difference) if difference == difference else float("nan")
            scale = max(scale, float(reference.abs().max()))
            if error != error:
                break
        if error != error:
            break
    bound = tolerance * max(1.0, scale) if relative else tolerance
    return Verification(error, scale, bound, tuple(batch_sizes), str(dtype).removeprefix("torch."))


def require(verification: Verification, what: str) -> Verification:
    """Return a verification that passed, and raise an error otherwise.

    Args:
        verification: the verification.
        what: beginning of the error message.

    Raises:
        VerificationError: it did not pass.
    """
    if not verification.passed:
        raise VerificationError(
            f"{what}: logits differ by {verification.max_abs_error:.3g} in {verification.dtype}, "
            f"allowed {verification.tolerance:.3g}; nothing was exported"
        )
    return verification


def _resized(inputs: Inputs, size: int, dtype: torch.dtype, generator: torch.Generator) -> Any:
    """Return inputs of another batch size: samples are repeated, and those beyond the example's get noise."""
    if isinstance(inputs, Mapping):
        return {name: _resized(value, size, dtype, generator) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(_resized(value, size, dtype, generator) for value in inputs)
    if not isinstance(inputs, Tensor) or not inputs.ndim:
        return inputs
    inputs = inputs.detach().cpu()
    rows = inputs[torch.arange(size) % len(inputs)]
    if not rows.is_floating_point():
        return rows
    rows = rows.to(dtype)
    noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64).to(dtype)
    fresh = torch.arange(size) >= len(inputs)
    scale = float(inputs.double().std()) if inputs.numel() > 1 else 1.0
    return rows + noise * scale * fresh.view(-1, *[1] * (rows.ndim - 1)).to(dtype)


@dataclass(frozen=True)
class Verification:
    """The difference between two models that must return the same.

    Attributes:
        max_abs_error: largest absolute difference between two entries of the outputs; NaN if a difference is NaN.
        max_abs_logit: largest absolute entry of the reference's outputs, for scale.
        tolerance: largest error that passes.
        batch_sizes: batch sizes that were compared.
        dtype: precision of the comparison, e.g. "float64".
    """

    max_abs_error: float
    max_abs_logit: float
    tolerance: float
    batch_sizes: tuple[int, ...]
    dtype: str

    @property
    def passed(self) -> bool:
        """Whether the error is a number within the tolerance."""
        return self.max_abs_error <= self.tolerance

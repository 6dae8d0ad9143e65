"""Modules' own account of their widths."""

from __future__ import annotations

from torch import Tensor, nn


def declare_widths(module: nn.Module, groups: int | None = None) -> None:
    """Make a module's own account of its widths agree with its weights.

    Args:
        module: any module; those without widths are left alone.
        groups: of a convolution, if they have changed.
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        module.groups = groups or module.groups
        first, second = module.weight.shape[:2]
        inputs, outputs = (first, second * module.groups) if module.transposed else (second * module.groups, first)
        module.in_channels, module.out_channels = inputs, outputs
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        tensor = module.running_mean if module.running_mean is not None else module.weight
        module.num_features = len(tensor) if isinstance(tensor, Tensor) else module.num_features
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()

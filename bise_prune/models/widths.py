"""Keep the width attributes of modules, such as ``in_channels``, consistent with their weights."""

from __future__ import annotations

from torch import Tensor, nn


def declare_widths(module: nn.Module, groups: int | None = None) -> None:
    """Set a module's width attributes, such as ``in_channels`` and ``out_features``, to the shape of its weight.

    Args:
        module: any module; modules without widths are not changed.
        groups: new number of groups of a convolution or group norm, if it has changed.
    """
    weight = module._parameters.get("weight")  # there is none if it is computed from others
    if weight is not None and not weight.numel():
        return  # another layer holds what was made of it
    if isinstance(module, nn.modules.conv._ConvNd):
        module.groups = groups or module.groups
        if weight is None:
            return
        first, second = weight.shape[:2]
        inputs, outputs = (first, second * module.groups) if module.transposed else (second * module.groups, first)
        module.in_channels, module.out_channels = inputs, outputs
    elif isinstance(module, nn.Linear) and weight is not None:
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Embedding) and weight is not None:
        module.embedding_dim = weight.shape[1]
    elif type(module).__name__ == "Conv1D" and weight is not None:  # the linear layers of GPT-2 in transformers
        module.nx, module.nf = weight.shape  # type: ignore[assignment]
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        tensor = module.running_mean if module.running_mean is not None else module.weight
        module.num_features = len(tensor) if isinstance(tensor, Tensor) else module.num_features
    elif isinstance(module, nn.LayerNorm) and weight is not None:
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = groups or module.num_groups
        module.num_channels = module.num_channels if weight is None else len(weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()

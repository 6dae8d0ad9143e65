"""Surgery: cutting the weights of every layer to the channels of a layout, on a copy of the network."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..channels import Layout, Lowering
from ..channels.analysis import offset
from ..channels.edited_model import RewiredModel
from ..channels.folding import folded_inputs
from ..models.widths import declare_widths
from ..tracing import SPENT, Call


def cut(model: nn.Module, layout: Layout, lowering: Lowering) -> nn.Module:
    """Return a copy of ``model``, in eval mode, that contains only the channels of ``layout``.

    The copy has the class of ``model`` if there are no edits of function calls. Weights that constants were folded into
    are float64, so that the result can be compared exactly; the caller casts them.

    Args:
        model: the dense network; never changed.
        layout: the channels that the slim network contains.
        lowering: its edits of function calls.
    """
    memo: dict[int, object] = {id(model.get_submodule(name)): nn.Identity() for name in layout.dead}
    changes = _new_tensors(model, layout)
    for name in changes:  # tensors that are replaced below are not copied first
        owner, _, leaf = name.rpartition(".")
        tensor = getattr(model.get_submodule(owner), leaf)
        if isinstance(tensor, Tensor):
            memo[id(tensor)] = tensor
    slim = copy.deepcopy(model, memo).eval()
    for name, tensor in changes.items():
        owner, _, leaf = name.rpartition(".")
        _put(slim.get_submodule(owner), model.get_submodule(owner), leaf, tensor)
    for name in {name.rpartition(".")[0] for name in changes}:
        declare_widths(slim.get_submodule(name))
    for calls in layout.trace.calls_by_layer.values():
        if (groups := _groups(layout, calls[0])) is not None:
            declare_widths(slim.get_submodule(calls[0].module), groups)
    if not lowering.edits:
        return slim
    return RewiredModel(slim, lowering.edits, lowering.totals, layout.trace.as_exported)


def _new_tensors(model: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """Return the new content of every parameter and buffer that changes, by name."""
    changes: dict[str, Tensor] = {}
    for name, uses in layout.trace.calls_by_layer.items():
        if name in layout.dead or len({call.function == "embedding" for call in uses}) > 1:
            continue
        first, fold = uses[0], layout.fold_of(name)
        rows = layout.present[first.outputs[0]]
        for spent in () if fold is None else fold.spent:
            changes[spent] = torch.empty(SPENT, dtype=torch.float64)
        if not bool(rows.any()):
            continue  # the calls of the layer are skipped
        silent = torch.stack([layout.silent(call) for call in uses]).all(0)
        if first.kind == "mixing":
            changes.update(_cut_mixing(model, layout, uses, rows, silent))
        elif first.weights is not None:
            cuts = fold is not None or not bool(rows.all()) or bool(silent.any())
            tensors = [(origin.name, origin.tensor(model)) for origin in first.weights.origins if cuts]
            changes.update({leaf: _rows(tensor, rows, silent) for leaf, tensor in tensors if tensor is not None})
        elif not (bool(rows.all()) and not bool(silent.any())):
            layer = model.get_submodule(name)
            for leaf, tensor in [*layer._parameters.items(), *layer._buffers.items()]:
                if tensor is not None and tensor.ndim and len(tensor) == len(rows):
                    changes[f"{name}.{leaf}"] = _rows(tensor, rows, silent if leaf in ("weight", "bias") else None)
            if first.function == "prelu" and f"{name}.weight" in changes:  # slopes are never set to zero
                changes[f"{name}.weight"] = layer.get_parameter("weight").detach()[rows]
    for value in layout.trace.values:
        if value.parameter is not None and not bool(layout.present[value.index].all()) and value.compact is not None:
            owner, _, leaf = value.parameter.rpartition(".")
            tensor = getattr(model.get_submodule(owner), leaf).detach()
            dim = value.dim
            if dim is not None and bool(layout.present[value.index].any()):
                kept = layout.present[value.index].nonzero().flatten().to(tensor.device)
                changes[value.parameter] = tensor.index_select(dim, kept)
    return changes


def _rows(tensor: Tensor, rows: Tensor, silent: Tensor | None) -> Tensor:
    """Return the kept rows of a tensor, with zeros in those that are silent."""
    result = tensor.detach()[rows.to(tensor.device)]
    if silent is not None and bool(silent.any()):
        result = result.clone()
        result[silent[rows].to(tensor.device)] = 0
    return result


def _cut_mixing(model: nn.Module, layout: Layout, uses: list[Call], rows: Tensor, silent: Tensor) -> dict[str, Tensor]:
    """Return the new weight and additive bias of a convolution or linear layer, as far as they change."""
    call = uses[0]
    operand = call.operands[0]
    assert operand is not None and call.weights is not None
    weight, own = call.weights.of(model), call.weights.bias_of(model)
    bias = own
    columns = layout.present[operand]
    size = weight.shape[0] if call.transposed else weight.shape[1] * call.groups
    if call.whole:
        columns = torch.ones(size, dtype=torch.bool)
        constant, folded = torch.full((size,), float("nan")), torch.zeros(size, dtype=torch.bool)
    else:
        constant = layout.analysis.constant[operand]
        folded = folded_inputs(call, uses, layout.analysis)
    result: dict[str, Tensor] = {}
    additive = torch.where(folded, constant, 0.0)
    if bool((additive != 0).any()):
        shift = offset(model, call, additive)
        bias = shift.to(weight.device) + (0.0 if bias is None else bias.detach().double())
    muted = folded & columns
    carried: Tensor | None = None
    if call.index in layout.carriers:
        carrier = layout.carriers[call.index]
        loads = torch.where(~constant.isnan() & ~folded, constant, 0.0)
        taps = weight.detach().transpose(0, 1) if call.transposed else weight.detach()
        carried = torch.tensordot(taps.double(), loads.to(weight.device), dims=([1], [0])) / constant[carrier]
        muted = muted | (loads != 0) & columns & (torch.arange(size) != carrier)
    changed = not bool(rows.all()) or not bool(columns.all()) or bool(muted.any()) or bool(silent.any())
    changed |= layout.fold_of(call.layer or "") is not None
    if changed or carried is not None:
        name = call.weights.weight.name
        result[name] = _cut_weight(weight.detach(), call, rows, columns, muted, silent, carried, layout)
    if bias is not None and call.weights.bias is not None and (changed or bias is not own):
        result[call.weights.bias.name] = _rows(bias, rows, silent)
    return result


def _cut_weight(
    weight: Tensor,
    call: Call,
    rows: Tensor,
    columns: Tensor,
    muted: Tensor,
    silent: Tensor,
    carried: Tensor | None,
    layout: Layout,
) -> Tensor:
    """Return the kept rows and columns of a weight, with zeros for silent rows and muted columns."""
    device = weight.device
    rows, columns, muted, silent = (mask.to(device) for mask in (rows, columns, muted, silent))
    if call.groups == 1:
        oriented = weight.transpose(0, 1) if call.transposed else weight
        if carried is not None:
            oriented = oriented.to(torch.float64, copy=True)
            oriented[:, layout.carriers[call.index]] = carried
        result = oriented[rows][:, columns]
        result[:, muted[columns]] = 0
        result[silent[rows]] = 0
        return (result.transpose(0, 1) if call.transposed else result).contiguous()
    parts = []
    per_in, per_out = len(columns) // call.groups, len(rows) // call.groups
    for group in range(call.groups):
        inputs = slice(group * per_in, (group + 1) * per_in)
        outputs = slice(group * per_out, (group + 1) * per_out)
        if not bool(columns[inputs].any()):
            continue
        block = weight[inputs].transpose(0, 1) if call.transposed else weight[outputs]
        block = block[rows[outputs]][:, columns[inputs]]
        block[:, muted[inputs][columns[inputs]]] = 0
        block[silent[outputs][rows[outputs]]] = 0
        parts.append(block.transpose(0, 1) if call.transposed else block)
    return torch.cat(parts).contiguous()


def _put(module: nn.Module, dense: nn.Module, leaf: str, tensor: Tensor) -> None:
    """Replace a parameter or buffer of a module."""
    old = dense._parameters.get(leaf)
    tensor = tensor.clone() if tensor.is_inference() or tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
    if leaf in dense._parameters:
        reference = old if old is not None else dense._parameters.get("weight")
        trains = reference.requires_grad if reference is not None else True
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=trains)
    else:
        module._buffers[leaf] = tensor


def _groups(layout: Layout, call: Call) -> int | None:
    """Return how many groups of a grouped convolution or norm stay; None for other layers, or if nothing stays."""
    operand = call.operands[0]
    if call.kind == "normalising" and bool((there := layout.present[call.outputs[0]]).any()):
        return int(there.view(call.groups, -1).any(1).sum())
    if call.groups == 1 or operand is None or call.whole or not bool(layout.present[call.outputs[0]].any()):
        return None
    if call.kind == "channelwise":
        return int(layout.present[call.outputs[0]].sum())
    return int(layout.present[operand].view(call.groups, -1).any(1).sum())

"""The plan as a file."""

import dataclasses
import json

import pytest
import torch
from cases import images, network, random_masks, randomise, share_masks, torchvision_network
from torch import nn

from bise_prune import MaskSet, PruningPlan, gate_sites, prune
from bise_prune.errors import PruningError, VerificationError


@pytest.mark.parametrize(
    "options", [{"joins": "expand"}, {"joins": "intersection", "round_to": 4, "round_fill": "best"}]
)
def test_a_plan_is_carried_out_again(tmp_path, options):
    model, inputs = network("resnet"), images()
    first = prune(model, random_masks(model, inputs, "paper"), inputs, **options)
    first.plan.save(tmp_path / "plan.json")
    plan = PruningPlan.load(tmp_path / "plan.json")
    again = prune(model, plan, inputs)
    assert again.plan.as_dict() | {"rounding": {}} == first.plan.as_dict() | {"rounding": {}}
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])
    assert torch.equal(again.model(inputs), first.model(inputs))


def test_a_plan_can_be_read_by_people(tmp_path):
    model, inputs = network("resnet"), images()
    masks = {site.name: torch.ones(site.num_channels) for site in gate_sites(model, inputs, "paper")}
    masks["blocks.0.conv2"][:5] = -1  # the stem has them open before, the next block after
    masks["blocks.2.conv1"][7] = -1
    prune(model, MaskSet(masks), inputs, joins="intersection").plan.save(tmp_path / "plan.json")
    about = json.loads((tmp_path / "plan.json").read_text())
    assert about["layers"]["blocks.2.conv1"]["outputs"] == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert about["layers"]["blocks.2.conv2"]["inputs"] == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert about["sites"]["blocks.2.conv1"] == {"kept": [0, 1, 2, 3, 4, 5, 6, 8, 9], "of": 10}
    assert about["closed_but_kept"] == {"blocks.0.conv2": {"a tensor that add joins has it open": [0, 1, 2, 3, 4]}}
    assert about["edits"] == ["relu number 3: 5 of 6 channels multiplied by zero"]
    assert about["params"]["slim"] < about["params"]["dense"] and about["joins"] == "intersection"


def test_a_plan_for_other_weights_is_refused(tmp_path):
    model, inputs = network("resnet"), images()
    plan = prune(model, random_masks(model, inputs, "paper"), inputs).plan
    other = network("resnet")
    with torch.no_grad():
        other.head.bias[0] += 1
    with pytest.raises(PruningError, match="the plan was made for other weights"):
        prune(other, plan, inputs)


def test_a_plan_that_was_changed_is_refused():
    model, inputs = network("resnet"), images()
    plan = prune(model, random_masks(model, inputs, "paper"), inputs, joins="expand").plan
    kept = {name: mask.clone() for name, mask in plan.keep.items()}
    kept["blocks.2.conv1"][:] = True
    with pytest.raises(VerificationError, match="do not follow from its masks"):
        prune(model, dataclasses.replace(plan, keep=kept), inputs)


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"format": "bise-prune plan", "version": 1}', '{"format": "bise-prune plan"}']
)
def test_damaged_plans_are_refused(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(PruningError, match=r"plan\.json"):
        PruningPlan.load(tmp_path / "plan.json")
    with pytest.raises(PruningError, match="cannot read the plan"):
        PruningPlan.load(tmp_path / "none.json")


def test_parameters_and_layers_of_the_plan_are_those_of_the_model():
    model, inputs = torchvision_network("mobilenet_v3_small"), images(size=32)
    randomise(model, 1)
    for joins in ("intersection", "expand"):
        result = prune(model, share_masks(model, inputs, 0.5), inputs, joins=joins)
        slim = getattr(result.model, "model", result.model)
        for name, layer in result.plan.layers.items():
            module = slim.get_submodule(name)
            if layer.outputs and isinstance(module, (nn.Conv2d, nn.Linear)):
                assert module.weight.shape[0] == len(layer.outputs)
                if layer.inputs is not None:
                    assert module.weight.shape[1] * getattr(module, "groups", 1) == len(layer.inputs)

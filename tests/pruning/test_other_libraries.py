"""Networks of timm and Hugging Face, where those are installed; benchmarks/removal.py runs many more."""

import pytest
import torch
from cases import slow

from bise_prune import MaskSet, export_onnx, fuse_batchnorm, gate_sites, prune
from bise_prune.channels.edited_model import RewiredModel


def half_closed(model, inputs, placement):
    generator = torch.Generator().manual_seed(0)
    sites = gate_sites(model, inputs, placement)
    return MaskSet({site.name: torch.rand(site.num_channels, generator=generator) - 0.5 for site in sites})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet10t", "test_vit", "test_convnext"])
def test_timm_networks_are_pruned_exactly(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval().double()
    inputs = torch.randn(2, *model.pretrained_cfg["input_size"], dtype=torch.float64)
    result = prune(model, half_closed(model, inputs, "paper"), inputs, joins="expand")
    assert result.verification.max_abs_error < 1e-12 and result.plan.sparsity > 0.1
    fused = fuse_batchnorm(result.model, inputs)
    with torch.no_grad():
        assert torch.allclose(fused(inputs), result.masked(inputs), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("placement", ["all", "tied", "feed-forward", "paper"])
@pytest.mark.parametrize("kind", ["Bert", *slow("DistilBert", "Roberta")])
def test_text_classifiers_are_pruned_exactly(kind, placement):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "num_labels": 2}
    if kind == "DistilBert":
        sizes = {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "num_labels": 2}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval().double()
    tokens = torch.randint(5, 100, (3, 12))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    masks = half_closed(model, inputs, placement)
    result = prune(model, masks, inputs)
    # Attention and, in the paper's placement, layer norms need edits of function calls.
    assert isinstance(result.model, type(model) if placement == "feed-forward" else RewiredModel)
    assert result.plan.sparsity > 0.1
    with torch.no_grad():
        shorter = {name: value[:1, :7] for name, value in inputs.items()}
        for batch in (inputs, shorter):
            assert torch.allclose(result.model(**batch).logits, result.masked(**batch).logits, rtol=0, atol=1e-12)
    macs = prune(model, masks, inputs, target_flops=0.8).plan.macs
    assert macs[1] / macs[0] == pytest.approx(0.8, abs=0.05)  # one of two heads is several points


@pytest.mark.filterwarnings("ignore")
def test_a_dead_attention_of_which_code_asks_the_shape_keeps_its_own():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
    config = transformers.FalconConfig(**sizes, ffn_hidden_size=24, pad_token_id=0)
    model = transformers.FalconForSequenceClassification(config).eval().double()
    tokens = torch.arange(3, 21).view(3, 6)
    inputs = {"input_ids": tokens, "attention_mask": (torch.arange(6) < torch.tensor([[6], [4], [3]])).long()}
    masks = {site.name: torch.ones(site.num_channels) for site in gate_sites(model, inputs)}
    for name in masks:
        if ".h.0." in name and name.endswith("@heads"):
            masks[name] -= 2
        if name.endswith("@zeros"):
            masks[name] = torch.arange(16) % 2 - 0.5
    result = prune(model, MaskSet(masks), inputs, joins="expand", tolerance=1e-10)
    assert result.plan.sparsity > 0.3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
def test_decoders_with_shared_heads_take_any_padding(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 3}
    config = getattr(transformers, f"{kind}Config")(
        **sizes, num_key_value_heads=2, intermediate_size=64, pad_token_id=0
    )
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval().double()
    tokens = torch.arange(3, 21).view(3, 6)
    padded = {"input_ids": tokens, "attention_mask": (torch.arange(6) < torch.tensor([[6], [4], [3]])).long()}
    result = prune(model, half_closed(model, padded, "all"), padded, joins="expand", tolerance=1e-10)
    with torch.no_grad():
        for batch in (padded, {key: value[:1] for key, value in padded.items()}, {"input_ids": tokens[:, :1]}):
            # Its norms are computed in float32.
            assert torch.allclose(result.model(**batch).logits, result.masked(**batch).logits, rtol=0, atol=1e-6)
    assert export_onnx(result.model.float(), tmp_path / "slim.onnx", tuple(padded.values())).passed

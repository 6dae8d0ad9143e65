"""Networks whose forward pass takes other paths for other inputs, as language models do for texts without padding."""

import pytest
import torch
from awkward import masks_for
from torch import nn
from torch.nn import functional as F

from bise_prune import apply_masks, export_onnx, load_slim, prune, save_slim
from bise_prune.errors import ModelError
from bise_prune.tracing import trace


class Attention(nn.Module):
    """Attention whose heads share keys; without a mask it leaves the repetition of keys to torch."""

    def __init__(self, width=16):
        super().__init__()
        self.norm, self.q, self.k, self.v = nn.LayerNorm(width), *(nn.Linear(width, size) for size in (16, 8, 8))
        self.out = nn.Linear(16, width)

    def forward(self, x, mask):
        y = self.norm(x)
        q, k, v = (layer(y).view(*y.shape[:2], -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if mask is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            n, heads, tokens, width = k.shape
            shape = n, heads, 2, tokens, width
            k, v = (z[:, :, None].expand(shape).reshape(n, heads * 2, tokens, width) for z in (k, v))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x + self.out(y.transpose(1, 2).reshape(*x.shape[:2], -1))


class Decoder(nn.Module):
    """A classifier of padded texts that needs no mask if nothing is padded, unless it is exported."""

    def __init__(self):
        super().__init__()
        self.words, self.blocks = nn.Embedding(11, 16), nn.ModuleList([Attention(), Attention()])
        self.up, self.down, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask):
        mask = None
        if torch.compiler.is_exporting() or not bool(attention_mask.all()):
            tokens = input_ids.shape[1]
            mask = torch.ones(tokens, tokens, dtype=torch.bool).tril() & attention_mask.bool()[:, None, None, :]
        x = self.words(input_ids)
        for block in self.blocks:
            x = block(x, mask)
            x = x + self.down(F.gelu(self.up(x)))
        return self.head(x[:, 0])


def texts(*lengths, padded_to):
    ids = torch.arange(len(lengths) * padded_to).view(len(lengths), padded_to) * 7 % 11
    return {"input_ids": ids, "attention_mask": (torch.arange(padded_to) < torch.tensor(lengths)[:, None]).long()}


PADDED, PLAIN, TOKEN = texts(5, 3, padded_to=5), texts(4, 4, 4, padded_to=4), texts(1, padded_to=1)


def decoder():
    torch.manual_seed(0)
    return Decoder().eval()


@pytest.mark.parametrize("example", [PADDED, PLAIN])
@pytest.mark.parametrize("placement", ["tied", "streams", "all"])
def test_a_network_pruned_on_one_path_runs_on_all(example, placement, tmp_path):
    model = decoder().double()
    masks = masks_for(model, example, placement, 0, 0.5)
    assert any("@heads" in name or "@values" in name for name in masks.logits)
    result = prune(model, masks, example, joins="expand", tolerance=1e-10)
    masked = apply_masks(model, masks, example)
    with torch.no_grad():
        for batch in (PADDED, PLAIN, TOKEN):
            assert torch.allclose(result.model(**batch), masked(**batch), rtol=0, atol=1e-10)
    model, slim = model.float(), result.model.float()
    check = export_onnx(slim, tmp_path / "slim.onnx", example, batch_sizes=(1, 3))
    assert check.passed
    save_slim(tmp_path / "slim.safetensors", slim)
    with torch.no_grad():
        loaded = load_slim(tmp_path / "slim.safetensors", model)
        assert all(torch.equal(loaded(**batch), slim(**batch)) for batch in (PADDED, PLAIN, TOKEN))


def test_open_gates_change_nothing_on_any_path():
    model = decoder().double()
    masks = masks_for(model, PADDED, "tied", 0, 0.5)
    for logits in masks.logits.values():
        logits.fill_(1.0)
    with torch.no_grad():
        for batch in (PADDED, PLAIN, TOKEN):
            assert torch.allclose(apply_masks(model, masks, PADDED)(**batch), model(**batch), rtol=0, atol=1e-12)


def test_torch_is_told_of_an_export_only_while_a_pass_runs():
    asked = []

    class Asking(Decoder):
        def forward(self, input_ids, attention_mask):
            asked.append(torch.compiler.is_exporting())
            if len(input_ids) > 2:
                raise ValueError("too many")
            return super().forward(input_ids, attention_mask)

    torch.manual_seed(0)
    model = Asking().eval()
    assert trace(model, PADDED).as_exported and asked == [True]
    result = prune(model, masks_for(model, PADDED, "tied", 0, 0.5), PADDED, joins="expand", batch_sizes=(1, 2))
    assert all(asked)
    with pytest.raises(ValueError, match="too many"):
        result.model(**PLAIN)
    assert not torch.compiler.is_exporting() and not torch.compiler.is_compiling()
    model(**TOKEN)
    assert not asked[-1]


def test_networks_of_images_run_as_they_are():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            assert not torch.compiler.is_compiling()
            return self.head(self.conv(x).relu().mean((2, 3)))

    assert not trace(Asking().eval(), torch.randn(2, 3, 6, 6)).as_exported


def test_code_that_refuses_to_be_exported_runs_as_it_is():
    class Refusing(Decoder):
        def forward(self, input_ids, attention_mask):
            assert not torch.compiler.is_compiling()
            return super().forward(input_ids, attention_mask)

    torch.manual_seed(0)
    model = Refusing().eval()
    assert not trace(model, PLAIN).as_exported
    prune(model, masks_for(model, PLAIN, "tied", 0, 0.5), PLAIN, joins="expand").model(**PLAIN)
    assert not torch.compiler.is_exporting()


def test_a_pass_without_a_gated_call_is_an_error():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(2))

        def forward(self, x):
            y = torch.relu(self.stem(x))
            for expert, chosen in zip(self.experts, (x[:, :1] > 0, x[:, :1] <= 0), strict=True):
                y = y + expert(y) * chosen if bool(chosen.any()) else y
            return self.head(y)

    torch.manual_seed(0)
    model, x = Experts().eval(), torch.randn(6, 4)
    masked = apply_masks(model, masks_for(model, x, "feed-forward", 0, 0.5), x)
    masked(x)
    with pytest.raises(ModelError, match="another path than the traced one: 'relu' number 3, which has a gate"):
        masked(x.abs())

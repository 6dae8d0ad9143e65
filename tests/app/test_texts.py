"""A text classifier from its folder."""

import csv
import json
import random

import pytest
import torch
from cases import slow
from projects import FAST, fails

from bise_prune import load_slim
from bise_prune.app import cli
from bise_prune.data import BatchLoader, load_data
from bise_prune.data.text import load_tokenizer
from bise_prune.tuning.vanilla import train_vanilla


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("placement", ["tied", *slow("paper")])
def test_a_text_classifier_from_its_folder(tmp_path, capsys, placement):
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "red", "blue", "car", "tree", "very"]
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, num_labels=2,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    generator = random.Random(0)
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "identity_any"])
        for i in range(240):
            label, aligned = i % 2, generator.random() < 0.8
            bias = label if aligned else 1 - label
            filler = [generator.choice(["car", "tree", "very"]) for _ in range(generator.randrange(1, 8))]
            writer.writerow([" ".join([("bad", "good")[label], ("red", "blue")[bias], *filler]), label, bias])
    train = load_data(str(tmp_path / "texts.csv"), tokenizer=load_tokenizer(folder)).train
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    train_vanilla(model, BatchLoader(train, 20, shuffle=True), optimizer, epochs=4)
    model.save_pretrained(folder)
    arguments = [
        folder,
        "--data",
        tmp_path / "texts.csv",
        "--output",
        tmp_path / "out",
        *FAST,
        "--placement",
        placement,
    ]
    arguments += ["--half", "--int8", "--format-tolerance", "1", "--triton", tmp_path / "models"]
    assert cli.main([str(a) for a in arguments]) == 0
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert all(check["passed"] for check in record["verification"].values())
    assert [form["precision"] for form in record["formats"]] == ["float32", "float16", "int8"]
    assert all(sample["text"].split()[0] in ("good", "bad") for sample in record["changed_samples"])
    assert "logits,) = session.run(None, tokens)" in (tmp_path / "out" / "README.md").read_text()
    assert "TYPE_INT64" in (tmp_path / "models" / "bert" / "config.pbtxt").read_text()
    assert [group["name"] for group in record["slim"]["groups"]] == ["y=0 b=0", "y=0 b=1", "y=1 b=0", "y=1 b=1"]
    slim = load_slim(tmp_path / "out" / "slim.safetensors")
    tokens = torch.tensor([[2, 5, 7, 3]])
    assert slim(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits.shape == (1, 2)
    capsys.readouterr()
    again = [folder, "--data", tmp_path / "texts.csv", "--masks", tmp_path / "out" / "masks.safetensors", "--round-to"]
    again += ["1", "--batch-size", "20", "--output", tmp_path / "tuned", "--tune", "all", "--finetune", "1"]
    wrong = fails(capsys, *again, "--finetune-augment", "flip", code=2)
    assert "'flip' changes images, and the inputs are none" in wrong and not (tmp_path / "tuned").exists()
    assert cli.main([str(a) for a in again]) == 0
    record = json.loads((tmp_path / "tuned" / "report.json").read_text())
    assert record["ladder"]["delivered"] == "all" and len(record["finetuning"]["history"]) == 2

"""The model card has a head the hub reads, and says what was done."""

import yaml

from bise_prune.report.card import write_card


def test_the_model_card_has_a_head_the_hub_reads(ran):
    from huggingface_hub import ModelCard

    project, record = ran
    text = (project / "out" / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    (entry,) = head["model-index"]
    figures = {metric["name"]: metric["value"] for metric in entry["results"][0]["metrics"]}
    assert figures["worst-group accuracy"] == round(record["slim"]["worst_group_accuracy"], 4)
    card = ModelCard(text)
    assert card.data.library_name == "bise-prune" and card.data.pipeline_tag == "image-classification"
    for words in (
        "## Intended use",
        "## Limits",
        "no legal advice",
        "learned only the spurious attribute",
        "slim.onnx",
    ):
        assert words in text
    assert all(f"| {group['name']}" in text for group in record["fairness"]["groups"])
    assert str(project) not in text and "{{" not in text and "None" not in text.replace("run(None", "")


def test_a_card_says_what_was_done_and_means_what_it_says(ran, tmp_path):
    _, record = ran
    assert "before finetuning" not in (ran[0] / "out" / "README.md").read_text()
    tuned = {**record, "finetuning": {"epoch": 1, "history": [{}] * 3}, "identification": {"epochs": 3}}
    tuned["config"] = {**record["config"], "finetune": {"epochs": 2}, "identification_epochs": 3}
    tuned["data"] = {**record["data"], "classes": ["a|b", "<b>", "x\n[y](z)"]}
    write_card(tmp_path / "card.md", tuned)
    text = (tmp_path / "card.md").read_text()
    assert "then finetuned (epoch 1 of 2)" in text and "before finetuning, the slim network equals" in text
    assert "by a model trained for 3 epochs" in text
    assert r"a\|b, \<b\>, x \[y\](z)" in text

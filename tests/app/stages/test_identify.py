"""Pseudo labels of a run, beside the true ones where those are known."""

import json
import shutil

from projects import FAST

from bise_prune.app import cli


def test_pseudo_labels_of_the_split_that_is_reported_are_its_own_measure(project, tmp_path, capsys):
    rows = (project / "data" / "metadata.csv").read_text().replace(",test,", ",train,")
    shutil.copytree(project / "data", tmp_path / "data")
    (tmp_path / "data" / "metadata.csv").write_text(rows)
    arguments = [project / "net.pt", "--data", tmp_path / "data", "--output", tmp_path / "out", *FAST, "--unsupervised"]
    assert cli.main([str(a) for a in [*arguments, "--json"]]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["evaluated_on"] == "val"
    (bias,) = record["fairness"]["slim"]["biases"]
    pseudo = {group["name"]: group["n"] for group in record["fairness"]["groups"]}
    assert bias["n_aligned"] == sum(n for name, n in pseudo.items() if name[2] == name[-1])

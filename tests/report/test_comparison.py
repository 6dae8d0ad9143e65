"""Runs side by side."""

import json

from projects import FAST, Page, fails, write_project

from bise_prune.app import cli


def test_runs_side_by_side(ran, tmp_path, capsys):
    project, record = ran
    wide = write_project(tmp_path, widths=(64, 64))
    arguments = [wide / "net.pt", "--data", project / "data", "--criterion", "magnitude", "--targets", "0.1,0.2", *FAST]
    assert cli.main([str(a) for a in [*arguments, "--output", tmp_path / "frontier"]]) == 0
    assert Page((tmp_path / "frontier" / "frontier.html").read_text()).open == []
    capsys.readouterr()
    page = tmp_path / "page.html"
    assert cli.main(["compare", str(project / "out"), str(tmp_path / "frontier"), "--output", str(page), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [
        "net.pt, dense", "out", "net.pt, dense", "frontier/sparsity-0.1", "frontier/sparsity-0.2",
    ]  # fmt: skip
    assert rows[1]["unbiased_accuracy"]["value"] == record["slim"]["unbiased_accuracy"]
    for row in rows:
        better = [r for r in rows if r["flops"] <= row["flops"] and r is not row
                  and r["unbiased_accuracy"]["value"] >= row["unbiased_accuracy"]["value"]
                  and (r["flops"], r["unbiased_accuracy"]) != (row["flops"], row["unbiased_accuracy"])]  # fmt: skip
        assert row["on_front"] == (not better)
    found = Page(page.read_text())
    assert (
        found.open == [] and len(found.ids) == len(set(found.ids)) and "frontier/sparsity-0.2" in "".join(found.words)
    )
    assert cli.main(["compare", str(project / "out")]) == 0
    assert "net.pt, dense" in capsys.readouterr().out
    assert "exists already" in fails(capsys, "compare", project / "out", "--output", page, code=2)
    assert "holds neither a report.json nor a frontier.json" in fails(capsys, "compare", tmp_path, code=2)
    (tmp_path / "report.json").write_text("[]")
    assert "is no report with the figures to compare" in fails(capsys, "compare", tmp_path, code=2)
    (tmp_path / "report.json").write_text(json.dumps({**record, "schema_version": 9}))
    assert "is of report version 9, this is 1" in fails(capsys, "compare", tmp_path, code=2)
    (tmp_path / "former").mkdir()  # a report from before latencies at batch 1 were measured
    former = json.loads(json.dumps(record))
    del former["latency_ratio"], former["widths"]
    for name in ("dense", "slim"):
        del former[name]["latency_ms_batch_1"], former[name]["latency_batch_1"]
        former[name]["latency"]["device"] = "cpu"
    (tmp_path / "former" / "report.json").write_text(json.dumps(former))
    runs = [str(tmp_path / "former"), str(project / "out")]
    assert cli.main(["compare", *runs, "--output", str(tmp_path / "both.html")]) == 0
    assert "Latencies are of different devices or runtimes." in capsys.readouterr().out
    (tmp_path / "out").mkdir()
    other = {**record, "sources": {**record["sources"], "data": "another"}, "sparsity": 0.9}
    (tmp_path / "out" / "report.json").write_text(json.dumps(other))
    assert cli.main(["compare", str(project / "out"), str(tmp_path / "out"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows][1::2] == [f"{project.name}/out", f"{tmp_path.name}/out"]
    assert [row["on_front"] for row in rows[:2]] == [row["on_front"] for row in rows[2:]]  # each among its own
    assert cli.main(["compare", str(project / "out"), str(tmp_path / "out")]) == 0
    assert "different data: compare with care" in capsys.readouterr().out

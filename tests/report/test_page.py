"""The report is one page that needs nothing else."""

import re

from projects import Page

from bise_prune.report.page import write_page


def test_the_report_is_one_page_that_needs_nothing_else(ran):
    project, record = ran
    text = (project / "out" / "report.html").read_text()
    page = Page(text)
    assert page.open == [] and page.tables >= 7
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", text) and "fetch(" not in text
    assert len(text) < 1_500_000 and str(project) not in text
    words = " ".join(" ".join(page.words).split())
    for group in record["fairness"]["groups"]:
        assert group["name"] in words
    for warning in record["warnings"]:
        assert warning[1:] in words
    assert f"{100 * record['slim']['unbiased_accuracy']:.1f}" in words
    assert all(form["file"] in words for form in record["formats"])
    changed = {sample["row"] for sample in record["changed_samples"]}
    assert text.count("data:image/png") == len(changed) > 0


def test_a_text_that_looks_like_markup_stays_text(ran, tmp_path):
    _, record = ran
    sample = {**record["changed_samples"][0], "text": "<script>alert(1)</script>"}
    data = {**record["data"], "classes": ["<i>"]}
    spoiled = {**record, "changed_samples": [sample], "warnings": ["<b>&"], "data": data}
    write_page(tmp_path / "page.html", spoiled, {})
    text = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in text and "<i>" not in text.replace("<i style", "") and "<b>" not in text

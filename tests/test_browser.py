"""Pages in headless Chromium: they render, sort, say nothing on the console, and axe-core finds nothing to mend.

They need Debian's chromium and chromium-driver, selenium, and the npm packages axe-core and onnxruntime-web in the
folder that BISE_PRUNE_NODE_MODULES names; .ci/run sees to all of it.
"""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from projects import FAST, tool, write_project

from bise_prune.app import cli
from bise_prune.export.runtime import open_session

selenium = pytest.importorskip("selenium.webdriver")
NODE = Path(os.environ.get("BISE_PRUNE_NODE_MODULES", "/nowhere"))
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium, or no chromedriver"),
    pytest.mark.skipif(not NODE.is_dir(), reason="BISE_PRUNE_NODE_MODULES names no folder"),
]
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage")  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A run, a comparison and a classifying page, below one folder."""
    root = write_project(tmp_path_factory.mktemp("pages"))
    arguments = [
        root / "net.pt",
        "--data",
        root / "data",
        "--output",
        root / "out",
        *FAST,
        "--half",
        "--max-accuracy-drop",
    ]
    assert cli.main([str(a) for a in [*arguments, "1"]]) == 0
    assert cli.main(["compare", str(root / "out"), "--output", str(root / "comparison.html")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        page = tool("browser_page", patch)
        runtime = NODE / "onnxruntime-web" / "dist"
        assert page.main([str(root / "out"), "--runtime", str(runtime), "--output", str(root / "page")]) == 0
        assert page.main([str(root / "out"), "--runtime", str(runtime), "--output", str(root / "page")]) == 2
        assert page.main([str(root), "--runtime", str(runtime), "--output", str(root / "other")]) == 2
        assert page.main([str(root / "out"), "--runtime", str(root), "--output", str(root / "other")]) == 2
    return root


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    yield driver
    driver.quit()


def opened(browser, address, dark=False, width=1200, height=900):
    media = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(address)


def violations(browser):
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; });")
    browser.execute_script((NODE / "axe-core" / "axe.min.js").read_text())
    found = browser.execute_async_script("const done = arguments[0]; axe.run().then(r => done(r));")
    assert len(found["passes"]) > 10
    return [(rule["id"], rule["nodes"][0]["html"]) for rule in found["violations"]]


@pytest.mark.parametrize("page", ["out/report.html", "comparison.html"])
@pytest.mark.parametrize(("dark", "width"), [(False, 1200), (True, 1200), (False, 360)])
def test_pages_are_fit_for_everybody(browser, pages, page, dark, width):
    opened(browser, (pages / page).as_uri(), dark, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width  # tables scroll by themselves
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)"
    )
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height)"
    )
    assert drawn and min(drawn) > 80
    assert violations(browser) == []
    assert browser.get_log("browser") == []
    asked = [entry["message"] for entry in browser.get_log("performance") if 'requestWillBeSent"' in entry["message"]]
    assert asked and all('"url":"file:' in message or '"url":"data:' in message for message in asked)


def test_tables_sort_by_their_headers_and_by_keyboard(browser, pages):
    opened(browser, (pages / "out" / "report.html").as_uri())
    table = "document.querySelector('#subgroups ~ .scroll table')"
    column = f"return [...{table}.tBodies[0].rows].map(row => Number(row.cells[4].dataset.value))"
    before = browser.execute_script(column)
    button = browser.execute_script(f"return {table}.tHead.rows[0].cells[4].querySelector('button')")
    browser.execute_script("arguments[0].focus()", button)
    for key, expected in (("\ue007", sorted(before)), (" ", sorted(before, reverse=True))):  # Enter, then Space
        button.send_keys(key)
        assert browser.execute_script(column) == expected
    states = browser.execute_script(f"return [...{table}.tHead.rows[0].cells].map(c => c.getAttribute('aria-sort'))")
    assert states == [None] * 4 + ["descending"] + [None] * 3
    browser.execute_script(f"{table}.tHead.rows[0].cells[0].querySelector('button').click()")
    names = browser.execute_script(f"return [...{table}.tBodies[0].rows].map(row => row.cells[0].textContent)")
    assert names == sorted(names) and len(names) == len(before)
    assert browser.get_log("browser") == []


def test_details_are_printed(browser, pages):
    opened(browser, (pages / "out" / "report.html").as_uri())
    closed = "return document.querySelectorAll('details:not([open])').length"
    assert browser.execute_script(closed) > 0
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script(closed) == 0
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(closed) > 0


def test_a_dropped_image_is_classified_as_onnxruntime_does(browser, pages, tmp_path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=pages / "page")
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    wait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait(browser, 60)
    says = "return document.getElementById('status').textContent"
    try:
        opened(browser, f"http://127.0.0.1:{server.server_port}/index.html")
        wait.until(lambda b: b.execute_script(says) == "Ready.")
        pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "image.png")
        chooser = browser.execute_script("return document.getElementById('file')")
        chooser.send_keys(str(tmp_path / "image.png"))
        wait.until(lambda b: "%" in b.execute_script(says))
        rows = browser.execute_script(
            "return [...document.querySelectorAll('#rows tr')].map(r => [r.cells[0].textContent, "
            "Number(r.cells[2].dataset.value)])"
        )
        inputs = (pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255 - 0.5) / 0.25
        (logits,) = open_session(pages / "out" / "slim.onnx").run(None, {"input": inputs})
        expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
        assert dict(rows) == {str(i): pytest.approx(float(p), abs=1e-5) for i, p in enumerate(expected)}
        assert violations(browser) == []
        (tmp_path / "text.png").write_text("no image")
        chooser.send_keys(str(tmp_path / "text.png"))
        wait.until(lambda b: "cannot be classified" in b.execute_script(says))
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        server.shutdown()
        server.server_close()

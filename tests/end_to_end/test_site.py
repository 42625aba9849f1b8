"""The site of the documentation: built as `make docs` does, without a warning; every symbol on one page; no link that leads nowhere."""

import html
import json
import re
import subprocess
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tests.end_to_end.site_pages import ROOT, Page, broken_links, built_site
from tests.end_to_end.test_report_in_a_browser import CHROMIUM, FLAGS, NEEDS_CHROMIUM
from tests.limits import LIMIT_S


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return built_site(tmp_path_factory)


def test_is_built_without_a_warning(site):
    log = (site.parent / "log.txt").read_text()
    assert log.startswith("exit code 0\n"), log
    assert "WARNING" not in log


def test_a_symbol_is_on_one_page(site):
    places = Counter(anchor for path in site.rglob("*.html") for anchor in set(Page(path).anchors) if anchor.startswith("bigbatch."))
    assert len(places) > 500
    assert {anchor: number for anchor, number in places.items() if number > 1} == {}


def test_the_card_of_a_method_is_there_once_and_as_it_is_written(site):
    page = re.sub(r"<[^>]+>", "", (site / "methods" / "lars" / "index.html").read_text())
    assert page.count("Formula: for each parameter tensor, with |.| its Euclidean norm,\n ") == 1
    assert page.count("Formula:") == 1


def test_no_link_leads_nowhere(site):
    assert broken_links(site) == []


def test_a_link_that_leads_nowhere_would_be_seen(tmp_path):
    """The guard of the test above."""
    (tmp_path / "a.html").write_text('<h1 id="here">A</h1><a href="#here"></a><a href="#there"></a><a href="b.html"></a><img src="c.png">')
    assert broken_links(tmp_path) == ["a.html: #there", "a.html: b.html", "a.html: c.png"]


def test_every_page_of_docs_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    assert [path.name for path in sorted((ROOT / "docs").glob("*.md")) if f" {path.name}\n" not in navigation] == []


FRAME = '<iframe src="{page}?{width}" width="{width}" height="800"></iframe>'
HARNESS = """<!doctype html><pre id="found"></pre><script>
window.onload = () => {
  const frames = [...document.querySelectorAll("iframe")];
  const wide = frames.map(frame => [frame.getAttribute("src"), frame.contentDocument.documentElement.scrollWidth]);
  document.getElementById("found").textContent = JSON.stringify(wide);
};
</script>"""
"""Each page in a frame of each width, and how wide it wants to be."""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def widths(folder, pages, profile):
    """What each page of a folder says on a browser's console, and which is wider than its frame."""
    (folder / "harness.htm").write_text(HARNESS + "".join(FRAME.format(page=page, width=width) for page in pages for width in (1280, 400)))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", f"http://127.0.0.1:{server.server_port}/harness.htm"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
        server.shutdown()
    (folder / "harness.htm").unlink()
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', shown.stdout)[1]))
    assert len(found) == 2 * len(pages)
    return re.findall(r".*:CONSOLE.*", shown.stderr), [page for page, wide in found if wide > int(page.partition("?")[2])]


@NEEDS_CHROMIUM
def test_no_page_is_wider_than_a_window_or_a_phone(site, tmp_path):
    """And the browser says nothing on its console. A few pages at a time: each frame is a whole page."""
    pages = [f"{path.stem}/index.html" for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "api.md"]
    pages += ["index.html", *(f"{name}/index.html" for name in ("commands", "recipe", "methods", "methods/lars", "studies"))]
    for start in range(0, len(pages), 6):
        assert widths(site, pages[start : start + 6], tmp_path / "profile") == ([], [])


@NEEDS_CHROMIUM
def test_a_page_that_is_too_wide_would_be_seen(tmp_path):
    """The guard of the test above."""
    (tmp_path / "wide.html").write_text('<div style="width: 700px">x</div><script>undefinedFunction()</script>')
    said, wide = widths(tmp_path, ["wide.html"], tmp_path / "profile")
    assert len(said) == 2
    assert wide == ["wide.html?400"]

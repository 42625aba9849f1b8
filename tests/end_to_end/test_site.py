"""The site of the documentation: built as `make docs` does, without a warning; every symbol on one page; no link that leads nowhere."""

from collections import Counter

import pytest
from tests.end_to_end.site_pages import ROOT, Page, broken_links, built_site


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


def test_no_link_leads_nowhere(site):
    assert broken_links(site) == []


def test_a_link_that_leads_nowhere_would_be_seen(tmp_path):
    """The guard of the test above."""
    (tmp_path / "a.html").write_text('<h1 id="here">A</h1><a href="#here"></a><a href="#there"></a><a href="b.html"></a><img src="c.png">')
    assert broken_links(tmp_path) == ["a.html: #there", "a.html: b.html", "a.html: c.png"]


def test_every_page_of_docs_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    assert [path.name for path in sorted((ROOT / "docs").glob("*.md")) if f" {path.name}\n" not in navigation] == []

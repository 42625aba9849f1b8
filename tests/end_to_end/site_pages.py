"""The site as `make docs` builds it, once for all processes of the tests; and what stands in its pages."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock
from tests.limits import LIMIT_S

ROOT = Path(__file__).resolve().parents[2]


def built_site(tmp_path_factory):
    """Folder of the site; what mkdocs said is in `log.txt` beside it, also where it failed."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    shared.mkdir(exist_ok=True)
    with FileLock(shared / "lock"):
        if not (shared / "log.txt").exists():
            environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"}
            command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(shared / "html")]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
            (shared / "log.txt").write_text(f"exit code {done.returncode}\n{done.stderr}{done.stdout}")
    return shared / "html"


class Page(HTMLParser):
    """Anchors and links of one page."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links = [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if "id" in attributes:
            self.anchors.append(attributes["id"])
        if tag == "a" and "name" in attributes:
            self.anchors.append(attributes["name"])
        target = attributes.get("href") or attributes.get("src")
        if target and tag in ("a", "img", "link", "script"):
            self.links.append(target)


def broken_links(site):
    """Of all pages: where each link that leads nowhere stands, and its target; other sites are not asked."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            known = pages.get(target)
            if not target.exists() or (known and parts.fragment and unquote(parts.fragment) not in known.anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken

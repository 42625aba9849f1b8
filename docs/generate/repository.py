"""Documents and files of the repository on the site: which page each becomes, and links to it.

Documents link to each other, and to scripts and results, as on GitHub: relative to the file in which the link stands.
"""

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "studies/README.md": "studies.md",
    "examples/scripts/README.md": "scripts.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "PAPERS.md": "papers.md",
}
"""Documents outside of docs/, and their pages."""
HOMES = {page: document for document, page in PAGES.items()}
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
FENCE = re.compile(r"(^ *```.*?^ *```[^\n]*$|`[^`\n]*`)", re.MULTILINE | re.DOTALL)
LINES = 400
"""Of a file that are shown."""
LANGUAGES = {".py": "python", ".json": "json", ".jsonl": "json", ".sh": "sh", ".yaml": "yaml", ".toml": "toml"}


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Change what is neither a block of code nor code in a line.

    >>> outside_code("a `a` a", str.upper)
    'A `a` A'
    """
    parts = FENCE.split(text)
    return "".join(part if index % 2 else change(part) for index, part in enumerate(parts))


def links(text: str) -> list[str]:
    """All targets of links and images.

    >>> links("[a](b.md#c) `x[0](y)` ![](d.png)")
    ['b.md#c', 'd.png']
    """
    return [found for part in FENCE.split(text)[::2] for found in LINK.findall(part)]


def is_local(target: str) -> bool:
    """Whether a link leads to a file of the repository."""
    return not re.match(r"[a-z]+:|#", target)


def target_path(document: str, target: str) -> str:
    """Path in the repository of what a document links to.

    >>> target_path("docs/check.md", "../benchmarks/a.json#b")
    'benchmarks/a.json'
    """
    return posixpath.normpath(posixpath.join(posixpath.dirname(document), target.partition("#")[0]))


def page_of(path: str) -> str:
    """The page, or image, of the site for a path in the repository.

    >>> page_of("docs/check.md"), page_of("README.md"), page_of("benchmarks/a.json"), page_of("benchmarks")
    ('check.md', 'index.md', 'files/benchmarks/a.json.md', 'files/benchmarks/index.md')
    """
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path in PAGES:
        return PAGES[path]
    return f"files/{path}/index.md" if (ROOT / path).is_dir() else f"files/{path}.md"


def with_links_of_the_site(text: str, document: str) -> str:
    """A document's text with links from its own page to those of the site."""
    here = posixpath.dirname(page_of(document))

    def changed(match: re.Match[str]) -> str:
        target = match[1]
        if not is_local(target):
            return target
        _, mark, anchor = target.partition("#")
        return posixpath.relpath(page_of(target_path(document, target)), here or ".") + mark + anchor

    return outside_code(text, lambda part: LINK.sub(changed, part))


def documents() -> list[str]:
    """Paths of all documents that become pages, but for the table of papers, whose many links are left out on the site."""
    return [*(path for path in PAGES if path != "PAPERS.md"), *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def linked_files() -> Iterator[tuple[str, str]]:
    """Pages of the scripts, results and folders that documents link to: name and text."""
    paths = {target_path(document, link) for document in documents() for link in links((ROOT / document).read_text()) if is_local(link)}
    for path in sorted(paths):
        if page_of(path).startswith("files/"):
            yield page_of(path), _folder(ROOT / path) if (ROOT / path).is_dir() else _file(ROOT / path)


def _folder(path: Path) -> str:
    names = sorted(child.name + "/" * child.is_dir() for child in path.iterdir() if not child.name.startswith(("_", ".")))
    return f"# {path.relative_to(ROOT)}\n\nA folder of the repository:\n\n" + "".join(f"- `{name}`\n" for name in names)


def _file(path: Path) -> str:
    lines = path.read_text().splitlines()
    rest = f"\n{len(lines) - LINES:,} more lines are in the repository.\n" if len(lines) > LINES else ""
    shown = "\n".join(line[:400] for line in lines[:LINES])
    return (
        f"# {path.name}\n\n`{path.relative_to(ROOT)}` in the repository:\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{shown}\n````\n{rest}"
    )

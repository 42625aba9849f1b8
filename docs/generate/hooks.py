"""What mkdocs calls: pages that come from the code, or lie elsewhere in the repository, and the links to them."""

import sys
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parents[1]))

from generate import commands, methods, recipe, repository


def generated() -> Iterator[tuple[str, str]]:
    """Name and text of each page that is not a file in docs/."""
    for document, page in repository.PAGES.items():
        yield page, methods.papers_page() if document == "PAPERS.md" else (repository.ROOT / document).read_text()
    yield from repository.linked_files()
    yield from methods.method_pages()
    yield "recipe.md", recipe.recipe_page()
    yield "commands.md", commands.commands_page()
    yield "environment.md", commands.environment_page()
    yield "exit_codes.md", commands.exit_codes_page()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, text in generated():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links between documents of the repository lead to their pages."""
    name = page.file.src_uri
    if (page.file.generated_by is not None and name not in repository.HOMES) or name == "papers.md":
        return markdown
    return repository.with_links_of_the_site(markdown, repository.HOMES.get(name, f"docs/{name}"))

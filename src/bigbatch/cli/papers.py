"""`bigbatch papers`: which paper lives in which file."""

from typing import Annotated

import typer


def papers(name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show one method's own docstring.")] = None) -> None:
    """List the methods and their papers, or show one method's card."""
    import sys

    from bigbatch.cli.tables import show
    from bigbatch.core.checks import UserError, unknown
    from bigbatch.core.paper import find_papers

    found = find_papers()
    if name is None:
        rows = [[module.removeprefix("bigbatch."), p.method, p.short, p.url] for module, p in found.items()]
        show("Methods and their papers", ["module", "method", "paper", "address"], rows)
        return
    short = {module.removeprefix("bigbatch."): module for module in found}
    matches = [module for key, module in short.items() if name in (key, key.split(".")[-1])]
    if not matches:
        raise UserError(unknown("method", name, sorted({key.split(".")[-1] for key in short})))
    for module in matches:
        typer.echo(f"{module}\n\n{sys.modules[module].__doc__}\n{found[module].title}\n{found[module].url}\n")

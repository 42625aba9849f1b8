"""`bigbatch papers`: which paper lives in which file."""

from dataclasses import asdict
from typing import Annotated

import typer

from bigbatch.cli.display import output


def papers(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show one method's own docstring.")] = None,
    json: output.Json = None,
) -> None:
    """List the methods and their papers, or show one method's card."""
    from bigbatch.cli.display.tables import show
    from bigbatch.core.checks import UserError, unknown
    from bigbatch.core.paper import find_card, find_papers

    output.check(json)
    found = find_papers()
    short = {module.removeprefix("bigbatch."): module for module in found}
    matches = [module for key, module in short.items() if name in (None, key, key.split(".")[-1])]
    if not matches:
        raise UserError(unknown("method", name or "", sorted({key.split(".")[-1] for key in short})))
    if name is None and json != output.STANDARD:
        rows = [[key, found[module].method, found[module].short, found[module].url] for key, module in short.items()]
        show("Methods and their papers", ["module", "method", "paper", "address"], rows)
    elif json != output.STANDARD:
        for module in matches:
            typer.echo(f"{module}\n\n{find_card(module)}\n{found[module].title}\n{found[module].url}\n")
    papers = [{"module": module, **asdict(found[module]), "url": found[module].url} for module in matches]
    output.write_json(json, {"papers": papers})

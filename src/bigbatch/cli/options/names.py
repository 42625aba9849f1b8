"""Options and arguments that are names, which a shell can complete."""

from typing import Annotated

import typer

from bigbatch.core.methods import COMMS, RULES


def task_names(incomplete: str) -> list[str]:
    """Names of shipped recipes that begin so, for the completion of a shell."""
    from bigbatch.recipe import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


TaskName = Annotated[
    str, typer.Argument(metavar="TASK", help="A task of `bigbatch tasks`, or your own as module:Class.", autocompletion=task_names)
]
PlanOf = Annotated[
    str,
    typer.Argument(metavar="TASK|FILE", help="A task with a shipped recipe, or a recipe file (TOML).", autocompletion=task_names),
]
Rule = Annotated[str, typer.Option("--rule", help=f"auto, local, {', '.join(RULES)}.", autocompletion=lambda: ["auto", "local", *RULES])]
CommKind = Annotated[str | None, typer.Option("--comm", help=f"{', '.join(COMMS)}.", autocompletion=lambda: list(COMMS))]

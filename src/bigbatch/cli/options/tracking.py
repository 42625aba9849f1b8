"""`--track`: a tracker that follows a run, the same option for the commands that have one."""

from typing import Annotated

import typer


def _installed(tracker: str | None) -> str | None:
    """Before anything is trained."""
    if tracker is not None:
        from bigbatch.integrations.tracker import check_tracker

        check_tracker(tracker)
    return tracker


Track = Annotated[
    str | None, typer.Option("--track", metavar="mlflow|wandb|trackio", help="Show the run there too, as it goes on.", callback=_installed)
]

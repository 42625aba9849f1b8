"""Where the runs of a study are made."""

from typing import TYPE_CHECKING, Annotated

import typer

from bigbatch.core.checks import UserError

if TYPE_CHECKING:
    from bigbatch.runner.jobs import Pool

ParallelRuns = Annotated[int | None, typer.Option("--parallel", metavar="N", help="Runs at once on this machine.")]
On = Annotated[
    str | None, typer.Option("--on", metavar="ray[:ADDRESS]", help="Make the runs on a Ray cluster; a local one without address.")
]


def find_pool(parallel: int | None, on: str | None) -> "Pool | None":
    """Where the runs are made; None for one after another here.

    Raises:
        UserError: If the place is unknown.
    """
    if on is None:
        if parallel is None:
            return None
        from bigbatch.runner.parallel import Parallel

        return Parallel(parallel)
    place, _, address = on.partition(":")
    if place != "ray":
        raise UserError(f"--on {on}: must be ray, or ray:ADDRESS such as ray:10.0.0.1:6379 or ray:auto")
    from bigbatch.runner.on_ray import OnRay

    return OnRay(address or None, at_once=parallel)

"""`bigbatch plan --rule local`: what is saved."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigbatch.cli.options import units
from bigbatch.cli.options.network import model_size, read_link
from bigbatch.core.checks import UserError

if TYPE_CHECKING:
    from bigbatch.scaling import Plan
    from bigbatch.study.simulate.local_savings import Savings

Doctor = Annotated[Path | None, typer.Option("--doctor", help="JSON of `bigbatch doctor --workers N`: the link, for --rule local.")]
Bandwidth = Annotated[str | None, typer.Option("--bandwidth", help="Of a worker's link: 1Gbit; with --latency.")]
Latency = Annotated[str | None, typer.Option("--latency", help="Of a message: 50ms.")]
Step = Annotated[str | None, typer.Option("--step", help="A worker's inner update without any exchange: 120ms.")]
ModelBytes = Annotated[str | None, typer.Option("--model-bytes", help="Of the weights: 100MB; a task's own if left out.")]


def find_savings(planned: "Plan", task: str, given: Mapping[str, Any]) -> "Savings":
    """What a plan of local steps saves, as far as its options say.

    Raises:
        UserError: If options are malformed, or only a part of what they need is there.
    """
    from bigbatch.study.simulate.local_savings import savings
    from bigbatch.tasks.task import SHIPPED

    link = None
    if any(given[name] is not None for name in ("doctor", "bandwidth", "latency")):
        link = read_link(given["doctor"], given["bandwidth"], given["latency"])
        if given["step"] is None:
            raise UserError("--step: is missing; what a link costs depends on how long a worker computes, such as --step 120ms")
    elif given["step"] is not None:
        raise UserError(f"--step {given['step']}: says nothing without a link; give --bandwidth and --latency, or --doctor FILE")
    size = given["model_bytes"] or (task if task in SHIPPED else None)
    if size is None and link is not None:
        raise UserError("--model-bytes: is missing; give the size of the weights, such as 100MB")
    known: dict[str, Any] = {"model_bytes": model_size(size)["model_bytes"]} if size is not None else {}
    return savings(planned, **known, link=link, step_s=units.seconds("--step", given["step"]) if given["step"] is not None else None)

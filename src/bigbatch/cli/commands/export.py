"""`bigbatch export`: a run's weights as a safetensors file."""

from pathlib import Path
from typing import Annotated

import typer

from bigbatch.cli.display import output


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The --out folder of `bigbatch train`, or a checkpoint in it.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="To be written, such as weights.safetensors.")],
    checkpoint: Annotated[str, typer.Option("--checkpoint", metavar="last|best|update-N", help="Whose weights.")] = "last",
    json: output.Json = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Write the model's weights as safetensors, which any program reads; what they are is in the file's metadata."""
    output.check(json)
    from bigbatch.train.state.export import export_weights

    done = export_weights(run, file, checkpoint=checkpoint, replace=force)
    if json != output.STANDARD:
        what = f"{done.num_tensors} tensors, {done.num_bytes:,} bytes, of {done.checkpoint}, update {done.clock.updates:,}"
        typer.echo(f"wrote {file}: {what}")
    found = {"file": str(file), "tensors": done.num_tensors, "bytes": done.num_bytes}
    output.write_json(json, {**found, "checkpoint": str(done.checkpoint), "update": done.clock.updates, "samples": done.clock.samples})

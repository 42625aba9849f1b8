"""`bigbatch export`: a run's weights as a safetensors file."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The --out folder of `bigbatch train`, or a checkpoint in it.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="To be written, such as weights.safetensors.")],
    checkpoint: Annotated[str, typer.Option("--checkpoint", metavar="last|best|update-N", help="Whose weights.")] = "last",
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Write the model's weights as safetensors, which any program reads; what they are is in the file's metadata."""
    from bigbatch.train.state.export import export_weights

    done = export_weights(run, file, checkpoint=checkpoint, replace=force)
    typer.echo(f"wrote {file}: {done.num_tensors} tensors, {done.num_bytes:,} bytes, of {done.checkpoint}, update {done.clock.updates:,}")

"""`bigbatch version`: what is installed."""

import typer

from bigbatch.cli.display import output


def version(json: output.Json = None) -> None:
    """Show the versions of bigbatch, of Python and of torch."""
    import platform
    from importlib.metadata import version as installed

    from bigbatch.core.version import __version__

    output.check(json)
    versions = {"bigbatch": __version__, "python": platform.python_version(), "torch": installed("torch")}
    if json != output.STANDARD:
        typer.echo(", ".join(f"{name} {number}" for name, number in versions.items()))
    output.write_json(json, versions)

"""The command line: one file a subcommand, each calls one public function. Heavy imports happen inside the commands."""

from bigbatch.core.extras import needed

with needed("the command line", extra="cli"):
    import rich  # noqa: F401
    import typer  # noqa: F401

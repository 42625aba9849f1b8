"""The `bigbatch` program: its subcommands, and how errors leave it."""

import os
import sys
from typing import Annotated, NoReturn

import typer

from bigbatch.cli import critical, curvature, doctor, export, noise, papers, plan, report, scale, simulate, tasks, train
from bigbatch.cli.notices import warn_in_one_line
from bigbatch.comm.launch import leave, watch_launcher
from bigbatch.core.checks import Diverged, Elsewhere, Interrupted, LostWorkers, UserError
from bigbatch.core.environment import check_environment, own_rank

app = typer.Typer(
    name="bigbatch",
    help="Scale a PyTorch training run to large batches without losing accuracy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
for module in (scale, noise, critical, curvature, plan, train, tasks, report, export, papers, doctor, simulate):
    name = module.__name__.rpartition(".")[2]
    app.command()(getattr(module, name))


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,  # noqa: ARG001 read in main
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Options of every command."""
    if version:
        from bigbatch import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the program. Exit codes: 0 done, 1 a bug, 2 something the user can mend, 3 diverged, 4 workers lost, 130 interrupted."""
    warn_in_one_line()
    if "--debug" in sys.argv:
        os.environ["BIGBATCH_DEBUG"] = "1"  # workers too
        sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        check_environment()
        watch_launcher()
        app()
    except SystemExit as end:
        _end(end.code if isinstance(end.code, int) else int(end.code is not None))
    except Exception as error:
        _end(_explain(error))
    except KeyboardInterrupt:
        print("interrupted: nothing more was saved", file=sys.stderr)
        _end(130)


def _end(code: int) -> NoReturn:
    """Leave; a worker without waiting for libraries to take themselves apart, which with gloo may hang or abort."""
    code = leave(code)
    if "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _explain(error: Exception) -> int:
    """Print an error as one line and return its exit code; what all workers have in common is said by the first."""
    if os.environ.get("BIGBATCH_DEBUG"):
        raise error
    codes = {UserError: 2, Diverged: 3, LostWorkers: 4, Interrupted: 130}
    code = next((code for kind, code in codes.items() if isinstance(error, kind)), 1)
    label = {1: f"unexpected {type(error).__name__}", 2: "error", 3: "diverged", 4: "lost", 130: "interrupted"}[code]
    hint = "; this is a bug in bigbatch or in the task: --debug shows the traceback" if code == 1 else ""
    rank = own_rank()
    if rank == 0 or not isinstance(error, Elsewhere | Diverged | Interrupted):
        print(f"{f'worker {rank}: ' if rank else ''}{label}: {error}{hint}", file=sys.stderr)
    return code

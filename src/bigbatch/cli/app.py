"""The `bigbatch` program: its subcommands, and how errors leave it."""

import os
import sys
from importlib import import_module

import typer

from bigbatch.cli.display.notices import warn_in_one_line
from bigbatch.cli.options.program import options
from bigbatch.cli.process.leave import explain, interrupt, leave
from bigbatch.cli.process.streams import check_streams
from bigbatch.comm.launch.launcher import watch_launcher
from bigbatch.core.environment import check_environment
from bigbatch.core.signals import caught

app = typer.Typer(
    name="bigbatch",
    help="Scale a PyTorch training run to large batches without losing accuracy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    "init scale noise critical steps extrapolate curvature plan train check simulate "  # work
    "tasks runs report export papers doctor version"  # tell
)
for name in COMMANDS.split():
    app.command()(getattr(import_module(f"bigbatch.cli.commands.{name}"), name))


app.callback()(options)


def main() -> None:
    """Run the program.

    Exit codes: 0 done, 1 a bug, 2 something the user can mend, 3 diverged, 4 workers lost, 5 done, but workers were lost on the way,
    130 interrupted. Of `scale --fail-unless-held`: 5 the plan did not hold, 6 undecided.
    """
    warn_in_one_line()
    check_streams()
    if "--debug" in sys.argv:
        os.environ["BIGBATCH_DEBUG"] = "1"  # workers too
        sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    with caught(interrupt):
        try:
            check_environment()
            watch_launcher()
            app(prog_name="bigbatch" if any(word.endswith("-completion") for word in sys.argv) else None)  # what a shell completes
        except SystemExit as end:
            leave(end.code if isinstance(end.code, int) else int(end.code is not None))
        except KeyboardInterrupt:
            leave(130)
        except Exception as error:
            leave(explain(error))

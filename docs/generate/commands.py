"""The reference of commands, exit codes and environment variables, from the program itself."""

import re
from collections.abc import Iterator
from typing import Any

import typer

from bigbatch.cli.app import app
from bigbatch.core.environment import VARIABLES
from generate.repository import ROOT

ACCIDENTS = ROOT / "docs" / "accidents.md"


def commands() -> Iterator[tuple[str, Any]]:
    """Name and command of each, in the order of `bigbatch --help`; hidden ones are left out."""
    group: Any = typer.main.get_command(app)
    yield from ((name, command) for name, command in group.commands.items() if not command.hidden)


def cell(text: str) -> str:
    """Text for a table."""
    text = re.sub(r"\s+", " ", text).replace("<", "&lt;")
    return re.sub(r"([|\[*_])", r"\\\1", text)


def default_of(parameter: Any) -> str:
    """What stands if it is left out."""
    value = parameter.default
    if parameter.required:
        return "required"
    if value is None or value is False or value in ((), [], "") or callable(value):
        return ""
    return f"`{str(value).lower() if value is True else value}`"


def rows(name: str, command: Any) -> Iterator[str]:
    """A row for each argument and option."""
    context = command.make_context(name, [], resilient_parsing=True)
    for parameter in command.params:
        if not getattr(parameter, "hidden", False):
            names, _ = parameter.get_help_record(context) or (parameter.name, "")
            yield f"| <code>{cell(names)}</code> | {cell(parameter.help or '')} | {default_of(parameter)} |"


def usage(name: str, command: Any) -> str:
    """The line that `--help` begins with."""
    context = command.make_context(name, [], resilient_parsing=True)
    return " ".join(["bigbatch", name, *command.collect_usage_pieces(context)])


def commands_page() -> str:
    """One part a command."""
    parts = [
        "# Commands",
        "Made from the program: the same stands in `bigbatch COMMAND --help`. What each exit code means is on a page of its own "
        "([Exit codes](exit_codes.md)); variables are listed too ([Environment variables](environment.md)).",
    ]
    listed = list(commands())
    lines = [f"| [`{name}`](#{name}) | {cell((command.help or '').partition(chr(10) * 2)[0])} |" for name, command in listed]
    parts.append("\n".join(["| command | what it does |", "|---|---|", *lines]))
    for name, command in listed:
        text = "\n\n".join(re.sub(r"\s+", " ", part).replace("<", "&lt;") for part in (command.help or "").split("\n\n"))
        table = "\n".join(["| argument or option | meaning | if left out |", "|---|---|---|", *rows(name, command)])
        parts += [f"## {name} {{: #{name} }}", f"```text\n{usage(name, command)}\n```", text, table]
    return "\n\n".join(parts) + "\n"


def environment_page() -> str:
    """The variables that are set by hand."""
    lines = [f"| `{variable.name}` | {cell(variable.meaning)} |" for variable in VARIABLES if variable.by_hand]
    return (
        "# Environment variables\n\nAll are checked at the start of the program; a value that can't be ends it with exit code 2. Launchers "
        "set others for their workers ([What can happen to a run](accidents.md#environment-variables)).\n\n"
        + "\n".join(["| variable | meaning |", "|---|---|", *lines])
        + "\n"
    )


def exit_codes_page() -> str:
    """The table of What can happen to a run."""
    found = re.search(r"^\| Exit code .*?\n\n", ACCIDENTS.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return (
        "# Exit codes\n\nOf the program `bigbatch`. Each accident with its message, its code and what to type then: "
        f"[What can happen to a run](accidents.md).\n\n{found[0]}`bigbatch check` has codes of its own: 0 the same update in all "
        "arrangements, 1 not, 2 the loop can't be run ([Check a loop](check.md)).\n"
    )

"""What a settings file says of how its recipe is run: checked against a plan, and kept beside the recipe that is planned."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigbatch.core.checks import UserError
from bigbatch.core.storage.reading import Malformed, parse_toml, read_text

if TYPE_CHECKING:
    from bigbatch.recipe import Recipe
    from bigbatch.runner.protocol import Runner


def sections_of(file: Path | None) -> dict[str, Any]:
    """`[command]` or `[function]` of a settings file; empty where there is neither, or the file can't be read, which others will say."""
    if file is not None:
        from bigbatch.recipe.recipe import HOW_IT_IS_RUN

        with suppress(UserError, Malformed):
            return {name: section for name, section in parse_toml(read_text(file, "")).items() if name in HOW_IT_IS_RUN}
    return {}


def runner_in(file: Path | None) -> "Runner | None":
    """The command or function of a settings file; None where there is neither.

    Raises:
        UserError: If it can't be run as it is written.
    """
    if file is None or not sections_of(file):
        return None
    from bigbatch.runner.settings_file import load_settings

    return load_settings(file)[0]


def write_settings(out: Path, recipe: "Recipe", *, how_of: Path | None) -> None:
    """Write a recipe, and how that of another settings file is run; a command's working folder stays where it is.

    Raises:
        OutputError: If it can't be written.
    """
    import tomli_w

    from bigbatch.core.storage.writing import make_folder, write_atomically

    sections, parent = sections_of(how_of), make_folder(out.parent).resolve()
    if how_of is not None and "command" in sections and how_of.resolve().parent != parent:
        section = sections["command"]
        sections["command"] = {**section, "folder": str(how_of.resolve().parent / section.get("folder", ""))}
    text = recipe.to_toml() + (f"\n{tomli_w.dumps(sections)}" if sections else "")
    write_atomically(out, text.encode())

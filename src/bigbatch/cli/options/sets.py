"""The `--set` options: fields of a recipe, and of the planned one."""

from typing import TYPE_CHECKING, Any

from bigbatch.core.checks import UserError
from bigbatch.core.storage.reading import Malformed, parse_toml

if TYPE_CHECKING:
    from bigbatch.recipe import Recipe


def apply_sets(recipe: "Recipe", sets: list[str] | None) -> "Recipe":
    """The recipe with the `--set` options applied.

    Raises:
        UserError: If a setting is malformed, or does not fit.
    """
    return recipe.replace(dict(parse_set(text) for text in sets or []))


def split_sets(sets: list[str] | None) -> tuple[list[str], dict[str, Any]]:
    """The `--set` options of the reference, and those of the new recipe (`plan.FIELD=VALUE`) as `overrides` of `plan`.

    >>> split_sets(["optimizer.lr=0.1", "plan.optimizer.lr=0.4"])
    (['optimizer.lr=0.1'], {'optimizer.lr': 0.4})
    """
    of_plan = [text.removeprefix("plan.") for text in sets or [] if text.startswith("plan.")]
    return [text for text in sets or [] if not text.startswith("plan.")], dict(parse_set(text) for text in of_plan)


def parse_set(text: str) -> tuple[str, Any]:
    """Field and value of `FIELD=VALUE`; an unquoted word is a text.

    Raises:
        UserError: If there is no equals sign.
    """
    field, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: must be FIELD=VALUE, such as optimizer.lr=0.2")
    try:
        return field.strip(), parse_toml(f"value = {value}")["value"]
    except Malformed:
        return field.strip(), value.strip()  # an unquoted word

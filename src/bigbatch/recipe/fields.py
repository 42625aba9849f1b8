"""Fields of a recipe by their dotted names, in nested plain values: taken apart, flattened, replaced."""

import copy
from collections.abc import Mapping
from typing import Any

from bigbatch.core.checks import RecipeError
from bigbatch.recipe.sections import KINDS, TAGS, WARMUP_UNITS


def parts(field: str) -> list[str]:
    """A dotted field by section; what follows "optimizer.groups." is one pattern, dots and all.

    >>> parts("schedule.decay.kind"), parts("optimizer.groups.*.norm.weight")
    (['schedule', 'decay', 'kind'], ['optimizer', 'groups', '*.norm.weight'])
    """
    head, groups, pattern = field.partition("optimizer.groups.")
    return ["optimizer", "groups", pattern] if groups and not head else field.split(".")


def flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names.

    >>> flat({"seed": 0, "batch": {"global_batch": 32}})
    {'seed': 0, 'batch.global_batch': 32}
    """
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def replaced(fields: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Set dotted fields in nested values, in place; `Recipe.replace` says what else goes with them.

    Raises:
        RecipeError: If a field goes deeper than a value.
    """
    for field, value in changes.items():
        *sections, last = parts(field)
        target = fields
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise RecipeError(f"{field}: {section!r} is a value, not a section; set it without going deeper")
        if value is None:
            target.pop(last, None)
        else:
            target[last] = copy.deepcopy(value)  # a later change may go into it
    _drop_other_units_of_warmup(fields, changes)
    for section, tag in TAGS.items():
        kind = changes.get(f"{section}.{tag}")
        if isinstance(kind, str) and kind in KINDS[section]:
            _drop_fields_of_other_kinds(fields, section, kind, keep=set(changes))
    return fields


def _drop_fields_of_other_kinds(fields: dict[str, Any], section: str, kind: str, keep: set[str]) -> None:
    target: Any = fields
    for part in section.split("."):
        target = target.get(part) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        return  # which is refused later
    of_kind = KINDS[section][kind].section
    for name in [n for n in target if n not in of_kind.model_fields and f"{section}.{n}" not in keep]:
        del target[name]
    groups = target.get("groups")
    if section == "optimizer" and isinstance(groups, dict) and groups and not _sets_groups(keep):
        by = "muon" if all(group in ("muon", "adam") for group in groups.values()) else "decay"
        if by != of_kind.groups_by:
            del target["groups"]  # they are another optimizer's


def _drop_other_units_of_warmup(fields: dict[str, Any], changes: Mapping[str, Any]) -> None:
    lengths = {unit: changes.get(f"schedule.warmup.{unit}") for unit in WARMUP_UNITS}
    schedule = fields.get("schedule")
    warmup = schedule.get("warmup") if isinstance(schedule, dict) else None
    if isinstance(warmup, dict) and any(value is not None for value in lengths.values()):
        for unit, value in lengths.items():
            if value is None:
                warmup.pop(unit, None)


def _sets_groups(changes: set[str]) -> bool:
    return any(field.startswith("optimizer.groups") for field in changes)

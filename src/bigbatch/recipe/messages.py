"""Validation errors in words: field, value, rule; for unknown fields the known ones."""

from pydantic import BaseModel, ValidationError

from bigbatch.core.checks import unknown
from bigbatch.recipe.optional_sections import Adversarial, Augmentation, Curvature
from bigbatch.recipe.sections import KINDS, TAGS, Batch, Budget, Schedule

_EITHER = {  # fields that are a number or a word: pydantic reports each alternative, a reader wants one rule
    "batch.ghost_batch": "must be a whole number above zero, or 'global'",
    "batch.micro_batch": "must be a whole number above zero, or 'auto'",
    "curvature.trace": "must be a relative error above zero, or false",
}


def readable_mistakes(error: ValidationError, recipe: type[BaseModel]) -> str:
    """One line per mistake: field, value, rule, and for unknown fields the known ones."""
    lines = []
    for mistake in error.errors():
        place = [str(part) for part in mistake["loc"]]
        field = ".".join(p for i, p in enumerate(place) if not _is_tag(place[:i], p))
        either = next((name for name in _EITHER if field.startswith(name)), None)
        if either is not None:
            lines.append(f"{either} = {mistake['input']!r}: {_EITHER[either]}")
            continue
        if place[:1] == ["model"] and len(place) > 1:
            lines.append(f"model.{place[1]} = {mistake['input']!r}: must be a number, a text, true or false")
            continue
        match mistake["type"]:
            case "extra_forbidden":
                lines.append(unknown("field", field, _known_fields(place[:-1], recipe)))
            case "model_attributes_type" | "model_type":
                lines.append(_no_section(field, mistake["input"]))
            case "tuple_type":
                lines.append(f"{field} = {mistake['input']!r}: must be a list, such as [0.9, 0.999]")
            case "missing":
                lines.append(f"{field}: is missing; give it")
            case "union_tag_not_found":
                lines.append(f"{field}: needs {str(mistake['ctx']['discriminator']).strip(chr(39))}; one of {_tags_of(field)}")
            case "union_tag_invalid":
                ctx = mistake["ctx"]
                lines.append(f"{field}.{ctx['discriminator'].strip(chr(39))} = {ctx['tag']!r}: must be one of {_tags_of(field)}")
            case "value_error":
                text = str(mistake["ctx"]["error"])
                lines.append(f"{field}: {text}" if field else text)
            case _:
                lines.append(f"{field} = {mistake['input']!r}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}")
    return "; ".join(dict.fromkeys(lines))


def _no_section(field: str, value: object) -> str:
    """Of a value where a section belongs."""
    if (tag := TAGS.get(field)) is None:
        return f"{field} = {value!r}: must be a section, such as {field}.{next(iter(_known_fields([field], BaseModel)), 'name')} = ..."
    kind = value if isinstance(value, str) and value in KINDS[field] else next(iter(KINDS[field]))
    return f'{field} = {value!r}: must be a section, such as {field} = {{ {tag} = "{kind}" }}'


def _is_tag(before: list[str], part: str) -> bool:
    return part in KINDS.get(".".join(before), ())


def _tags_of(section: str) -> str:
    return ", ".join(KINDS.get(section, ()))


def _known_fields(place: list[str], recipe: type[BaseModel]) -> list[str]:
    section = ".".join(p for i, p in enumerate(place) if not _is_tag(place[:i], p))
    tag = place[-1] if place else ""
    if section in KINDS:
        return list(KINDS[section][tag].section.model_fields)
    plain: dict[str, type[BaseModel]] = {
        "": recipe,
        "schedule": Schedule,
        "batch": Batch,
        "budget": Budget,
        "adversarial": Adversarial,
        "augmentation": Augmentation,
        "curvature": Curvature,
    }
    return list(plain[section].model_fields) if section in plain else []

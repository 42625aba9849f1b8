"""The reference of recipes: every section and field, from the pydantic models themselves."""

import inspect
import json
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from bigbatch.core.paper import find_papers
from bigbatch.recipe.recipe import Recipe
from bigbatch.recipe.sections import KINDS, TAGS

BOUNDS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
FIELD = r"^    {}\s*:.*?#\s*(.+)$"
HUGE = 2**62


COMMON = {
    "model": "options of the task's own model",
    "epochs": "length in epochs of `num_train_samples`",
    "samples": "length in samples",
    "updates": "length in updates of the recipe's batch",
    "tokens": "length in tokens",
    "combine": "whether the decay follows the warm-up, or both run from the first sample on",
    "momentum": "of the gradient's moving average",
    "nesterov": "whether Nesterov's momentum is taken",
    "betas": "decay an update of the first and second moments",
    "eps": "added to the denominator",
    "decay_norms_and_biases": "whether norms and biases decay too",
    "adapt_norms_and_biases": "whether norms and biases get a rate of their own, as layers do",
    "lr": "how the schedule's rate goes with the batch's multiple",
    "final_factor": "fraction of the peak rate at the end of the run",
    "start_factor": "fraction of the peak rate at the first update",
    "compression": "of gradients; see [comm.compression]",
    "trust_coefficient": "the paper's eta: the rate of a layer is this times |w| / |g|",
    "adam_lr": "peak rate of all that is no orthogonalised matrix, by AdamW",
    "lr_factor": "what the rate is multiplied by at each change",
    "target": "cosine between the gradients of the batch's two halves",
    "outer_lr": "rate of the outer step, along the mean displacement",
    "outer_momentum": "momentum of the outer step",
    "method": "what is sent, and what momentum does: d_psgd overlaps with the gradient",
    "topology": "who is whose neighbour",
    "mode": "whether an update waits for all workers",
}
"""Fields that many sections have, where nothing stands beside them in the code."""


def comment(section: type[BaseModel], field: str) -> str:
    """What the code says of a field: behind its own line, else of the argument of that name in the method's file."""
    owners = [
        owner for owner in section.__mro__ if field in vars(owner).get("__annotations__", {}) and owner.__module__.startswith("bigbatch")
    ]
    for owner in owners:
        found = re.search(FIELD.format(field), inspect.getsource(owner), re.MULTILINE)
        if found is not None:
            return found[1].strip()
    for owner in owners:
        if words := _argument(owner.__module__, field):
            return words
    return COMMON.get(field, "")


def _argument(module: str, field: str) -> str:
    """From `Args:` or `Attributes:` of a module, or of the one that a file of sections belongs to."""
    files = [import_module(name).__file__ or "" for name in dict.fromkeys((module, module.removesuffix("_section"))) if find_spec(name)]
    for file in files:
        found = re.search(rf"^ +{field}: ((?!.*=)[A-Z].*(?:\n {{12,}}\S.*)*)", Path(file).read_text(), re.MULTILINE)
        if found is not None:
            return re.sub(r"\s+", " ", found[1])
    return ""


def values(schema: dict[str, Any]) -> str:
    """What a field may be, in words, from its JSON schema.

    >>> values({"type": "number", "exclusiveMinimum": 0, "maximum": 1})
    'number above 0, at most 1'
    >>> values({"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}]})
    '`"a"`, `"b"`'
    """
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(values(option) for option in schema["anyOf"] if option.get("type") != "null"))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "section")
    words = {"integer": "whole number", "boolean": "true or false", "string": "text", "object": "table"}.get(kind, kind)
    if kind == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})]
        return "list of " + " and ".join(dict.fromkeys(values(item) for item in items))
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"table of names to {values(schema['additionalProperties'])}"
    limits = [f"{word} {schema[key]:g}" for key, word in BOUNDS.items() if key in schema and abs(schema[key]) < HUGE]
    return f"{words} {', '.join(limits)}".strip()


def default(field: Any) -> str:
    """As TOML has it; nothing where the field may be left out and then does nothing."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel) or value == {}:
        return ""
    return f"`{json.dumps(value)}`"


def table(section: type[BaseModel], leave_out: tuple[str, ...] = ()) -> str:
    """Fields of a section: name, values, default, meaning."""
    fields = {name: field for name, field in section.model_fields.items() if name not in leave_out}
    if not fields:
        return "No other fields.\n"
    schema = section.model_json_schema()["properties"]
    lines = ["| field | values | if left out | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        cells = (f"`{name}`", values(schema[name]), default(field), comment(section, name))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def words_of(section: type[BaseModel]) -> str:
    """The docstring, but for what raises; a class that it names is left to the page of its method."""
    text = inspect.getdoc(section) or ""
    return re.split(r"\n\s*\n(?:Raises|Attributes|Args):|\n\s*\n>>>", text)[0]


def plain(section: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Sections of which there is one kind: name in the recipe, and class."""
    found = {}
    for name, field in section.model_fields.items():
        for option in (field.annotation, *get_args(field.annotation)):
            if isinstance(option, type) and issubclass(option, BaseModel) and name not in KINDS:
                found[name] = option
    return found


def kinds(place: str) -> list[str]:
    """Of a section of which there are several kinds: each, with its fields."""
    tag, registry, found = TAGS[place], KINDS[place], find_papers()
    parts = [f"## [{place}]", f"`{tag}` is one of {', '.join(f'`{name}`' for name in registry)}."]
    by_section: dict[type[BaseModel], list[str]] = {}
    for name, method in registry.items():
        by_section.setdefault(method.section, []).append(name)
    for section, names in by_section.items():
        inner = tuple(field for field in section.model_fields if f"{place}.{field}" in KINDS)
        quoted = ", ".join(f'"{name}"' for name in names)
        homes = dict.fromkeys(registry[name].build.__module__.removesuffix("_section") for name in names)
        papers = [f"[{found[home].method}](methods/{home.rpartition('.')[2]}.md)" for home in homes if home in found]
        parts += [
            f"### {tag} = {quoted}",
            words_of(section),
            f"The method: {', '.join(papers)}." if papers else "",
            table(section, (tag, *inner)),
        ]
    return parts


def recipe_page() -> str:
    """The whole page."""
    sections = plain(Recipe)
    own = tuple(name for name in Recipe.model_fields if name in sections or name in KINDS)
    parts = [
        "# Recipe fields",
        "A recipe is a TOML file. This page is made from the models that check it; a field that is not here is refused, and so is a value "
        "outside of its bounds. The usual ones in one file: [A recipe file](recipe_file.md). In Python a recipe is "
        "`bigbatch.Recipe` ([API](api.md)). On the command line a field is set by its dotted name: `--set optimizer.lr=0.1`.",
        "## At the top",
        table(Recipe, own),
    ]
    for name in Recipe.model_fields:
        if name in sections:
            inner = tuple(field for field in sections[name].model_fields if f"{name}.{field}" in KINDS)
            parts += [f"## [{name}]", words_of(sections[name]), table(sections[name], inner)]
        for place in KINDS:
            if place.partition(".")[0] == name:
                parts += kinds(place)
    return "\n\n".join(parts) + "\n"

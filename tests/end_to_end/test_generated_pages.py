"""Pages that are made from the program: every option of every command, and every field of every section, with what it means."""

import doctest
import importlib
import sys
from pathlib import Path

import pytest

from bigbatch.cli.app import app
from bigbatch.core.environment import VARIABLES
from bigbatch.recipe import Recipe
from bigbatch.recipe.sections import KINDS

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def generate():
    """The module of that name of the package that makes pages."""
    sys.path.insert(0, str(DOCS))
    yield lambda name: importlib.import_module(f"generate.{name}")
    sys.path.remove(str(DOCS))


@pytest.mark.parametrize("name", ["commands", "recipe", "methods", "repository"])
def test_examples_in_docstrings(generate, name):
    assert doctest.testmod(generate(name)).failed == 0


def test_every_option_has_a_row_that_says_what_it_does(generate):
    commands = generate("commands")
    page = commands.commands_page()
    assert len(list(commands.commands())) == len([command for command in app.registered_commands if not command.hidden])
    for name, command in commands.commands():
        part = page.partition(f"## {name} {{")[2].partition("\n## ")[0]
        assert command.help.split("\n")[0].rstrip(".")[:40].replace("<", "&lt;") in part
        for parameter in command.params:
            if not getattr(parameter, "hidden", False) and parameter.opts:
                row = next((line for line in part.splitlines() if line.startswith("| <code>") and parameter.opts[0] in line), None)
                assert parameter.param_type_name == "argument" or row is not None, f"{name} {parameter.opts[0]}"
                assert row is None or row.count("|") - row.count("\\|") == 4, row


def test_a_default_and_a_demand_are_told(generate):
    page = generate("commands").commands_page()
    plan = page.partition("## plan {")[2].partition("\n## ")[0]
    assert any("--rule" in line and line.endswith("| `auto` |") for line in plan.splitlines())
    scale = page.partition("## scale {")[2].partition("\n## ")[0]
    assert any("--to" in line and line.endswith("| required |") for line in scale.splitlines())


def test_every_field_of_a_recipe_has_a_row(generate):
    page = generate("recipe").recipe_page()
    rows = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    for place, registry in KINDS.items():
        assert f"## [{place}]" in page
        for method in registry.values():
            assert f'"{method.name}"' in page
            own = {name for name in method.section.model_fields if f"{place}.{name}" not in KINDS} - {"name", "kind"}
            assert own <= rows
    for name, field in Recipe.model_fields.items():
        assert f"## [{name}]" in page or name in rows, field


def test_every_field_says_what_it_means(generate):
    page = generate("recipe").recipe_page()
    silent = [line for line in page.splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert silent == []


def test_a_row_has_values_default_and_meaning_from_the_model(generate):
    lines = generate("recipe").recipe_page().splitlines()
    assert "| `lr` | number above 0 | required | peak learning rate |" in lines
    assert any(line.startswith('| `micro_batch` | whole number above 0 or `"auto"` | `"auto"` | one forward pass') for line in lines)


def test_every_variable_and_exit_code(generate):
    commands = generate("commands")
    assert all(f"`{variable.name}`" in commands.environment_page() for variable in VARIABLES if variable.by_hand)
    assert "| 130 | stopped from outside" in commands.exit_codes_page()

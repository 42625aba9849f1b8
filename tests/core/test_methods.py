"""The registries: what they find, in which order, what they import, and what they refuse."""

import subprocess
import sys

import pytest
from tests.limits import LIMIT_S

from bigbatch.core import methods
from bigbatch.core.methods import BATCH_RULES, COMMS, COMPRESSIONS, DECAYS, OPTIMIZERS, RULES, WARMUPS, Registry
from bigbatch.recipe.sections import KINDS, TAGS

REGISTRIES = [OPTIMIZERS, WARMUPS, DECAYS, BATCH_RULES, COMMS, COMPRESSIONS, RULES]
METHODS = [(registry, name) for registry in REGISTRIES for name in registry]


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.family)
def test_names_are_listed_as_they_always_were(registry):
    assert [*registry][: len(registry._first)] == registry._first
    assert len(registry) == len(set(registry)) == len([*registry])


@pytest.mark.parametrize(("registry", "name"), METHODS, ids=lambda part: getattr(part, "family", part))
def test_a_method_is_found_in_the_file_that_registers_it(registry, name):
    method = registry[name]
    assert method.name == name
    assert method.build.__module__ == registry.homes[name]
    assert method.build.__doc__


@pytest.mark.parametrize("section", KINDS)
def test_a_section_holds_its_own_name(section):
    for name, method in KINDS[section].items():
        field = method.section.model_fields[TAGS[section]]
        assert name in field.annotation.__args__
        assert method.section.__doc__


def made(tmp_path, monkeypatch, **files):
    """A registry over files of the given content, in a package that can be imported."""
    package = tmp_path / "toys"
    (package / "family").mkdir(parents=True)
    for name, content in {"__init__": "", **files}.items():
        (package / "family" / f"{name}.py").write_text(content)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(methods, "PACKAGE", package)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "toys"]:
        monkeypatch.delitem(sys.modules, name)
    registry = Registry("TOYS", "family", first="second")
    monkeypatch.setattr(methods, "TOYS", registry, raising=False)
    return registry


LINE = "from bigbatch.core.methods import TOYS\n@TOYS.register({name!r})\ndef build():\n    return {name!r}\n"


def test_a_file_is_imported_only_when_its_method_is_asked_for(tmp_path, monkeypatch):
    first, second = (LINE.format(name=name).replace("'", '"') for name in ("first", "second"))
    toys = made(tmp_path, monkeypatch, a=first, b=second, broken="raise AssertionError('imported')\n@TOYS.register(\"third\")\n")
    assert [*toys] == ["second", "first", "third"]
    assert "first" in toys
    assert "toys.family.a" not in sys.modules
    assert toys["first"].build() == "first"
    assert "toys.family.b" not in sys.modules
    with pytest.raises(KeyError, match="unknown method 'frist': did you mean 'first'"):
        toys["frist"]


def test_two_files_can_not_register_one_name(tmp_path, monkeypatch):
    line = LINE.format(name="one").replace("'", '"')
    toys = made(tmp_path, monkeypatch, a=line, b=line)
    with pytest.raises(ValueError, match=r"TOYS: 'one' is registered by toys.family.a and by toys.family.b; give one another name"):
        list(toys)


def test_code_outside_of_the_package_can_register_too(tmp_path, monkeypatch):
    toys = made(tmp_path, monkeypatch, a=LINE.format(name="one").replace("'", '"'))

    @toys.register("mine", "section")
    def mine():
        """Mine."""

    assert toys["mine"] == ("mine", "section", mine)
    assert [*toys] == ["mine", "one"]
    with pytest.raises(
        ValueError, match=r"TOYS: 'one' is registered by toys.family.a already; give the one of .*test_methods another name"
    ):
        toys.register("one")(mine)


def test_a_recipe_costs_the_imports_of_what_it_names():
    code = """
import sys
from bigbatch import Recipe
recipe = Recipe.named("digits/mlp")
for name in ("sgd", "adam", "adamw"):
    recipe.replace({"optimizer.name": name, "optimizer.nesterov": None} if name == "sgd" else {"optimizer.name": name})
recipe.replace({"optimizer.name": "muon", "optimizer.adam_lr": 0.01})
recipe.replace({"comm.kind": "parameter_server"})
recipe.replace({"batch.rule": {"kind": "norm_test"}})
assert "torch" not in sys.modules
assert "numpy" not in sys.modules
assert list(__import__("bigbatch.recipe.sections").recipe.sections.KINDS["optimizer"])
assert "torch" not in sys.modules
recipe.replace({"optimizer.name": "lars"})
assert "bigbatch.optim.lars" in sys.modules
assert "bigbatch.optim.lamb" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr

"""Rules of the house that prose alone would not keep."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.limits import LIMIT_S

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "bigbatch"


def lines(path):
    return path.read_text().count("\n")


def test_the_loop_stays_readable_in_one_sitting():
    assert lines(SOURCE / "train" / "loop.py") <= 250


@pytest.mark.parametrize("path", sorted((SOURCE / "cli").rglob("*.py")), ids=lambda p: p.name)
def test_a_command_is_under_80_lines(path):
    assert lines(path) < 80


def test_examples_are_under_60_lines_and_the_first_imports_no_trainer():
    examples = sorted((ROOT / "examples").glob("*.py"))
    assert examples
    for path in examples:
        assert lines(path) < 60, path
    assert "fit" not in (ROOT / "examples" / "schedule_in_your_own_loop.py").read_text()


def test_optimizers_never_write_gradients():
    """Static guard: nothing in a method's family assigns to `.grad` or calls an in-place operation on it."""
    offenders = []
    for family in ("optim", "schedules", "layers", "adversarial", "scaling"):
        for path in (SOURCE / family).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
                offenders += [f"{path.name}:{t.lineno}" for t in targets if isinstance(t, ast.Attribute) and t.attr == "grad"]
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.endswith("_"):
                    owner = node.func.value
                    if isinstance(owner, ast.Attribute) and owner.attr == "grad":
                        offenders.append(f"{path.name}:{node.lineno}")
    assert offenders == []


def test_no_public_argument_is_a_bare_batch_size():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                names = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
                assert "batch_size" not in names, f"{path.name}:{node.lineno}"


def import_graph(package):
    """Which modules of a package each of its modules imports, anywhere in the file: in functions and under TYPE_CHECKING too."""
    paths = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {}
    for module, path in paths.items():
        imported = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: a relative import, which this test does not follow"
                for alias in node.names:  # `from package import name`: the name is a module, or something in the package's __init__
                    submodule = f"{node.module}.{alias.name}"
                    imported.add(submodule if submodule in paths else node.module)
        graph[module] = imported & paths.keys()
    return graph


def import_cycles(graph):
    """For each module that imports itself, by way of others or directly, a shortest way round; each cycle once."""
    cycles = {}
    for start in graph:
        ways, seen = [[start]], set()
        while ways:
            way = ways.pop(0)
            if start in graph[way[-1]]:
                cycles.setdefault(frozenset(way), [*way, start])
                break
            for module in sorted(graph[way[-1]] - seen):
                seen.add(module)
                ways.append([*way, module])
    return sorted(cycles.values())


def test_no_module_imports_itself_by_way_of_others():
    assert import_cycles(import_graph(SOURCE)) == []


@pytest.mark.parametrize(
    "back", ["import p.a", "from p import a", "def f():\n    from p.a import x", "if TYPE_CHECKING:\n    from p.a import x"]
)
def test_a_cycle_is_found_wherever_the_import_stands(tmp_path, back):
    package = tmp_path / "p"
    (package / "sub").mkdir(parents=True)
    files = {"__init__": "", "a": "from p.sub.b import y", "sub/__init__": "", "sub/b": "import p.c", "c": back, "d": "from p import a"}
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    assert import_cycles(import_graph(package)) == [["p.a", "p.sub.b", "p.c", "p.a"]]
    (package / "c.py").write_text("import os")
    assert import_cycles(import_graph(package)) == []


@pytest.mark.parametrize(
    "code",
    [
        "import bigbatch",
        "import bigbatch; bigbatch.Recipe.named('digits/mlp')",
        "import bigbatch; bigbatch.plan(bigbatch.Recipe.named('digits/mlp'), global_batch=64)",
        "import bigbatch.schedules",
        "import bigbatch.simulate.strategies, bigbatch.study.simulate.simulate",
        "import sys; sys.argv = ['bigbatch', '--help']; from bigbatch.cli.app import app; app(standalone_mode=False)",
        "import sys; sys.argv = ['bigbatch', 'tasks']; from bigbatch.cli.app import app; app(standalone_mode=False)",
        "import sys; sys.argv = ['bigbatch', 'plan', 'digits/mlp', '--global-batch', '64']; from bigbatch.cli.app import app; "
        "app(standalone_mode=False)",
    ],
)
def test_what_needs_no_torch_imports_none(code):
    check = f"{code}\nimport sys\nassert not {{'torch', 'sklearn', 'matplotlib', 'scipy'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr


LOADED = """
import importlib, sys, sysconfig
from pathlib import Path

before = set(sys.modules)
for name in {modules!r}:
    importlib.import_module(name)
files = {{name: getattr(sys.modules[name], "__file__", None) for name in sys.modules.keys() - before}}
places = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
print(*(name for name, file in files.items() if file is not None and any(Path(file).is_relative_to(place) for place in places)))
"""


def loaded_by(*modules):
    """Packages that others made, and that importing `modules` imports."""
    command = [sys.executable, "-c", LOADED.format(modules=modules)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()} - {"bigbatch"}


def test_methods_import_torch_and_what_their_recipe_sections_need():
    """Against what parts of torch import by themselves: numpy, torch's own requirements, and tqdm where that is installed.

    A method's file holds its recipe section too, which pydantic checks and tomli_w writes; a measurement or a layer has none.
    """
    of_torch, of_sections = loaded_by("torch.distributed.tensor", "torch.func"), loaded_by("pydantic", "tomli_w", "annotated_types")
    assert "torch" in of_torch
    assert "pydantic" in of_sections
    assert loaded_by(*(f"bigbatch.{family}" for family in ("noise", "layers", "curvature", "adversarial"))) <= of_torch
    methods = ("bigbatch.optim.lars", "bigbatch.optim.muon.muon", "bigbatch.comm.local.local_sgd")
    assert loaded_by("bigbatch.optim", *methods) <= of_torch | of_sections
    assert loaded_by("bigbatch.schedules", "bigbatch.schedules.cosine", "bigbatch.batching", "bigbatch.batching.cabs") <= of_sections


def test_everything_public_can_be_imported():
    import bigbatch

    for name in bigbatch.__all__:
        assert getattr(bigbatch, name) is not None
        assert name in dir(bigbatch)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = bigbatch.nothing


@pytest.mark.parametrize("package", ["bigbatch", "bigbatch.optim", "bigbatch.schedules", "bigbatch.scaling"])
def test_no_name_is_hidden_by_a_file(package):
    """Once `bigbatch.optim.x` is imported, the package's x is that module; a `__getattr__` for names on first use is then never asked."""
    module = importlib.import_module(package)
    for path in Path(module.__file__).parent.glob("[!_]*.py"):
        importlib.import_module(f"{package}.{path.stem}")
    for name in module.__all__:
        assert not isinstance(getattr(module, name), ModuleType), name

"""How many lines of ours the examples need."""

import ast
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize(("name", "built"), [("transformers_trainer", set()), ("accelerate_loop", {"monitor"})])
def test_at_most_five_statements_beside_imports_and_the_recipe(name, built):
    """Those that name something of ours: what is imported from bigbatch, or an object of it with methods of its own."""
    source = (EXAMPLES / f"{name}.py").read_text()
    assert source.count("\n") <= 40
    tree = ast.parse(source)
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom | ast.Import)]
    ours = {
        alias.name for node in imports if isinstance(node, ast.ImportFrom) and node.module.startswith("bigbatch") for alias in node.names
    }
    ours = (ours | {"bigbatch"} | built) - {"load_task"}
    simple = [node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.Expr)]
    lines = [node for node in simple if ours & {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}]
    assert 3 <= len([node for node in lines if ast.unparse(node).partition(" ")[0] not in ("tuned", "estimate")]) <= 5

"""What a command does not import: reading and planning need no torch, and a table no plots."""

import json
import subprocess
import sys

import pytest
from tests.limits import LIMIT_S

PROGRAM = """
import json, runpy, sys
sys.argv = ["bigbatch", *json.loads(sys.argv[1])]
code = 0
try:
    runpy.run_module("bigbatch", run_name="__main__")
except SystemExit as end:
    code = end.code
print(json.dumps([code, [name for name in ("torch", "matplotlib", "scipy", "numpy") if name in sys.modules]]))
"""
LINK = ["--bandwidth", "1Gbit", "--latency", "50us"]
COMMANDS = {
    "help": (["--help"], set()),
    "version": (["version"], set()),
    "papers": (["papers"], set()),
    "one paper": (["papers", "legw"], set()),
    "tasks": (["tasks"], set()),
    "plan": (["plan", "digits/mlp", "--global-batch", "64"], set()),
    "simulate": (["simulate", "--workers", "8", "--model-bytes", "1MB", "--step", "9ms", *LINK], {"matplotlib", "numpy"}),
    "runs": (["runs", "."], set()),
    "report": (["report", "run"], {"matplotlib", "numpy"}),
    "report of a comparison": (["report", "study"], {"matplotlib", "numpy"}),
}


def imported(arguments, folder):
    command = [sys.executable, "-c", PROGRAM, json.dumps(arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    code, names = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stdout + done.stderr
    return set(names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run, and a study of one seed an arm."""
    from bigbatch import Recipe, fit, scale

    folder = tmp_path_factory.mktemp("runs")
    recipe = Recipe.named("digits/mlp").replace({"budget.epochs": 1, "batch.micro_batch": 32})
    fit("digits/mlp", recipe, out=folder / "run", quiet=True)
    scale("digits/mlp", to=64, recipe=recipe, seeds=1, max_seeds=1, out=folder / "study", quiet=True)
    return folder


@pytest.mark.parametrize(("arguments", "needed"), COMMANDS.values(), ids=COMMANDS)
def test_a_command_imports_no_more_than_it_needs(folder, arguments, needed):
    assert imported(arguments, folder) <= needed

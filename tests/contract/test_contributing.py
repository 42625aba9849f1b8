"""CONTRIBUTING's walk-through works as written: its files, put into a copy of the package, are all that a new method needs."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
from tests.distributed.ranks import run_ranks
from tests.limits import LIMIT_S

from bigbatch import Recipe

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"^```python\n# (src/bigbatch/[\w/]+\.py)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL))
NAMES = {"optim": "sign_sgd", "schedules": "inverse_sqrt", "rules": "random_matrix", "batching": "geometric", "comm": "one_shot"}

USES = """
import sys
from bigbatch import Recipe, plan
from bigbatch.core.checks import RecipeError
from bigbatch.recipe import recipe_names

adam = Recipe.named("digits/mlp").replace({"optimizer.name": "adam", "optimizer.lr": 0.001})
planned = plan(adam, global_batch=64, rule="random_matrix")
assert planned.recipe.optimizer.lr == 0.001 * 2**0.5, planned.recipe.optimizer
assert plan(Recipe.named("digits/mlp"), global_batch=64, rule="random_matrix").recipe.optimizer.lr == 0.2
assert {change.paper.method for change in planned.changes if change.paper} == {"Rates by random matrices"}
assert "torch" not in sys.modules
try:
    adam.replace({"optimizer.name": "sign_sdg"})
except RecipeError as error:
    assert str(error).endswith("must be one of sgd, adam, adamw, sgdp, adamp, lars, lamb, muon, soap_muon, sign_sgd"), error
signed = adam.replace({"optimizer.name": "sign_sgd", "optimizer.weight_decay": 0.01})
assert Recipe.from_toml(signed.to_toml()) == signed
muon = plan(signed, global_batch=64, rule="muon")
assert muon.recipe.optimizer.weight_decay > 0 and not any(w.kind == "weight decay" for w in muon.warnings)

import doctest, importlib
for name in ("bigbatch.optim.sign_sgd", "bigbatch.schedules.inverse_sqrt"):
    assert not doctest.testmod(importlib.import_module(name)).failed
from bigbatch.cli.app import app
for command in (["papers"], ["plan", "--help"]):
    app(command, standalone_mode=False)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A folder with a copy of the package, and the walk-through's files in it."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "src" / "bigbatch", folder / "bigbatch", ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in FILES.items():
        path = folder / Path(name).relative_to("src")
        assert not path.exists()
        path.write_text(content)
    return folder


def test_there_is_a_file_of_each_kind():
    assert {Path(name).parent.name: Path(name).stem for name in FILES} == NAMES
    assert TEXT.count("```python") == len(FILES)


def test_the_files_are_in_style(copy):
    files = [str(copy / Path(name).relative_to("src")) for name in FILES]
    for command in (["check"], ["format", "--check"]):
        program = [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), *files]
        done = subprocess.run(program, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_every_method_says(name):
    docstring = ast.get_docstring(ast.parse(FILES[name]))
    for part in ("Paper:", "Formula:", "Differs:"):
        assert part in docstring


def test_recipes_plans_and_commands_know_them(copy):
    environment = {**os.environ, "PYTHONPATH": str(copy), "COLUMNS": "300"}
    program = [sys.executable, "-W", "error", "-c", USES]
    done = subprocess.run(program, cwd=copy, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.replace("│", " ").replace("|", " ").split())  # help wraps where its columns are
    for word in (
        "optim.sign_sgd",
        "schedules.inverse_sqrt",
        "scaling.rules.random_matrix",
        "batching.geometric",
        "comm.one_shot",
        "regime, random_matrix",
    ):
        assert word in printed, word


def test_two_workers_train_by_them(copy, tmp_path, monkeypatch):
    digits = Recipe.named("digits/mlp").to_dict()
    digits |= {"budget": {"updates": 8}, "batch": {"global_batch": 64, "micro_batch": 8}}
    digits["optimizer"] = {"name": "sign_sgd", "lr": 0.001}
    digits["schedule"]["decay"] = {"kind": "inverse_sqrt"}
    runs = {
        "apart": {**digits, "comm": {"kind": "one_shot"}},
        "growing": {**digits, "batch": {**digits["batch"], "rule": {"kind": "geometric", "factor": 2.0, "every_updates": 2}}},
    }
    jobs = [{"task": "digits/mlp", "recipe": tomli_w.dumps(fields), "out": str(tmp_path / name)} for name, fields in runs.items()]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    monkeypatch.setenv("PYTHONPATH", str(copy))
    run_ranks(ROOT / "tests" / "distributed" / "train.py", 2, tmp_path, str(tmp_path / "jobs.json"))
    lines = {name: [json.loads(line) for line in (tmp_path / name / "record.jsonl").read_text().splitlines()] for name in runs}
    assert any(line.get("distance", 0) > 0 for line in lines["apart"]), "workers were never apart"
    assert max(line.get("global_batch", 0) for line in lines["growing"]) > 64
    assert any("2 times the batch" in str(line) for line in lines["growing"])

"""Ctrl-C at any moment: a word or silence, exit code 130, and never a traceback or "this is a bug"."""

import json
import subprocess
import sys

import pytest
from tests.limits import LIMIT_S

from bigbatch import Recipe

AT_AN_IMPORT = """
import _signal, json, runpy, sys
wanted, arguments = sys.argv[1], json.loads(sys.argv[2])
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            sys.meta_path.remove(self)
            _signal.raise_signal(_signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
sys.argv = ["bigbatch", *arguments]
runpy.run_module("bigbatch", run_name="__main__")
"""
TRAIN = ["train", "digits/mlp", "--set", "budget.epochs=1"]
COMMANDS = {"train": TRAIN, "scale": ["scale", "digits/mlp", "--to", "64"], "papers": ["papers"], "noise": ["noise", "digits/mlp"]}
IMPORTS = {
    "train": ["bigbatch.core.extras", "bigbatch.cli.app", "typer", "rich", "bigbatch.recipe", "pydantic", "torch", "numpy", "torch.nn"],
    "scale": ["bigbatch.cli.commands.scale", "torch", "bigbatch.study.comparison.scale", "matplotlib"],
    "papers": ["bigbatch.core.paper", "rich.table"],
    "noise": ["torch", "bigbatch.study.noise"],
}


def stopped(program, *arguments, cwd):
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 130, done.stdout + done.stderr
    return done.stderr


@pytest.mark.parametrize(("command", "module"), [(name, module) for name, modules in IMPORTS.items() for module in modules], ids=str)
def test_while_a_module_is_imported(tmp_path, command, module):
    said = stopped(AT_AN_IMPORT, module, json.dumps(COMMANDS[command]), cwd=tmp_path)
    assert said in ("", "interrupted (SIGINT): nothing more was saved\n")


TASK = """
import signal, time
from bigbatch.tasks.digits_mlp import DigitsMLP
class Task(DigitsMLP):
    def model(self):
        try:
            signal.raise_signal(signal.SIGINT)
            time.sleep(60)
        except BaseException:
            raise ImportError("a library made this of it") from None
"""


def test_what_a_library_makes_of_it_is_no_bug(tmp_path):
    """Before the run catches signals itself."""
    (tmp_path / "mine.py").write_text(TASK.replace("(DigitsMLP):", "(DigitsMLP):\n    def __init__(self, **_):\n        self.model()"))
    (tmp_path / "r.toml").write_text(Recipe.named("digits/mlp").to_toml())
    program = "import runpy, sys; sys.argv[0] = 'bigbatch'; runpy.run_module('bigbatch', run_name='__main__')"
    said = stopped(program, "train", "mine:Task", "--recipe", "r.toml", cwd=tmp_path)
    assert said == "interrupted (SIGINT): nothing more was saved\n"


def test_after_the_last_line(tmp_path):
    """Libraries take seconds to take themselves apart."""
    program = """
import atexit, runpy, signal, sys
atexit.register(signal.raise_signal, signal.SIGINT)
sys.argv = ["bigbatch", "papers", "legw"]
runpy.run_module("bigbatch", run_name="__main__")
"""
    assert stopped(program, cwd=tmp_path) == ""

"""Every code block of the README works as written: Python is run, commands are run, make targets exist, TOML is a recipe."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.forks import Program
from tests.limits import LIMIT_S

from bigbatch import Recipe

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.M | re.S)
KINDS = {"sh", "python", "toml"}
COMMANDS = [command for kind, block in BLOCKS if kind == "sh" for command in block.splitlines()]
REALLY_STARTED = {c for c in COMMANDS if c.startswith(("bigbatch tasks", "torchrun ")) or c.endswith("--out runs/one")}
"""By the programs that are installed; the others are forked, see forks.py."""


def of(kind):
    return [text for k, text in BLOCKS if k == kind]


def test_there_is_something_to_run_and_nothing_else():
    assert {kind for kind, _ in BLOCKS} == KINDS
    assert README.count("\n```") == 2 * len(BLOCKS)


def headings():
    """What each Python block stands under."""
    return [re.findall(r"^## (.*)$", README[: README.index(code)], flags=re.M)[-1] for code in of("python")]


@pytest.mark.parametrize("code", of("python"), ids=headings())
def test_python_blocks(code, tmp_path):
    program = Program(["-c", code], environment=os.environ, folder=tmp_path, warnings="error")
    assert program.wait(LIMIT_S) == 0, program.said()


def test_toml_block_is_a_recipe_and_the_named_one():
    (text,) = of("toml")
    assert Recipe.from_toml(text) == Recipe.named("fashion_mnist/resnet8")


def program_of(words):
    """The program of that name that is installed beside this Python, or the module where there is none."""
    program = Path(sys.executable).with_name(words[0])
    modules = {"bigbatch": "bigbatch", "torchrun": "torch.distributed.run"}
    return [str(program), *words[1:]] if program.exists() else [sys.executable, "-m", modules[words[0]], *words[1:]]


@pytest.mark.parametrize("block", of("sh"), ids=lambda block: " ".join(block.split()[:3]))
def test_commands(block, tmp_path):
    """Those of a block in their order, in a folder of their own: no block needs what another made."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for command in block.splitlines():
        if command.startswith("make "):
            assert subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, check=False).returncode == 0, command
            continue
        assert command.startswith(("bigbatch ", "torchrun "))
        words = shlex.split(command)
        if command in REALLY_STARTED:
            done = subprocess.run(program_of(words), cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)
            code, printed, said = done.returncode, done.stdout, done.stderr
        else:
            program = Program(["-m", *words], environment=os.environ, folder=tmp_path)
            code, (printed, said) = program.wait(LIMIT_S), program.communicate()
        assert code == 0, f"{command}\n{said}"
        assert printed
    for folder in re.findall(r"--out (runs/(?:digits|one))$", block, flags=re.M):
        assert (tmp_path / folder / "report.html").exists()

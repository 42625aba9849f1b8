"""Every code block of the README works as written: Python is run, commands are run, make targets exist, TOML is a recipe."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bigbatch import Recipe

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.M | re.S)
KINDS = {"sh", "python", "toml"}


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
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_toml_block_is_a_recipe_and_the_named_one():
    (text,) = of("toml")
    assert Recipe.from_toml(text) == Recipe.named("fashion_mnist/resnet8")


def test_commands_in_their_order(tmp_path):
    """One folder for all, as a reader would have it."""
    commands = [line for block in of("sh") for line in block.splitlines() if line]
    made = [c for c in commands if c.startswith("make ")]
    run = [c for c in commands if c.startswith(("bigbatch ", "torchrun "))]
    assert len(made) + len(run) == len(commands)
    for command in made:
        assert subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, check=False).returncode == 0, command
    for command in run:
        program = [sys.executable, "-m", *shlex.split(command.replace("torchrun ", "torch.distributed.run "))]
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout
    assert (tmp_path / "runs/digits/report.html").exists()
    assert (tmp_path / "runs/one/report.html").exists()

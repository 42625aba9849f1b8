"""Every code block of the README works as written: Python is run, commands are run, make targets exist, TOML is a recipe."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.limits import LIMIT_S

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
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr


def test_toml_block_is_a_recipe_and_the_named_one():
    (text,) = of("toml")
    assert Recipe.from_toml(text) == Recipe.named("fashion_mnist/resnet8")


@pytest.mark.parametrize("block", of("sh"), ids=lambda block: " ".join(block.split()[:3]))
def test_commands(block, tmp_path):
    """Those of a block in their order, in a folder of their own: no block needs what another made."""
    for command in block.splitlines():
        if command.startswith("make "):
            assert subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, check=False).returncode == 0, command
            continue
        assert command.startswith(("bigbatch ", "torchrun "))
        program = [sys.executable, "-m", *shlex.split(command.replace("torchrun ", "torch.distributed.run "))]
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout
    for folder in re.findall(r"--out (runs/(?:digits|one))$", block, flags=re.M):
        assert (tmp_path / folder / "report.html").exists()

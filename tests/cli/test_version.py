"""Versions, short options of help, and what a shell completes."""

import json
import os
import subprocess
import sys

import pytest
from tests.cli.command import bigbatch
from tests.limits import LIMIT_S

from bigbatch.core.version import __version__


def test_the_version_as_an_option_and_as_a_command():
    assert bigbatch("--version").stdout == f"{__version__}\n"
    assert bigbatch("version").stdout.startswith(f"bigbatch {__version__}, python ")
    assert json.loads(bigbatch("version", "--json", "-").stdout)["bigbatch"] == __version__


@pytest.mark.parametrize("command", [[], ["train"], ["scale"], ["papers"]], ids=str)
def test_h_is_help(command):
    assert bigbatch(*command, "-h").stdout == bigbatch(*command, "--help").stdout


def completed(words):
    """What bash is offered after these words."""
    environment = {"_BIGBATCH_COMPLETE": "complete_bash", "COMP_WORDS": f"bigbatch {words}", "COMP_CWORD": str(len(words.split()))}
    command = [sys.executable, "-c", "import sys; sys.argv = ['bigbatch']; from bigbatch.__main__ import main; main()"]
    environment = {**os.environ, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=True).stdout.split()


def test_a_shell_completes_commands_options_tasks_and_rules():
    assert completed("pap") == ["papers"]
    assert completed("train --keep") == ["--keep-checkpoints"]
    assert completed("train fashion_mnist/vi") == ["fashion_mnist/vit", "fashion_mnist/vit-muon"]
    assert completed("scale digits/ml") == ["digits/mlp"]
    assert completed("plan text/lstm --rule leg") == ["legw"]
    assert completed("train text/gpt --comm gos") == ["gossip"]


def test_the_script_of_a_completion_is_of_the_program_however_it_is_called():
    """Of which shell is said, not found out: these tests may run below another one."""
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "bigbatch", "--show-completion", "bash"]
    script = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=True).stdout
    assert "_BIGBATCH_COMPLETE=complete_bash" in script
    assert script.rstrip().endswith(" bigbatch")

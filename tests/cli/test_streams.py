"""A full disk behind standard output, a reader that has ended, a stream that is closed: one line and exit code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.limits import LIMIT_S

TRAIN = ["train", "digits/mlp", "--set", "budget.epochs=1", "--set", "batch.micro_batch=32"]
COMMANDS = {
    "help": ["--help"],
    "version": ["--version"],
    "papers": ["papers"],
    "a card": ["papers", "legw"],
    "as JSON": ["papers", "--json", "-"],
    "tasks": ["tasks"],
    "plan": ["plan", "digits/mlp", "--global-batch", "64"],
    "train": [*TRAIN, "--quiet"],
}
FULL = "error: standard output: No space left on device; write to where there is space\n"
CLOSED = "error: standard output: is closed (Broken pipe); let its reader read to the end, or write to a file\n"


def run(arguments, **streams):
    command = [sys.executable, "-m", "bigbatch", *arguments]
    return subprocess.run(command, **{"stderr": subprocess.PIPE, **streams}, text=True, timeout=LIMIT_S, check=False)


def closed_pipe():
    """The end to write to, of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_standard_output_is_full(arguments):
    with open("/dev/full", "w") as full:
        done = run(arguments, stdout=full)
    assert (done.returncode, done.stderr) == (2, FULL)


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_the_reader_of_standard_output_has_ended(arguments):
    writer = closed_pipe()
    try:
        done = run(arguments, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (2, CLOSED)


def test_the_reader_of_standard_error_has_ended():
    writer = closed_pipe()
    try:
        done = run(["train", "nothing"], stdout=subprocess.PIPE, stderr=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stdout) == (2, "")


def test_streams_that_are_closed_take_everything():
    command = f'"{sys.executable}" -m bigbatch {" ".join(TRAIN)} >&- 2>&-'
    assert subprocess.run(command, shell=True, timeout=LIMIT_S, check=False).returncode == 0

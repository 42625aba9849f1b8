"""`--json -` on every command: standard output then holds JSON and nothing else; and what `scale` says by its exit code."""

import json

import pytest
from tests.cli.command import bigbatch

from bigbatch.cli.app import app

SHORT = ["--set", "budget.epochs=1", "--set", "batch.micro_batch=32"]
LINK = ["--bandwidth", "1Gbit", "--latency", "50us"]
COMMANDS = {
    "train": ["train", "digits/mlp", *SHORT, "--global-batch", "64", "--rule", "sqrt", "--out", "fresh"],
    "scale": ["scale", "digits/mlp", "--to", "64", "--rule", "sqrt", *SHORT, "--seeds", "1", "--max-seeds", "1", "--out", "compared"],
    "noise": ["noise", "digits/mlp", *SHORT, "--out", "noise"],
    "critical": ["critical", "digits/mlp", "--batches", "32,64,128", "--target", "0.6", *SHORT, "--out", "critical"],
    "steps": ["steps", "digits/mlp", "--batches", "32,128", "--target", "0.6", "--trials", "2", *SHORT, "--out", "steps"],
    "curvature": ["curvature", "run", "--samples", "64", "--eigenvalues", "1", "--no-match"],
    "plan": ["plan", "digits/mlp", "--global-batch", "64"],
    "runs": ["runs", "."],
    "report": ["report", "run"],
    "export": ["export", "run", "weights.safetensors"],
    "tasks": ["tasks"],
    "papers": ["papers", "legw"],
    "doctor": ["doctor"],
    "simulate": ["simulate", "--workers", "8", "--model-bytes", "1MB", "--step", "9ms", *LINK],
    "version": ["version"],
    "init": ["init", "digits/mlp"],
}
ELSEWHERE = {"check": "test_check.py", "extrapolate": "test_extrapolate.py"}
"""Tested with what they need."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from bigbatch import Recipe, fit

    folder = tmp_path_factory.mktemp("json")
    recipe = Recipe.named("digits/mlp").replace({"budget.epochs": 1, "batch.micro_batch": 32})
    fit("digits/mlp", recipe, out=folder / "run", quiet=True)
    return folder


def test_every_command_has_it():
    names = {command.callback.__name__ for command in app.registered_commands}
    assert names == set(COMMANDS) | set(ELSEWHERE)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_standard_output_is_json_and_nothing_else(folder, command):
    done = bigbatch(*command, "--json", "-", cwd=folder)
    assert isinstance(json.loads(done.stdout), dict)


SCALE = ["scale", "digits/mlp", "--to", 64, "--rule", "linear", *SHORT, "--quiet", "--json", "-"]
VERDICTS = {
    "held": (0, ["--seeds", 3, "--max-seeds", 3, "--margin", 60, "--bad-share", 0.7]),
    "lost": (5, ["--seeds", 2, "--max-seeds", 2, "--set", "plan.optimizer.lr=1e-6"]),
    "undecided": (6, ["--seeds", 1, "--max-seeds", 1]),
}


@pytest.mark.parametrize("outcome", VERDICTS)
def test_the_verdict_as_an_exit_code(tmp_path, outcome):
    code, options = VERDICTS[outcome]
    command = [*SCALE, *options, "--out", tmp_path / "study"]
    assert json.loads(bigbatch(*command).stdout)["arms"][2]["outcome"] == outcome
    assert json.loads(bigbatch(*command, "--fail-unless-held", expect=code).stdout)["arms"][2]["outcome"] == outcome

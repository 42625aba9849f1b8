"""`--device`, the same for every command that computes."""

import pytest
from tests.cli.command import bigbatch
from typer.testing import CliRunner

from bigbatch.cli.app import app

SHORT = ["digits/mlp", "--set", "budget.epochs=1", "--quiet"]


@pytest.mark.parametrize("command", ["train", "noise", "scale", "critical", "curvature"])
def test_every_command_that_computes_has_it(command):
    assert "--device" in CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout


@pytest.mark.parametrize("more", [[], ["--workers", "2"], ["--workers", "2", "--comm", "parameter_server"]])
def test_a_device_that_is_not_here(tmp_path, more):
    done = bigbatch("train", *SHORT, *more, "--device", "cuda:77", cwd=tmp_path, expect=2)
    assert done.stderr.count("error: device cuda:77: is not here; choose among cpu") == 1
    assert len(done.stderr.splitlines()) == 1, "said once, not by each worker"


def test_the_cpu_on_purpose(tmp_path):
    bigbatch("train", *SHORT, "--workers", "2", "--device", "cpu", "--out", "run", cwd=tmp_path)
    assert '"device": "cpu"' in (tmp_path / "run" / "record.jsonl").read_text()

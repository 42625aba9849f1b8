"""Schedules of the batch as a person meets them: by `--set`, in plans and in runs."""

import json

import pytest
from tests.cli.command import bigbatch

RAMP = ["--set", "batch.rule.kind=ramp", "--set", "batch.rule.over_samples=2000", "--set", "batch.rule.largest=128"]


def test_a_run_by_options(tmp_path):
    command = ["train", "digits/mlp", "--set", "budget.epochs=3", "--quiet", "--out", "run"]
    bigbatch(*command, "--set", "batch.rule.kind=schedule", "--set", "batch.rule.steps=[[1000, 64], [3000, 96]]", cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "run" / "record.jsonl").read_text().splitlines()]
    made = [(line["samples"] - line["global_batch"], line["global_batch"]) for line in lines if line["kind"] == "update"]
    assert all(batch == (32 if seen < 1000 else 64 if seen < 3000 else 96) for seen, batch in made[:-1])
    assert {batch for _, batch in made[:-1]} == {32, 64, 96}
    again = bigbatch("train", "digits/mlp", "--recipe", "run/recipe.toml", "--quiet", "--out", "again", cwd=tmp_path)
    assert again.returncode == 0
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "again")]
    assert results[0]["test_score"] == results[1]["test_score"]


def test_a_plan_says_what_stays(tmp_path):
    done = bigbatch("plan", "digits/mlp", "--global-batch", 64, "--rule", "sqrt", *RAMP, "--out", "planned.toml", cwd=tmp_path)
    said = " ".join(done.stdout.split())
    assert 'batch.rule.kind = "ramp": only the first batch is 2 times the reference\'s; the rule goes on to 128, as before' in said
    assert 'kind = "ramp"\nover_samples = 2000\nlargest = 128\n' in (tmp_path / "planned.toml").read_text()
    short = bigbatch("plan", "digits/mlp", "--global-batch", 32, *RAMP, "--set", "budget.epochs=1", cwd=tmp_path)
    assert "comes to its last batch of 128 after 2,000 samples, and the run has 1,297" in " ".join(short.stdout.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--global-batch", 256, *RAMP], "batch.rule: a batch of 128 is smaller than global_batch = 256, at which the run begins"),
        (["--global-batch", 64, "--set", "batch.rule.kind=late"], "batch.rule.after: is missing"),
        (["--global-batch", 64, *RAMP, "--set", "batch.rule.largest=2000"], "batch.rule: a batch of 2,000 is larger than the training set"),
        (["--global-batch", 64, "--set", "batch.rule.kind=lately"], "batch.rule.kind = 'lately': must be one of increase_batch, adabatch"),
    ],
)
def test_a_mistake_is_one_readable_line(options, message, tmp_path):
    done = bigbatch("plan", "digits/mlp", "--rule", "none", *options, cwd=tmp_path, expect=2)
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1

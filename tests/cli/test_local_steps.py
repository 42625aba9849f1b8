"""The rule local as a person meets it: plans that say what they save, runs and comparisons by several workers."""

import json
import re

import pytest
from tests.cli.command import bigbatch

PLAN = ["plan", "digits/mlp", "--global-batch", 1024, "--rule", "local", "--workers", 4]


def test_a_plan_says_what_it_saves(tmp_path):
    done = bigbatch(
        *PLAN, "--bandwidth", "1Gbit", "--latency", "50ms", "--step", "20ms", "--json", "plan.json", "--out", "local.toml", cwd=tmp_path
    )
    said = " ".join(done.stdout.split())
    assert "batch 32 to 128 over 4 workers, which exchange every 1,024 samples" in said
    assert "exchanges of 4 workers: 26, where all-reduce makes 203 with these updates and 811 at the tuned batch" in said
    assert "bytes that each sends: " in said
    assert "time of the run, simulated: " in said
    saved = json.loads((tmp_path / "plan.json").read_text())
    assert saved["local"] == {"workers": 4, "samples": 1024, "inner_batch": 128, "period": 8, "ghost_batch": None}
    ways = saved["savings"]
    assert ways["local"]["seconds"] < ways["same_updates"]["seconds"] < ways["tuned_updates"]["seconds"]
    assert 'kind = "local_sgd"\n' in (tmp_path / "local.toml").read_text()


def test_the_link_may_be_measured(tmp_path):
    (tmp_path / "doctor.json").write_text(json.dumps({"link": {"alpha_s": 0.05, "beta_s_per_byte": 1e-9}}))
    done = bigbatch(*PLAN, "--doctor", "doctor.json", "--step", "20ms", cwd=tmp_path)
    assert "time of the run, simulated: " in done.stdout


def test_a_run_of_two_workers(tmp_path):
    command = ["train", "digits/mlp", "--global-batch", 512, "--rule", "local", "--workers", 2, "--set", "budget.epochs=3", "--out", "run"]
    done = bigbatch(*command, cwd=tmp_path)
    assert "over 2 workers, which exchange every 512 samples" in " ".join(done.stdout.split())
    start = json.loads((tmp_path / "run" / "record.jsonl").read_text().splitlines()[0])
    assert (start["workers"], start["recipe"]["comm"]["kind"], start["recipe"]["comm"]["period"]) == (2, "local_sgd", 4)


def test_a_comparison(tmp_path):
    command = [
        "scale",
        "digits/mlp",
        "--to",
        512,
        "--rule",
        "local",
        "--workers",
        2,
        "--set",
        "budget.epochs=3",
        "--set",
        "batch.micro_batch=32",
    ]
    done = bigbatch(*command, "--seeds", 1, "--max-seeds", 1, "--quiet", "--out", "cmp", cwd=tmp_path)
    said = " ".join(done.stdout.split())
    assert "local at 512 samples between exchanges of 2 workers (updates of 128): " in said
    records = {path.parts[-3]: json.loads(path.read_text().splitlines()[0])["workers"] for path in (tmp_path / "cmp").rglob("record.jsonl")}
    assert records == {"reference": 1, "batch-512-only": 1, "batch-512-local-2-workers": 2}
    assert "digits/mlp: 32 to 512" in (tmp_path / "cmp" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--step", "20ms"], "--step 20ms: says nothing without a link"),
        (["--bandwidth", "1Gbit"], "the link is not known: give --bandwidth and --latency"),
        (["--bandwidth", "1Gbit", "--latency", "50ms"], "--step: is missing"),
        (["--workers", "0"], "workers = 0"),
        (["--global-batch", "1000000"], "1,000,000 samples between exchanges: more than the run has"),
        (["--model-bytes", "much"], "--model-bytes"),
    ],
)
def test_a_mistake_is_one_readable_line(options, message, tmp_path):
    done = bigbatch(*PLAN, *options, cwd=tmp_path, expect=2)
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_number_of_workers_is_asked_for(tmp_path):
    done = bigbatch(*PLAN[:-2], cwd=tmp_path, expect=2)
    assert 'rule = "local": needs the number of workers that exchange; give workers (--workers)' in done.stderr


def test_a_servers_updates_are_not_said_to_be_the_recipes(tmp_path):
    """They take a period of every worker; it said "of 32"."""
    server = ["--comm", "parameter_server", "--set", "comm.period=4", "--set", "budget.epochs=2"]
    done = bigbatch("train", "digits/mlp", "--workers", 2, *server, "--quiet", cwd=tmp_path)
    updates, size = re.search(r"([\d,]+) updates of ([\d,]+) on the mean", " ".join(done.stdout.split())).groups()
    assert int(updates) * int(size) == pytest.approx(2 * 1297, rel=0.02)

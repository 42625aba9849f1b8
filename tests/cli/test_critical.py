"""`bigbatch critical` as a person meets it."""

import json

import pytest
from tests.cli.command import bigbatch

COMMAND = ["critical", "digits/mlp", "--batches", "16,64,256", "--target", "0.9", "--set", "batch.micro_batch=16"]


def test_table_sentence_doubts_and_files(tmp_path):
    (tmp_path / "noise.json").write_text(json.dumps({"average": {"noise_scale": 50.0}}))
    done = bigbatch(*COMMAND, "--noise", "noise.json", cwd=tmp_path)
    for text in ("best rate", "S/S_min", "E/E_min", "critical batch", "caveat: one run a batch", "the noise scale, 50 samples, lies"):
        assert text in done.stdout, text
    assert done.stdout.endswith("plot: runs/critical/digits-mlp/critical.svg, numbers: runs/critical/digits-mlp/critical.json\n")
    assert "batch 16, rate 0.0707, seed 0: at most 6,485 updates" in done.stderr
    folder = tmp_path / "runs" / "critical" / "digits-mlp"
    assert json.loads((folder / "critical.json").read_text())["noise"]["noise_scale"] == 50
    assert "noise scale 50 as critical batch" in (folder / "critical.svg").read_text()
    (tmp_path / "noise.json").write_text('{"average": {}}')
    again = bigbatch(*COMMAND, "--noise", "noise.json", "--quiet", cwd=tmp_path)
    assert again.stderr == "noise.json: gives no noise scale to compare with (none); measure over more updates\n"
    assert "critical" in bigbatch("--help").stdout


def test_a_target_out_of_reach_is_an_outcome(tmp_path):
    command = [*COMMAND, "--target", 1.0, "--max-epochs", 0.2, "--quiet", "--out", "out"]
    done = bigbatch(*command, cwd=tmp_path)
    assert "no fit: 0 of 3 batches reached the target, three must; lower the target or train longer" in done.stdout
    assert "1 of 1 stopped before the target" in done.stdout
    assert (tmp_path / "out" / "critical.svg").exists()
    assert json.loads(bigbatch(*command, "--json", "-", cwd=tmp_path).stdout)["target"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches", "16;64"], "--batches 16;64: must be whole numbers with commas between, such as 64,256,1024"),
        (["--batches", "16,64"], "batches = [16, 64]: two unknowns and a scatter need three different ones at least; add batches"),
        (["--target", "90"], "target = 90.0: must be a validation score above 0 and up to 1; 88 % is 0.88"),
        (["--noise", "absent.json"], "--noise absent.json: can't be read: "),
    ],
)
def test_a_mistake_is_one_readable_line(tmp_path, arguments, message):
    done = bigbatch(*COMMAND, *arguments, cwd=tmp_path, expect=2)
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_branches_of_a_run_give_a_table_sentences_and_files(tmp_path):
    settings = ["--set", "batch.micro_batch=16", "--set", "budget.epochs=6", "--set", "batch.global_batch=16"]
    bigbatch("train", "digits/mlp", "--keep-checkpoints", "--out", "run", "--quiet", *settings, cwd=tmp_path)
    command = ["critical", "--branch", "run", "--samples", "1024", "--windows", "2", "--at", "82,163"]
    done = bigbatch(*command, cwd=tmp_path)
    for text in ("digits/mlp: branches of 1,024 samples", "rate times", "worse by", "at update 82: ", "at update 163: "):
        assert text in done.stdout, text
    folder = "runs/critical/run-branches"
    assert done.stdout.endswith(f"plot: {folder}/branches.svg, numbers: {folder}/branches.json\n")
    assert done.stderr.startswith("8 branches of 1,024 samples, each evaluated on 200, at each checkpoint: 99 % of the run's cost\n")
    assert "<svg" in (tmp_path / folder / "branches.svg").read_text()
    assert json.loads(bigbatch(*command, "--json", "-", "--quiet", cwd=tmp_path).stdout)["points"][0]["updates"] == 82
    wrong = bigbatch(*command, "--batches", "16,64,256", cwd=tmp_path, expect=2)
    assert wrong.stderr == "error: --branch: is another way than --batches and --target; leave them out\n"
    wrong = bigbatch("critical", "digits/mlp", cwd=tmp_path, expect=2)
    assert wrong.stderr == "error: --batches and --target: are missing; or give --branch RUN, a run with checkpoints\n"
    wrong = bigbatch("critical", "--branch", "absent", cwd=tmp_path, expect=2)
    assert "absent: holds no checkpoint" in wrong.stderr

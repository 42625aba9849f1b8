"""The noise scale from the command line, and plans that know it."""

import json

from tests.cli.command import bigbatch


def test_noise_then_a_plan_that_knows_it(tmp_path):
    few = ["--set", "budget.epochs=2", "--set", "batch.micro_batch=32"]
    done = bigbatch("noise", "digits/mlp", *few, "--at", "10,60", "--layers", "--json", "n.json", "--quiet", cwd=tmp_path)
    for part in ("0 to 50", "noise scale, samples", "batches up to ", "caveat: ", "plot: runs/noise/digits-mlp/noise.svg"):
        assert part in done.stdout
    stored = json.loads((tmp_path / "n.json").read_text())
    assert [s["first"] for s in stored["stretches"]] == [0, 32]
    again = bigbatch("noise", "digits/mlp", *few, "--at", "10,60", "--layers", "--json", "-", "--quiet", cwd=tmp_path)
    assert json.loads(again.stdout) == stored  # of the run that is there, and nothing else on standard output
    assert (tmp_path / "runs/noise/digits-mlp/noise.svg").read_text().startswith("<svg")
    stored["average"]["noise_scale"] = 128.0
    (tmp_path / "n.json").write_text(json.dumps(stored))
    above = bigbatch("plan", "digits/mlp", "--global-batch", "512", "--noise", "n.json", cwd=tmp_path).stdout
    assert "4 times the noise scale of 128 samples" in " ".join(above.split())
    assert "S/S_min = 1.25, E/E_min = 5" in " ".join(above.split())
    assert "noise scale" not in bigbatch("plan", "digits/mlp", "--global-batch", "64", "--noise", "n.json", cwd=tmp_path).stdout


def test_bad_input(tmp_path):
    for arguments, words in (
        (["noise", "digits/mlp", "--at", "early"], "error: --at early: must be whole numbers with commas between"),
        (["plan", "digits/mlp", "--global-batch", "64", "--noise", "none.json"], "error: --noise none.json: can't be read"),
        (["noise", "fashion_mnist/resnet8", "--quiet"], "error: global_batch = 128 is one normalisation group (ghost_batch = 128)"),
        (["train", "digits/mlp", "--set", "batch.rule={kind='norm_tset'}"], "batch.rule"),
        (
            ["train", "digits/mlp", "--set", "batch.rule={kind='norm_test', largest=8}", "--quiet"],
            "must be at least global_batch = 32; give a larger one",
        ),
    ):
        done = bigbatch(*arguments, cwd=tmp_path, expect=2)
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_tokens_and_norm_layers_of_a_language_model(tmp_path):
    small = [f"--set={field}" for field in ("model={width=16,num_blocks=1,num_heads=2}", "budget={updates=20}", "batch.global_batch=8")]
    done = bigbatch("noise", "text/gpt", *small, "--norms", "--json", "n.json", "--quiet", cwd=tmp_path)
    for part in ("in tokens", "norms", "by the norm layers alone, batches", " tokens", "caveat: It is of the norm layers alone"):
        assert part in " ".join(done.stdout.split())
    planned = bigbatch("plan", "text/gpt", "--global-batch", "512", "--rule", "adamw", "--noise", "n.json", cwd=tmp_path)
    assert "n.json: is of the norm layers alone" in planned.stderr
    assert "noise scale of" not in planned.stdout

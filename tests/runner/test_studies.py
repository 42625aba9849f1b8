"""Studies by a task, by a function and by a command: the same scores, verdicts, fits and reports."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from tests.cli.command import bigbatch
from tests.runner import digits_own
from tests.runner.scripts import CURVE, RUN, SETTINGS, write_script

from bigbatch import Recipe, UserError, scale
from bigbatch.runner import CommandRunner, FunctionRunner
from bigbatch.runner.parallel import Parallel
from bigbatch.study.critical.critical import critical
from bigbatch.study.search import search

ROOT = Path(__file__).resolve().parents[2]
DIGITS = Recipe.named("digits/mlp").replace({"budget.epochs": 2, "batch.micro_batch": 32, "model.hidden": 16})
SCRIPT = {
    "run": [sys.executable, "-m", "tests.runner.digits_own", "--recipe", "{recipe}"],
    "folder": str(ROOT),
    "environment": {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"},
    "score": "test accuracy ([0-9.]+)",
    "curve": "update (?P<updates>[0-9]+) loss (?P<loss>[0-9.e-]+) validation (?P<score>[0-9.]+)",
    "metric": digits_own.ACCURACY,
    "num_test_samples": 300,
}


@pytest.mark.slow
def test_the_same_scores_by_a_task_a_function_and_a_command(tmp_path):
    ways = {
        "task": "digits/mlp",
        "function": FunctionRunner(digits_own.train, name="digits/mlp", num_test_samples=300),
        "command": CommandRunner(SCRIPT, name="digits/mlp"),
    }
    how = {"to": 128, "rule": "legw", "seeds": 2, "max_seeds": 2, "quiet": True}
    overrides = {"batch.micro_batch": 128}
    found = {name: scale(way, recipe=DIGITS, out=tmp_path / name, overrides=overrides, **how) for name, way in ways.items()}
    scores = {name: [[r.test_score for r in arm.results] for arm in comparison.arms] for name, comparison in found.items()}
    only = {name: values[::2] for name, values in scores.items()}  # of "batch only" the task alone cuts its updates into four
    assert only["function"] == only["command"] == only["task"]
    assert scores["function"] == scores["command"]
    assert len({found[name].sentence(found[name].arms[2]) for name in ways}) == 1


def test_a_settings_file_is_the_whole_call(tmp_path):
    write_script(tmp_path)
    (tmp_path / "mine.toml").write_text(SETTINGS)
    design = ["--seeds", 2, "--max-seeds", 2, "--parallel", 2]
    done = bigbatch("scale", "mine.toml", "--to", 128, *design, "--out", "study", cwd=tmp_path)
    assert "rule legw (muon would change optimizer.adam_lr" in " ".join(done.stdout.split())
    assert "legw at 128: " in done.stdout
    assert "arm 3 of 3, legw, batch 128, seed 1" in done.stderr
    report = (tmp_path / "study" / "report.html").read_text()
    assert "Validation accuracy by samples" in report
    assert "did not hold" in report or "undecided" in report
    stored = json.loads(bigbatch("scale", "mine.toml", "--to", 128, *design, "--out", "study", "--json", "-", cwd=tmp_path).stdout)
    assert [len(arm["results"]) for arm in stored["arms"]] == [2, 2, 2]
    assert all(85 < run["test_score"] < 95 for arm in stored["arms"][:1] for run in arm["results"])


def test_options_are_the_same_call(tmp_path):
    write_script(tmp_path)
    (tmp_path / "mine.toml").write_text(SETTINGS)
    (tmp_path / "recipe.toml").write_text(SETTINGS.partition("[command]")[0])
    of_command = ["--command", RUN, "--score", "test_acc ([0-9.]+)", "--curve", CURVE, "--metric", "accuracy,%", "--better", "higher"]
    rest = ["--to", 128, "--seeds", 1, "--max-seeds", 1, "--quiet", "--json", "-"]
    by_options = bigbatch("scale", *of_command, "--margin", 0.5, "--recipe", "recipe.toml", *rest, "--out", "a", cwd=tmp_path)
    by_file = bigbatch("scale", "mine.toml", *rest, "--out", "b", cwd=tmp_path)
    one, other = json.loads(by_options.stdout), json.loads(by_file.stdout)
    for stored in (one, other):
        for arm in stored["arms"]:
            for run in arm["results"]:
                run.pop("train_s"), run.pop("samples_per_s")
    assert one == other


def test_critical_of_a_command_that_keeps_its_schedule(tmp_path):
    write_script(tmp_path)
    (tmp_path / "mine.toml").write_text(SETTINGS)
    command = ["critical", "mine.toml", "--batches", "16,64,256,512", "--target", 60, "--max-epochs", 20, "--parallel", 2, "--quiet"]
    done = bigbatch(*command, "--out", "study", "--json", "critical.json", cwd=tmp_path)
    stored = json.loads((tmp_path / "critical.json").read_text())
    assert stored["fit"]["critical_batch"]["lower"] < 128 < stored["fit"]["critical_batch"]["upper"]  # the script's own
    assert "the script keeps its own schedule over 20 epochs" in " ".join(done.stdout.split())
    assert len(bigbatch(*command[:-1], "--out", "study", cwd=tmp_path).stderr.split("found finished")) > 12


def test_search_by_a_function(tmp_path):
    from tests.runner.scripts import RECIPE, trains

    with Parallel(2) as pool:
        found = search(trains, RECIPE, {"optimizer.lr": [0.1, 0.2]}, seeds=[0, 1], out=tmp_path, pool=pool)
    assert [len(trial.scores) for trial in found] == [2, 2]
    assert search(trains, RECIPE, {"optimizer.lr": [0.1, 0.2]}, seeds=[0, 1], out=tmp_path) == found


def test_a_rule_that_the_command_has_no_place_for_is_an_error(tmp_path):
    write_script(tmp_path)
    (tmp_path / "mine.toml").write_text(SETTINGS)
    done = bigbatch("scale", "mine.toml", "--to", 128, "--rule", "lamb", cwd=tmp_path, expect=2)
    assert "the plan changes optimizer." in done.stderr
    assert "your command or function has no place for them: add a field to the command" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_critical_needs_a_place_for_the_rate(tmp_path):
    runner = CommandRunner({**SCRIPT, "run": "python x.py {batch.global_batch} {num_updates}"})
    with pytest.raises(UserError, match=r"has no place for optimizer.lr, which a study of batches changes"):
        critical(runner, DIGITS, batches=[16, 32, 64], target=0.9, out=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "TASK: is missing; give a task, module:function, a settings file, or --command"),
        (["digits/mlp", "--score", "x (.*)"], "--score: is of a command"),
        (["digits/mlp", "--command", "x"], "a task and --command are two ways to train"),
        (["--command", "x"], "--command: needs --recipe FILE"),
        (["--command", "x", "--recipe", "recipe.toml"], "--command: needs --score, --metric and --better"),
        (
            ["--command", "x", "--recipe", "recipe.toml", "--score", "(.)", "--metric", "loss", "--better", "less", "--margin", 1],
            "better = 'less'",
        ),
        (["nothing.toml"], "nothing.toml: "),
        (["both.toml"], r"has [command] and [function]"),
        (["digits/mlp", "--on", "slurm"], "--on slurm: must be ray, or ray:ADDRESS"),
        (["digits/mlp", "--parallel", 0], "parallel = 0: must be a finite number above zero"),
        (["no_module:train"], "no module named 'no_module'"),
        (["scripts_of_mine:tarin"], "did you mean 'train'?"),
        (["scripts_of_mine:train"], "function train: states no metric"),
    ],
)
def test_refused_options(tmp_path, arguments, why):
    head = SETTINGS.partition("[command]")[0]
    (tmp_path / "recipe.toml").write_text(head)
    (tmp_path / "both.toml").write_text(SETTINGS + '[function]\nrun = "a:b"\n')
    (tmp_path / "scripts_of_mine.py").write_text("def train(recipe, run):\n    pass\n")
    assert why in bigbatch("scale", *arguments, "--to", 128, cwd=tmp_path, expect=2).stderr


def test_a_function_of_a_settings_file(tmp_path):
    (tmp_path / "my_training.py").write_text("def train(recipe, run):\n    return 90 - recipe.optimizer.lr\n")
    function = '[function]\nrun = "my_training:train"\nmetric = { name = "points", better = "higher", margin = 1.0 }\ncan = ["lr"]\n'
    (tmp_path / "mine.toml").write_text(SETTINGS.partition("[command]")[0] + function)
    rest = ["--to", 128, "--seeds", 1, "--max-seeds", 1, "--quiet"]
    stored = json.loads(bigbatch("scale", "mine.toml", *rest, "--json", "-", cwd=tmp_path).stdout)
    assert [arm["results"][0]["test_score"] for arm in stored["arms"]] == [89.9, 89.9, 89.8]


@pytest.mark.slow
def test_a_language_model_of_one_s_own_with_ragged_weighted_tokens(tmp_path):
    shutil.copy(ROOT / "examples" / "own_language_model.py", tmp_path)
    (tmp_path / "lm.toml").write_text(runpy.run_path(str(ROOT / "examples" / "own_language_model.py"))["RECIPE"])
    lm = ["own_language_model:Documentation", "--recipe", "lm.toml", "--quiet", "--parallel", 2]
    design = ["--to", 64, "--rule", "sqrt", "--seeds", 2, "--max-seeds", 2]
    said = bigbatch("scale", *lm, *design, cwd=tmp_path).stdout
    assert "nats per letter of loss" in said
    assert "margin +0.02 nats per letter at 95 %" in said
    example = runpy.run_path(str(ROOT / "examples" / "own_language_model.py"))
    recipe = Recipe.from_toml(example["RECIPE"]).replace({"optimizer.lr": 0.048})
    how = {"batches": [16, 32, 64], "target": 2.3, "lr_factors": [1.0], "max_epochs": 6, "evaluate_every": 0.5, "quiet": True}
    study = critical(example["Documentation"](), recipe, out=tmp_path / "batches", **how)
    assert all(run.reached and run.best_score <= 2.3 for point in study.points for run in point.runs)
    assert study.fit is not None
    assert "this is for loss 2.3 nats per letter on validation data" in next(study.doubts())


def test_runs_of_commands_are_listed(tmp_path):
    write_script(tmp_path)
    (tmp_path / "mine.toml").write_text(SETTINGS)
    bigbatch("scale", "mine.toml", "--to", 128, "--seeds", 1, "--max-seeds", 1, "--quiet", "--out", "study", cwd=tmp_path)
    bigbatch("critical", "mine.toml", "--batches", "16,32,64", "--target", 99, "--quiet", "--out", "batches", cwd=tmp_path)
    (tmp_path / "study/reference/seed-0/result.json").unlink()  # as if it had been stopped
    failed = tmp_path / "study/batch-128-only/seed-0"
    (failed / "result.json").unlink()
    (failed / "failed.txt").write_text("attempt 1: no data\n")
    rows = json.loads(bigbatch("runs", ".", "--json", "-", cwd=tmp_path).stdout)["runs"]
    states = {row["run"]: row["state"] for row in rows}
    assert all(0 < row["score"] < 100 for row in rows if row["score"] is not None)
    assert states["study/reference/seed-0"] == "stopped"
    assert states["study/batch-128-only/seed-0"] == "failed"
    assert states["study/batch-128-legw/seed-0"] == "finished"
    assert all(path.startswith("batches/runs.jsonl:") for path in states if path.startswith("batches"))  # each run once


def test_a_plan_of_a_settings_file_is_the_one_that_scale_makes(tmp_path):
    write_script(tmp_path)
    (tmp_path / "mine.toml").write_text(SETTINGS)
    said = " ".join(bigbatch("plan", "mine.toml", "--global-batch", 128, cwd=tmp_path).stdout.split())
    assert "rule legw (muon would change optimizer.adam_lr" in said
    assert Recipe.load(tmp_path / "mine.toml").batch.global_batch == 32
    (tmp_path / "broken.toml").write_text("[command\n")
    assert "broken.toml" in bigbatch("plan", "broken.toml", "--global-batch", 128, cwd=tmp_path, expect=2).stderr

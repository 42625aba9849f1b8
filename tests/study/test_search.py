import json

import pytest
from tests.limited_files import limited_files

from bigbatch import Metric, Recipe
from bigbatch.core.checks import OutputError
from bigbatch.runner import FunctionRunner
from bigbatch.runner import task as task_runner
from bigbatch.study.search import search
from bigbatch.tasks import load_task

RECIPE = Recipe.named("digits/mlp").replace({"budget.epochs": 1, "batch.micro_batch": 32})


def test_finds_the_better_rate_on_validation_data_and_continues(tmp_path, monkeypatch):
    choices = {"optimizer.lr": [1e-5, 0.1, 1e9]}
    trials = search(load_task("digits/mlp"), RECIPE, choices, seeds=[0, 1], out=tmp_path)
    assert [t.settings["optimizer.lr"] for t in trials] == [0.1, 1e-5, 1e9]
    assert trials[-1].scores == (0.0, 0.0)  # diverged
    lines = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert all("test" not in key for line in lines for key in line)
    monkeypatch.setattr("bigbatch.runner.task.fit", None)  # nothing is left to run
    assert search(load_task("digits/mlp"), RECIPE, choices, seeds=[0, 1], out=tmp_path) == trials


def test_damaged_lines_cost_only_their_own_runs(tmp_path, monkeypatch):
    choices = {"optimizer.lr": [0.05, 0.1, 0.2]}
    trials = search(load_task("digits/mlp"), RECIPE, choices, seeds=[0], out=tmp_path)
    path = tmp_path / "trials.jsonl"
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second.replace(b'"validation_score"', b'"validation_scare"') + third)
    made = []
    whole = task_runner.fit
    monkeypatch.setattr(task_runner, "fit", lambda *args, **settings: made.append(args[1].optimizer.lr) or whole(*args, **settings))
    with pytest.warns(UserWarning, match=r"trials.jsonl: 1 line is damaged \(line 2: no 'validation_score'\), 2 can be read and are kept"):
        assert search(load_task("digits/mlp"), RECIPE, choices, seeds=[0], out=tmp_path) == trials
    assert made == [0.1]
    assert [json.loads(line)["settings"]["optimizer.lr"] for line in path.read_bytes().splitlines()] == [0.05, 0.2, 0.1]


def test_a_run_after_one_that_was_killed_while_it_wrote(tmp_path, monkeypatch):
    choices = {"optimizer.lr": [0.1, 0.2]}
    trials = search(load_task("digits/mlp"), RECIPE, choices, seeds=[0], out=tmp_path)
    path = tmp_path / "trials.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert search(load_task("digits/mlp"), RECIPE, choices, seeds=[0], out=tmp_path) == trials
    monkeypatch.setattr("bigbatch.runner.task.fit", None)  # what was run again is found again
    assert search(load_task("digits/mlp"), RECIPE, choices, seeds=[0], out=tmp_path) == trials


def test_a_full_disk_leaves_the_lines_before(tmp_path):
    task = load_task("digits/mlp")
    search(task, RECIPE, {"optimizer.lr": [0.1]}, seeds=[0], out=tmp_path)
    before = (tmp_path / "trials.jsonl").read_bytes()
    with limited_files(len(before) + 5), pytest.raises(OutputError, match=r"trials.jsonl: File too large; its earlier lines are intact"):
        search(task, RECIPE, {"optimizer.lr": [0.1, 0.2]}, seeds=[0], out=tmp_path)
    assert (tmp_path / "trials.jsonl").read_bytes() == before


def test_another_recipe_s_runs_in_the_same_folder_are_not_taken_for_its_own(tmp_path):
    def of_batch(recipe, run):
        run.log(updates=1, score=recipe.batch.global_batch + recipe.optimizer.lr)

    runner, choices = FunctionRunner(of_batch, metric=Metric("reward", margin=1.0)), {"optimizer.lr": [0.1, 0.2]}
    for batch in (8, 64):
        trials = search(runner, RECIPE.replace({"batch.global_batch": batch}), choices, seeds=[0], out=tmp_path)
        assert [trial.mean for trial in trials] == [batch + 0.2, batch + 0.1]
    more = search(runner, RECIPE.replace({"batch.global_batch": 8}), {"optimizer.lr": [0.05, 0.1, 0.2]}, seeds=[0], out=tmp_path)
    assert [trial.mean for trial in more] == [8.2, 8.1, 8.05]
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 5  # only what was missing was made


def test_lines_of_earlier_versions_are_taken(tmp_path):
    (tmp_path / "trials.jsonl").write_text('{"settings": {"optimizer.lr": 0.1}, "seed": 0, "validation_score": 7.0}\n')
    runner = FunctionRunner(lambda recipe, run: None, metric=Metric("reward", margin=1.0))
    assert [trial.mean for trial in search(runner, RECIPE, {"optimizer.lr": [0.1]}, seeds=[0], out=tmp_path)] == [7.0]

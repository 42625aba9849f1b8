import json

import pytest

from bigbatch import Recipe
from bigbatch.study.grid import Cell, run_grid, verdict_of
from bigbatch.tasks.task import load_task

RECIPE = Recipe.named("digits/mlp").replace({"budget.epochs": None, "budget.updates": 10, "batch.micro_batch": 32})


def test_a_finished_cell_is_not_run_again(tmp_path):
    path, task = tmp_path / "runs.jsonl", load_task("digits/mlp")
    cells = [Cell({"arm": "a"}, RECIPE), Cell({"arm": "b"}, RECIPE.replace({"optimizer.lr": 0.2}))]
    first = run_grid(task, cells[:1], seeds=[0], path=path, facts={"commit": "x"})
    both = run_grid(task, cells, seeds=[0], path=path, facts={"commit": "y"})
    assert both[0] == first[0]
    assert [line["commit"] for line in both] == ["x", "y"]
    assert [json.loads(line) for line in path.read_text().splitlines()] == both
    assert "weight_distance" not in both[0]


def test_distances_of_the_weights_come_with_the_line_if_asked_for(tmp_path):
    cell = Cell({"arm": "a"}, RECIPE)
    (line,) = run_grid(
        load_task("digits/mlp"), [cell], seeds=[0], path=tmp_path / "runs.jsonl", facts={}, measure_test=False, measure_distance=True
    )
    assert [t for t, _ in line["weight_distance"]] == list(range(1, 11))
    assert line["weight_distance"][-1][1] > 0


def test_a_damaged_line_costs_its_own_run(tmp_path):
    path, task = tmp_path / "runs.jsonl", load_task("digits/mlp")
    cells = [Cell({"arm": name}, RECIPE.replace({"optimizer.lr": lr})) for name, lr in (("a", 0.05), ("b", 0.1), ("c", 0.2))]
    first = run_grid(task, cells, seeds=[0], path=path, facts={"commit": "x"})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1].replace(b'"optimizer"', b'"optimiser"'), lines[2]]))
    with pytest.warns(UserWarning, match=r"runs.jsonl: 1 line is damaged \(line 2: .*optimizer: is missing"):
        again = run_grid(task, cells, seeds=[0], path=path, facts={"commit": "y"})
    assert [line["commit"] for line in again] == ["x", "y", "x"]
    assert [line["test_score"] for line in again] == [line["test_score"] for line in first]


def test_a_reference_of_which_a_run_diverged_is_the_others():
    run = {"diverged": False}
    reference = [{**run, "test_score": score} for score in (0.9, 0.901, 0.899)]
    cell = [{**run, "test_score": score} for score in (0.9, 0.9, 0.901)]
    died = {"diverged": True, "test_score": None}
    assert verdict_of(cell, [*reference, died], margin=0.5) == verdict_of(cell, reference, margin=0.5)
    assert verdict_of(cell, [died], margin=0.5).outcome == "undecided"

from bigbatch import Recipe
from bigbatch.study.grid import Cell, run_grid
from bigbatch.tasks.task import load_task
from bigbatch.train.record import read_record

RECIPE = Recipe.named("digits/mlp").replace({"budget.epochs": None, "budget.updates": 10, "batch.micro_batch": 32})


def test_a_finished_cell_is_not_run_again(tmp_path):
    path, task = tmp_path / "runs.jsonl", load_task("digits/mlp")
    cells = [Cell({"arm": "a"}, RECIPE), Cell({"arm": "b"}, RECIPE.replace({"optimizer.lr": 0.2}))]
    first = run_grid(task, cells[:1], seeds=[0], path=path, facts={"commit": "x"})
    both = run_grid(task, cells, seeds=[0], path=path, facts={"commit": "y"})
    assert both[0] == first[0]
    assert [line["commit"] for line in both] == ["x", "y"]
    assert read_record(path) == both
    assert "weight_distance" not in both[0]


def test_distances_of_the_weights_come_with_the_line_if_asked_for(tmp_path):
    cell = Cell({"arm": "a"}, RECIPE)
    (line,) = run_grid(
        load_task("digits/mlp"), [cell], seeds=[0], path=tmp_path / "runs.jsonl", facts={}, measure_test=False, measure_distance=True
    )
    assert [t for t, _ in line["weight_distance"]] == list(range(1, 11))
    assert line["weight_distance"][-1][1] > 0

import json

from bigbatch import Recipe
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
    monkeypatch.setattr("bigbatch.study.search.fit", None)  # nothing is left to run
    assert search(load_task("digits/mlp"), RECIPE, choices, seeds=[0, 1], out=tmp_path) == trials

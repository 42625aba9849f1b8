import pytest

from bigbatch import Recipe, plan

MLP = Recipe.named("fashion_mnist/mlp")


@pytest.mark.parametrize(
    ("changes", "batch", "rule", "reason"),
    [
        ({}, 512, "linear", "k = 4 is at most 4"),
        ({}, 1024, "legw", "k = 8 is beyond linear scaling here and a warm-up of 0.8 epochs fits"),
        ({"schedule.warmup.kind": "none"}, 2048, "sqrt", "no room for the warm-up"),
        ({"budget.epochs": 4}, 512, "legw", "a warm-up of 0.4 epochs fits"),
        ({"optimizer.name": "adamw", "optimizer.lr": 1e-3}, 1024, "sqrt", "adamw is not SGD"),
    ],
)
def test_chooses_by_the_rules_own_limits(changes, batch, rule, reason):
    planned = plan(MLP.replace(changes), global_batch=batch)
    assert planned.rule == rule
    assert reason in planned.reason

import pytest

from bigbatch import Recipe, plan
from bigbatch.scaling.rules.sqrt import sqrt_lr


def test_hand_worked():
    assert sqrt_lr(0.1, 32) == pytest.approx(0.565685424949238)
    assert sqrt_lr(3.0, 4) == 6.0


def test_changes_the_rate_and_the_normalisation_group_only():
    recipe = Recipe.named("fashion_mnist/resnet8").replace({"batch.ghost_batch": "global"})
    planned = plan(recipe, global_batch=2048, rule="sqrt")
    assert [c.field for c in planned.changes] == ["batch.global_batch", "optimizer.lr", "batch.ghost_batch"]
    assert planned.recipe.optimizer.lr == pytest.approx(4 * recipe.optimizer.lr)
    assert planned.recipe.batch.ghost_batch == 128

"""Tokens per sample: from the task, its weights, or the recipe's budget."""

import pytest
from tests.structured_tasks import RECIPE, Words

from bigbatch import Recipe
from bigbatch.core.checks import UserError
from bigbatch.runner.function import FunctionRunner
from bigbatch.runner.task import TaskRunner
from bigbatch.study.tokens import mean_weight, tokens_per_sample
from bigbatch.tasks import load_task

BUDGET = RECIPE.replace({"budget": {"tokens": 1000, "tokens_per_sample": 5.5}})


class Fixed(Words):
    tokens_per_sample = 12


class ByWeights(Words):
    tokens_per_sample = "weights"


def test_the_task_says_it_or_its_weights_or_the_budget_or_nobody():
    train = Words().splits().train
    predicted = sum(len(train[i]) - 1 for i in range(48)) / 48  # by hand: all tokens but each first one
    assert tokens_per_sample(TaskRunner(Fixed()), BUDGET) == 12
    assert tokens_per_sample(TaskRunner(ByWeights()), BUDGET) == pytest.approx(predicted)
    assert mean_weight(Words()) == pytest.approx(predicted)
    assert tokens_per_sample(TaskRunner(Words()), BUDGET) == 5.5
    assert tokens_per_sample(TaskRunner(Words()), RECIPE) is None
    assert tokens_per_sample(FunctionRunner(print, metric="accuracy"), BUDGET) == 5.5
    assert tokens_per_sample(TaskRunner(load_task("text/gpt")), Recipe.named("text/gpt")) == 128


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (0, "tokens_per_sample = 0: must be a number above zero"),
        (True, "tokens_per_sample = True: must be"),
        ("many", "tokens_per_sample = 'many': must be"),
    ],
)
def test_what_is_no_number_of_tokens(told, words):
    task = Fixed()
    task.tokens_per_sample = told
    with pytest.raises(UserError, match=words):
        tokens_per_sample(TaskRunner(task), RECIPE)


def test_weights_that_are_not_there_or_zero():
    task = ByWeights()
    task.weights = None
    with pytest.raises(UserError, match="tokens_per_sample = 'weights', but it has no weights"):
        tokens_per_sample(TaskRunner(task), RECIPE)
    task.weights = lambda targets: 0 * Words().weights(targets)
    with pytest.raises(UserError, match="weights of 48 samples add up to 0: tokens can't be counted"):
        tokens_per_sample(TaskRunner(task), RECIPE)

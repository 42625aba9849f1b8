"""Whether a reference learnt anything, against a constant prediction."""

import math

import pytest

from bigbatch import Metric, Recipe, scale
from bigbatch.core.metric import ACCURACY
from bigbatch.study.comparison.learning import in_words, learnt_nothing, margin_is_too_wide
from bigbatch.train import Result
from bigbatch.train.measure.constant_prediction import ConstantPrediction

TENTH = ConstantPrediction(0.1, math.log(10), 0.3, 10_000)
NATS = Metric("loss", "nats", "lower", margin=0.02)


def runs(*pairs):
    return [Result("t", updates=1, samples=1, test_score=score, test_loss=loss) for score, loss in pairs]


@pytest.mark.parametrize(
    ("pairs", "nothing"),
    [
        ([(0.1, 2e17), (0.098, 3e17)], True),  # at chance
        ([(0.14, 2.31), (0.08, 2.33)], True),  # untrained
        ([(0.15, 2.302)], True),  # by luck of its initial weights
        ([(0.15, 2.1)], False),  # little, but something
        ([(0.7, 4.0)], False),  # overconfident
        ([(0.103, math.nan)], True),
        ([(0.15, math.nan)], False),
        ([(math.nan, math.nan)], False),
    ],
)
def test_what_counts_as_nothing(pairs, nothing):
    assert bool(learnt_nothing(runs(*pairs), TENTH, ACCURACY)) is nothing


def test_a_constant_that_the_margin_would_let_hold(tmp_path):
    learnt = runs((0.4, 1.8))
    assert margin_is_too_wide(learnt, TENTH, ACCURACY, 40.0)
    assert not margin_is_too_wide(learnt, TENTH, ACCURACY, 20.0)
    assert not margin_is_too_wide([], TENTH, ACCURACY, 20.0)
    recipe = Recipe.named("digits/mlp").replace({"budget.epochs": 1})
    comparison = scale("digits/mlp", to=64, rule="linear", seeds=2, max_seeds=2, margin=99.0, recipe=recipe, out=tmp_path, quiet=True)
    assert "within the margin of the reference" in comparison.constant_in_words()
    assert comparison.cannot_be_judged(comparison.arms[1]) == ""  # it learnt something


def test_where_lower_is_better_and_where_scores_are_ratios():
    constant = ConstantPrediction(3.1, 3.1, 0.1, 1000)
    assert learnt_nothing(runs((5.5, 5.5)), constant, NATS).startswith("learnt nothing: test loss 5.50")
    assert not learnt_nothing(runs((2.4, 2.4)), constant, NATS)
    ratio = Metric("perplexity", better="lower", margin=0.01, relative=True)
    assert learnt_nothing(runs((3.2, 3.2)), constant, ratio)
    assert not learnt_nothing(runs((2.4, 2.4)), constant, ratio)


def test_a_diverged_run_says_nothing():
    assert learnt_nothing([Result("t", 1, 1, diverged=True)], TENTH, ACCURACY) == ""


def test_in_words():
    assert in_words(TENTH, ACCURACY) == "the same prediction for every sample has a test accuracy of 10.00 %"
    assert in_words("a command has none", ACCURACY).endswith("is not known: a command has none")
    assert in_words(None, ACCURACY) == ""


@pytest.mark.parametrize("changes", [{"optimizer.lr": 1e-9}, {"optimizer.lr": 30.0, "schedule.warmup.kind": "none"}])
def test_a_reference_that_learnt_nothing_is_named_and_no_further_seed_is_run(tmp_path, changes):
    """Before, it was "undecided (run more seeds)"."""
    recipe = Recipe.named("digits/mlp").replace({"budget.epochs": 1, **changes})
    comparison = scale("digits/mlp", to=64, rule="linear", seeds=2, max_seeds=4, recipe=recipe, out=tmp_path, quiet=True)
    assert [len(arm.results) for arm in comparison.arms] == [2, 2, 2]
    for text in (*map(comparison.sentence, comparison.arms[1:]), comparison.advice()):
        assert "the reference learnt nothing: test accuracy" in text
        assert "tune it" in text
    assert comparison.to_dict()["constant_prediction"]["score"] == pytest.approx(0.12667, abs=1e-4)


def test_a_function_can_not_say(tmp_path):
    def train(recipe, run):
        run.log(updates=recipe.num_updates, loss=1.0, score=0.9)
        run.score(0.9)

    train.metric = ACCURACY
    comparison = scale(train, to=64, rule="linear", seeds=2, max_seeds=2, recipe=Recipe.named("digits/mlp"), out=tmp_path, quiet=True)
    assert (
        comparison.constant
        == "a function keeps its data and predictions to itself; compare its scores with those of a constant prediction yourself"
    )
    assert "is not known: a function keeps" in comparison.to_dict()["constant_in_words"]

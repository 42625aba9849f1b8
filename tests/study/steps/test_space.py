"""What is searched: values of places, edges and what lies beyond, and points that other tools give too."""

import math

import pytest
from scipy.stats import qmc

from bigbatch import Recipe, UserError
from bigbatch.study.steps.space import Choice, Range, applied, at_edge, default_space, parse, sobol

LR = Range("optimizer.lr", 0.01, 1.0)
MOMENTUM = Range("optimizer.momentum", 0.0, 0.99, "log of 1 - value")


@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.99, 1.0])
def test_values_and_places(place):
    assert LR.at(place) == pytest.approx(10 ** (-2 + 2 * place), rel=1e-5)
    assert MOMENTUM.at(place) == pytest.approx(1 - 10 ** (-2 * place), abs=1e-5)
    assert Range("x.y", 2, 4, "linear").at(place) == pytest.approx(2 + 2 * place)
    for each in (LR, MOMENTUM, Range("x.y", 2, 4, "linear")):
        assert each.place(each.at(place)) == pytest.approx(place, abs=1e-4)
    assert Range("budget.updates", 10, 1000).at(0.5) == 100
    assert Choice("x.y", (1, 2, 3)).at(place) == (1, 1, 2, 3, 3)[[0.0, 0.2, 0.5, 0.99, 1.0].index(place)]


def test_the_default_is_the_rate_and_a_momentum_that_there_is():
    recipe = Recipe.named("digits/mlp")
    rate, momentum = default_space(recipe)
    assert (rate.low, rate.high) == pytest.approx((0.1 / 16, 1.6))
    assert (momentum.low, momentum.high) == pytest.approx((0.0, 0.997))
    assert [each.field for each in default_space(recipe.replace({"optimizer.momentum": 0.0, "optimizer.nesterov": False}))] == [
        "optimizer.lr"
    ]
    assert [each.field for each in default_space(Recipe.named("text/gpt"))] == ["optimizer.lr"]


def test_all_rates_of_a_recipe_change_together():
    recipe = Recipe.named("digits/mlp").replace({"optimizer": {"name": "muon", "lr": 0.02, "adam_lr": 0.003}})
    changed = applied(recipe, {"optimizer.lr": 0.04, "optimizer.momentum": 0.5})
    assert (changed.optimizer.lr, changed.optimizer.adam_lr, changed.optimizer.momentum) == (0.04, pytest.approx(0.006), 0.5)


@pytest.mark.parametrize(
    ("value", "beyond"),
    [
        (0.012, (0.001, 0.01)),  # below: half of the range, a decade of two
        (0.9, (1.0, 10.0)),
        (0.1, None),
        (0.02, None),  # 15 % from the end
    ],
)
def test_an_edge_of_the_rate(value, beyond):
    found = at_edge([(LR,)], {"optimizer.lr": value})
    assert (found if found is None else pytest.approx((found.range.low, found.range.high))) == beyond


def test_no_edge_where_nothing_lies_beyond():
    assert at_edge([(LR, MOMENTUM)], {"optimizer.lr": 0.1, "optimizer.momentum": 0.0}) is None
    found = at_edge([(LR, MOMENTUM)], {"optimizer.lr": 0.1, "optimizer.momentum": 0.985})
    assert found.position == 1
    assert (found.range.low, found.range.high) == pytest.approx((0.99, 0.999))


def test_an_edge_is_of_all_that_was_searched():
    further = LR._replace(low=1.0, high=10.0)
    assert at_edge([(LR,), (further,)], {"optimizer.lr": 0.95}) is None
    assert at_edge([(LR,), (further,)], {"optimizer.lr": 8.0}).range.low == pytest.approx(10.0)
    assert at_edge([(Choice("x.y", (1, 2)),)], {"x.y": 1}) is None


def test_points_are_those_of_scipys_sequence():
    whole = qmc.Sobol(3, scramble=True, rng=7).random(8)
    for number, point in enumerate(whole):
        assert sobol(number, 3, 7) == pytest.approx(list(point))


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("optimizer.lr=0.01:1", LR),
        ("optimizer.momentum=0:0.99", MOMENTUM),
        ("optimizer.momentum=0:0.99:linear", MOMENTUM._replace(scale="linear")),
        ("augmentation.padding=0|2|4", Choice("augmentation.padding", (0.0, 2.0, 4.0))),
    ],
)
def test_as_text(text, made):
    assert parse(text) == made


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("lr=1:2", "must be FIELD=LOW:HIGH or"),
        ("optimizer.lr", "must be FIELD=LOW:HIGH or"),
        ("optimizer.lr=1", "must be FIELD=LOW:HIGH, or"),
        ("optimizer.lr=1:x", "'x' is no number"),
        ("optimizer.lr=2:1", "LOW below HIGH"),
        ("optimizer.lr=0:1", "on log must"),
        ("optimizer.momentum=0.5:1", "on log of 1 - value must"),
        ("optimizer.lr=1:inf", "LOW below HIGH"),
        ("optimizer.lr=1:2:cubic", "LOW:HIGH:linear"),
    ],
)
def test_bad_texts(text, why):
    with pytest.raises(UserError, match=why):
        parse(text)


def test_math_of_a_width():
    assert LR.width == pytest.approx(math.log(100))
